"""How good pictures are: poses, likeness, prompts kept; and a report of it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..evaluation.oks_rows import oks_rows
from ..evaluation.results import Measurement
from .evaluation_report import EnsembleEvaluationReport
from .evaluation_rows import (
    CATEGORY,
    key_input,
    lines,
    measured,
    one_for_each,
    picture_keys,
    read_frames,
    spoken,
    subjects_input,
)
from .evaluation_similarity import EnsembleSimilarity
from .types import POSE


class EnsembleOKS(io.ComfyNode):
    """Compares poses."""

    DISPLAY_NAME = "Pose Similarity (OKS)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleOKS",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description="How near the people of a picture came to the pose they should have: 1 is exact, 0 is nobody there."
            " COCO's measure, person by person.",
            search_aliases=[
                "OKS",
                "object keypoint similarity",
                "COCO",
                "pose accuracy",
                "ASTRA",
                "metric",
                "ensemble",
            ],
            inputs=[
                POSE.Input("pose", tooltip="The pose that a detector found in your picture; one frame a picture."),
                POSE.Input(
                    "reference_pose",
                    tooltip="The pose the people should have: the one the picture was made with. One frame for all pictures,"
                    " or one for each.",
                ),
                subjects_input("Names of the people of the reference, one a line, in its order. For the table only."),
                key_input(),
            ],
            outputs=[
                io.Float.Output(display_name="score", tooltip="The mean over everybody in the reference."),
                io.String.Output(display_name="table", tooltip="One line a person; for Evaluation Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, pose: Any, reference_pose: Any, subjects: str = "", key: str = "") -> io.NodeOutput:
        node = cls.DISPLAY_NAME
        frames, references = read_frames(node, "pose", pose), read_frames(node, "reference_pose", reference_pose)
        each = one_for_each(node, "reference_pose", references, len(frames), "pictures")
        keys, names = picture_keys(key, len(frames)), lines(subjects)
        rows: list[Measurement] = []
        for frame, reference, name in zip(frames, each, keys, strict=True):
            blank = Measurement("OKS", None, name)
            rows += spoken(
                node,
                "pose",
                lambda blank=blank, frame=frame, reference=reference: oks_rows(blank, names, frame, reference),
            )
        return measured(cls, rows)


NODES: list[type[io.ComfyNode]] = [EnsembleOKS, EnsembleSimilarity, EnsembleEvaluationReport]
