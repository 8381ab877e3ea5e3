"""What the measuring nodes have in common: names of pictures and people, frames, sentences, score and table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from comfy_api.latest import io

from ..evaluation.errors import EvaluationError
from ..evaluation.results import Measurement, means, results_table
from ..pose_db.keypoints import PoseFrame, check_frames
from .errors import InputError
from .notes import with_note

CATEGORY = "ensemble/evaluation"
Result = TypeVar("Result")


def subjects_input(tooltip: str) -> io.String.Input:
    return io.String.Input("subjects", default="", multiline=True, optional=True, tooltip=tooltip)


def key_input() -> io.String.Input:
    return io.String.Input(
        "key",
        default="",
        optional=True,
        tooltip="What the picture is called in the table, such as its prompt or seed. Empty: its number.",
    )


def read_frames(node: str, input_name: str, pose: Any) -> list[PoseFrame]:
    try:
        return list(check_frames(pose))
    except (TypeError, ValueError) as error:
        raise InputError(node, input_name, f"{error}; connect a pose detector or Retrieve Pose") from None


def one_for_each(node: str, input_name: str, frames: list[PoseFrame], count: int, of: str) -> list[PoseFrame]:
    if len(frames) not in (1, count):
        raise InputError(
            node, input_name, f"{len(frames)} frames came for {count} {of}; give one for each or one for all"
        )
    return frames * (count if len(frames) == 1 else 1)


def lines(text: str) -> list[str]:
    """What a person wrote one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def picture_keys(key: str, count: int) -> list[str]:
    """What the pictures of a batch are called."""
    key = key.strip()
    if count == 1:
        return [key or "1"]
    return [f"{key} {number}".strip() for number in range(1, count + 1)]


def spoken(node: str, input_name: str, do: Callable[[], Result]) -> Result:
    """What `do` gives, its `EvaluationError` in the words of the node."""
    try:
        return do()
    except EvaluationError as error:
        raise InputError(node, input_name, str(error)) from None


def measured(node: type[io.ComfyNode], rows: Sequence[Measurement]) -> io.NodeOutput:
    """Score and table of a node; the score is not a number where nothing could be measured."""
    scores = [row.score for row in rows if row.score is not None]
    mean = math.fsum(scores) / len(scores) if scores else math.nan
    return with_note(node, "\n".join(map(str, means(rows))), mean, results_table(rows))
