"""Likeness of pictures: to their references, their prompt, their structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io

from ..evaluation.results import Measurement
from ..evaluation.similarity import METRICS, Kind, Measure
from ..models_info.registry import DETECTORS, ENCODERS, FACE_NETWORKS, GROUNDING_DINO, list_folders
from ..pose_db.keypoints import PoseFrame
from .boxes import read_boxes
from .errors import InputError, require_text, sentence_or_true
from .evaluation_models import (
    NO_DETECTOR,
    OWN,
    check_metric,
    chosen_detector,
    chosen_measure,
    detector_folder,
    model_choices,
    model_path,
)
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
from .types import POSE

if TYPE_CHECKING:
    from .evaluation_pairs import Comparison


class EnsembleSimilarity(io.ComfyNode):
    """Compares pictures with references or texts."""

    DISPLAY_NAME = "Similarity"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleSimilarity",
            display_name=cls.DISPLAY_NAME,
            category=CATEGORY,
            description="How alike a picture and its references are, or how well it fits its prompt, by the metrics of the"
            " papers. With boxes, masks or a detector each subject is compared with its own reference.",
            search_aliases=[
                *METRICS,
                "identity",
                "subject consistency",
                "prompt following",
                "DreamBench",
                "DreamSim",
                "metric",
                "ensemble",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The pictures to judge."),
                io.Combo.Input(
                    "metric",
                    options=list(METRICS),
                    tooltip="-I: subject against reference. -T: picture against text. DINO sees fine differences of subjects,"
                    " FaceSim knows faces, Structure compares place by place.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Pictures of the subjects, in the order of the cast. For Structure the structure picture.",
                ),
                io.String.Input(
                    "text", default="", multiline=True, optional=True, tooltip="The prompt, for the metrics with -T."
                ),
                io.BoundingBox.Input(
                    "boxes",
                    optional=True,
                    force_input=True,
                    tooltip="Where the subjects are in the picture, in the order of the references. Without, whole pictures"
                    " are compared. -T and Structure always see the whole picture.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="White on the subjects, one mask a subject, in the order of the references; what is around them"
                    " does not count.",
                ),
                subjects_input(
                    "The subjects in the order of the references, one a line: names for the table, and the words by which a"
                    " detector looks for them."
                ),
                io.Combo.Input(
                    "detector",
                    options=[NO_DETECTOR, *list_folders(DETECTORS)],
                    default=NO_DETECTOR,
                    optional=True,
                    tooltip=f"A folder of models/{DETECTORS}, such as {GROUNDING_DINO.source}: finds the subjects by their"
                    " words.",
                ),
                io.Combo.Input(
                    "model",
                    options=[OWN, *model_choices()],
                    default=OWN,
                    optional=True,
                    advanced=True,
                    tooltip=f"Measures with another model: a folder of models/{ENCODERS}, for FaceSim a file of"
                    f" models/{FACE_NETWORKS}.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Measures with a CLIP_VISION that is loaded already, instead of a folder; for the metrics that"
                    " compare with pictures.",
                ),
                POSE.Input(
                    "pose",
                    optional=True,
                    tooltip="For FaceSim: the people in the picture. Their faces are brought upright. A pose with face"
                    " keypoints is best.",
                ),
                POSE.Input(
                    "reference_pose",
                    optional=True,
                    tooltip="For FaceSim: the people in the references, one frame each.",
                ),
                key_input(),
            ],
            outputs=[
                io.Float.Output(display_name="score", tooltip="The mean."),
                io.String.Output(display_name="table", tooltip="One line a comparison; for Evaluation Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, metric: str | None = None, detector: str | None = None, model: str | None = None
    ) -> bool | str:
        """No value comes for what is linked."""
        checks: list[tuple[Callable[[Any], Any], Any]] = [
            (partial(check_metric, cls.DISPLAY_NAME), metric),
            (partial(detector_folder, cls.DISPLAY_NAME), detector),
            (partial(model_path, cls.DISPLAY_NAME), model),
        ]
        answers = (sentence_or_true(check, value) for check, value in checks)
        return next((answer for answer in answers if answer is not True), True)

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        metric: str,
        reference: torch.Tensor | None = None,
        text: str = "",
        boxes: Any = None,
        masks: torch.Tensor | None = None,
        subjects: str = "",
        detector: str = NO_DETECTOR,
        model: str = OWN,
        clip_vision: ClipVisionModel | None = None,
        pose: Any = None,
        reference_pose: Any = None,
        key: str = "",
    ) -> io.NodeOutput:
        from .evaluation_pairs import Scene, comparisons  # and what finds people and faces; no start needs it

        node = cls.DISPLAY_NAME
        check_metric(node, metric)
        kind = METRICS[metric].kind
        _check_other(kind, metric, reference, text)
        names = lines(subjects)
        if detector != NO_DETECTOR and (boxes is not None or masks is not None):
            raise InputError(
                node, "detector", "boxes or masks say already where the subjects are; choose none or disconnect them"
            )
        finder = chosen_detector(cls.DISPLAY_NAME, detector, names) if kind in (Kind.PICTURE, Kind.FACE) else None
        height, width = image.shape[1:3]
        scene = Scene(
            metric=METRICS[metric],
            pictures=list(image[..., :3]),
            keys=picture_keys(key, len(image)),
            references=[] if reference is None else list(reference[..., :3]),
            text=text,
            names=names,
            boxes=None if boxes is None else read_boxes(node, "boxes", boxes, len(image), width, height),
            masks=None if masks is None else _masks_of_each(masks, len(image)),
            detector=finder,
            poses=None if pose is None else _frames_of_each("pose", pose, len(image), "pictures"),
            reference_poses=None
            if reference_pose is None or reference is None
            else _frames_of_each("reference_pose", reference_pose, len(reference), "references"),
        )
        compared = spoken(node, "image", lambda: comparisons(scene))
        measure = chosen_measure(cls.DISPLAY_NAME, metric, model, clip_vision)
        return measured(cls, spoken(node, "metric", lambda: _scored(measure, compared)))


def _scored(measure: Measure, compared: Sequence[Comparison]) -> list[Measurement]:
    """The measurements in their order, those with nothing to compare left as they are."""
    pairs = [(each.picture, each.other) for each in compared if each.picture is not None]
    scores = iter(measure.scores([picture for picture, _ in pairs], [other for _, other in pairs]))
    rows = []
    for each in compared:
        row = each.measurement
        if each.picture is not None:
            said = measure.note(each.other) if isinstance(each.other, str) else ""
            row = replace(row, score=next(scores), note="; ".join(filter(None, (row.note, said))))
        rows.append(row)
    return rows


def _check_other(kind: Kind, metric: str, reference: torch.Tensor | None, text: str) -> None:
    """`InputError` where that is missing which the picture is to be compared with."""
    node = EnsembleSimilarity.DISPLAY_NAME
    if kind is Kind.TEXT:
        require_text(node, "text", text, f"{metric} compares the picture with a prompt, so write or connect it")
    elif reference is None:
        raise InputError(node, "reference", f"nothing is connected; {metric} compares the picture with {kind.value}")


def _masks_of_each(masks: torch.Tensor, pictures: int) -> list[list[torch.Tensor]]:
    """The masks (M, H, W) of every picture, picture by picture."""
    if len(masks) % pictures:
        raise InputError(
            EnsembleSimilarity.DISPLAY_NAME,
            "masks",
            f"{len(masks)} masks came for {pictures} pictures; give every picture as many, one a subject",
        )
    share = len(masks) // pictures
    return [list(masks[start : start + share]) for start in range(0, len(masks), share)]


def _frames_of_each(input_name: str, pose: Any, count: int, of: str) -> list[PoseFrame]:
    node = EnsembleSimilarity.DISPLAY_NAME
    return one_for_each(node, input_name, read_frames(node, input_name, pose), count, of)
