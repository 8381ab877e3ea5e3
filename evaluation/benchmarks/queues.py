"""Cases -> queues for `comfyui-ensemble batch`: a workflow that fits them, and a row of values for each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cases import Case
from ..errors import EvaluationError
from .fitting import ALIGN, STRUCTURE_TITLE, pruned, with_structure, with_subjects, without_pose
from .links import Slot, Workflow, of_class
from .slots import address, appearance_slots, picture_slots, prompt_slots, seed_slots, size_slots, subject_nodes

KEY = "#key"  # column that says which case a job is
FROM_QUEUE = "../../"  # where a manifest's files are, seen from a jobs file

Row = dict[str, Any]


@dataclass(frozen=True)
class Queue:
    """One workflow and its jobs."""

    name: str
    workflow: Workflow
    rows: list[Row]


def cast_queues(workflow: Workflow, cases: Sequence[Case]) -> list[Queue]:
    """One queue for each number of subjects; poses are drawn where the cases have a structure and left out where not."""
    counts = sorted({len(case.subjects) for case in cases})
    return [_cast_queue(workflow, count, [case for case in cases if len(case.subjects) == count]) for count in counts]


def _cast_queue(workflow: Workflow, count: int, cases: Sequence[Case]) -> Queue:
    posed = with_structure(workflow) if cases[0].structure else without_pose(workflow)
    fitted = pruned(with_subjects(posed, count), workflow)
    nodes, pictures = subject_nodes(fitted), picture_slots(fitted)
    if len(set(pictures)) < count:
        raise EvaluationError("--workflow: two of its subjects share one picture; give each its own Load Image node")

    def row(case: Case) -> Row:
        filled: dict[Slot, Any] = {}
        for subject, node, picture in zip(case.subjects, nodes, pictures, strict=True):
            filled[picture] = FROM_QUEUE + subject.references[0]
            filled[node, "name"] = subject.name
            filled[node, "description"] = as_prompt(subject.description)
            filled[node, "category"] = subject.category
        return _row(fitted, case, filled)

    return Queue(f"{count}_subject{'' if count == 1 else 's'}", fitted, [row(case) for case in cases])


def appearance_queue(workflow: Workflow, cases: Sequence[Case], aligned: Mapping[str, bool]) -> Queue:
    """A queue of pairs: the first subject's appearance, the case's structure.

    Args:
        aligned: key -> whether the pictures say where their subjects are, so that AnchorAlign can align them.
    """
    fitted = pruned(with_structure(workflow), workflow)
    pictures, texts = appearance_slots(fitted)
    aligning = [(number, "enabled") for number in of_class(fitted, ALIGN)]

    def row(case: Case) -> Row:
        appearance = case.subjects[0]
        filled: dict[Slot, Any] = dict.fromkeys(pictures, FROM_QUEUE + appearance.references[0])
        filled |= dict.fromkeys(texts, as_prompt(appearance.description))
        return _row(fitted, case, filled | dict.fromkeys(aligning, aligned[case.key]))

    return Queue("pairs", fitted, [row(case) for case in cases])


def as_prompt(text: str) -> str:
    """A text with nothing in it that a text encode node would take for a weight."""
    return re.sub(r"([\\()])", r"\\\1", text)


def workflow_size(workflow: Workflow) -> tuple[int, int]:
    """Width and height that a workflow paints.

    Raises:
        EvaluationError: its size cannot be set.
    """
    sizes = size_slots(workflow)
    if not sizes:
        raise EvaluationError("--workflow: it has no Empty Latent whose size could be set; give it one")
    (width, height), *_others = sizes
    return workflow[width[0]]["inputs"]["width"], workflow[height[0]]["inputs"]["height"]


def _row(workflow: Workflow, case: Case, filled: Mapping[Slot, Any]) -> Row:
    values: dict[Slot, Any] = dict(filled)
    values |= dict.fromkeys(prompt_slots(workflow), as_prompt(case.prompt))
    values |= dict.fromkeys(seed_slots(workflow), case.seed)
    for width, height in size_slots(workflow) if case.width else ():
        values |= {width: case.width, height: case.height}
    if case.structure:
        values |= dict.fromkeys(_structure_slots(workflow), FROM_QUEUE + case.structure)
    return {KEY: case.key} | {address(workflow, slot): value for slot, value in values.items()}


def _structure_slots(workflow: Workflow) -> list[Slot]:
    """What `with_structure` has put in."""
    return [
        (number, "image") for number, node in workflow.items() if node.get("_meta", {}).get("title") == STRUCTURE_TITLE
    ]
