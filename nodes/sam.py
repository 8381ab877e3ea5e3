"""SAM: masks of subjects, from a box, from points, or of whatever the picture is about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..models_info.registry import SAM_VIT_B, SAMS, find_file, list_files
from ..models_info.sam import SAMError, load_sam
from ..models_info.sam_masks import Seen, look_at, prompted_logits, subject_mask
from .boxes import Corners, read_boxes
from .errors import InputError, require_packages, sentence_or_true
from .model_choice import file_version, load_chosen
from .types import SAM

Point = tuple[float, float]


class EnsembleSAMLoader(io.ComfyNode):
    """Loads a SAM."""

    DISPLAY_NAME = "Load SAM"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleSAMLoader",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Loads Segment Anything, which cuts subjects out of pictures. Which of its sizes a file is, its"
            " weights tell.",
            search_aliases=["Segment Anything", "segmentation", "mask", "SeAl", "vit_b", "vit_h", "ensemble"],
            inputs=[
                io.Combo.Input(
                    "sam_name",
                    options=list_files(SAMS),
                    tooltip=f"A file of models/{SAMS}: sam_vit_b, sam_vit_l or sam_vit_h, from {SAM_VIT_B.source}.",
                )
            ],
            outputs=[SAM.Output(display_name="sam")],
        )

    @classmethod
    def validate_inputs(cls, sam_name: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_find_sam, sam_name)

    @classmethod
    def fingerprint_inputs(cls, sam_name: str) -> float:
        """A file that was replaced under the same name is loaded again."""
        return file_version(SAMS, sam_name)

    @classmethod
    def execute(cls, sam_name: str) -> io.NodeOutput:
        path = _find_sam(sam_name)
        _require_library(cls.DISPLAY_NAME)
        load = partial(load_sam, path)
        return io.NodeOutput(load_chosen(cls.DISPLAY_NAME, "sam_name", sam_name, load, SAMError))


def _find_sam(name: str) -> Path:
    path = find_file(SAMS, name)
    if path is None:
        there = list_files(SAMS)
        remedy = f"choose one of: {', '.join(there)}" if there else f"get {SAM_VIT_B.name} from {SAM_VIT_B.source}"
        raise InputError(EnsembleSAMLoader.DISPLAY_NAME, "sam_name", f"there is no '{name}' in models/{SAMS}; {remedy}")
    return path


def _require_library(node: str) -> None:
    try:
        require_packages(node, "segment_anything")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{node}: the Python package segment-anything is not installed; run `pip install segment-anything`, or take"
            " masks from ComfyUI's own SAM3 or Remove Background nodes."
        ) from None


class EnsembleSAMSegment(io.ComfyNode):
    """Cuts subjects out of pictures."""

    DISPLAY_NAME = "SAM Segment"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleSAMSegment",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Masks what a box or a point shows; with neither, the subject in the middle of the picture.",
            search_aliases=["Segment Anything", "segmentation", "cut out", "subject mask", "SeAl", "ensemble"],
            inputs=[
                SAM.Input("sam", tooltip="From Load SAM."),
                io.Image.Input("image", tooltip="One picture or a batch."),
                io.BoundingBox.Input(
                    "box",
                    optional=True,
                    force_input=True,
                    tooltip="Around the subject, for example from Create Bounding Boxes or a detector. Several boxes"
                    " give several masks, in their order.",
                ),
                io.String.Input(
                    "point",
                    default="",
                    optional=True,
                    tooltip="A pixel on the subject as x, y, or several, one a line. The JSON points of ComfyUI's SAM3"
                    " nodes do too.",
                ),
                io.String.Input(
                    "negative_point",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Likewise, on what is not to be in the mask.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="White on the subject; one mask a picture, or one a box, in order."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, point: str | None = None, negative_point: str | None = None) -> bool | str:
        """No value comes for what is linked."""
        for name, text in (("point", point), ("negative_point", negative_point)):
            checked = sentence_or_true(lambda value, name=name: _read_points(name, value), text)
            if checked is not True:
                return checked
        return True

    @classmethod
    def execute(
        cls, sam: ModelPatcher, image: torch.Tensor, box: Any = None, point: str = "", negative_point: str = ""
    ) -> io.NodeOutput:
        height, width = image.shape[1:3]
        marks = Marks(_read_points("point", point), _read_points("negative_point", negative_point))
        for name, points in zip(("point", "negative_point"), marks, strict=True):
            _check_inside(name, points, width, height)
        boxes = None if box is None else read_boxes(cls.DISPLAY_NAME, "box", box, len(image), width, height)
        _check_together(boxes, marks)
        masks = []
        progress = comfy.utils.ProgressBar(len(image))
        for number, picture in enumerate(image):
            seen = see(cls.DISPLAY_NAME, "image", sam, picture)
            masks += _masks(sam, seen, None if boxes is None else boxes[number], marks)
            progress.update(1)
        place = comfy.model_management.intermediate_device()
        return io.NodeOutput(torch.stack([mask.to(place) for mask in masks]).float())


class Marks(NamedTuple):
    """Points on the subject and on what is not it."""

    on: list[Point]
    off: list[Point]


def see(node: str, input_name: str, sam: ModelPatcher, picture: torch.Tensor) -> Seen:
    """Let SAM look at a picture (H, W, C); `InputError` where it cannot."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    _require_library(node)
    try:
        return look_at(sam, picture[..., :3])
    except ValueError as error:
        raise InputError(node, input_name, str(error)) from None


def subject_of(node: str, sam: ModelPatcher, seen: Seen, input_name: str, remedy: str) -> torch.Tensor:
    """The subject of a picture, (H, W) bool; `InputError` where SAM finds none."""
    mask = subject_mask(sam, seen)
    if mask is None:
        raise InputError(node, input_name, f"SAM is not sure of any subject in it; {remedy}")
    return mask


def _masks(sam: ModelPatcher, seen: Seen, boxes: list[Corners] | None, marks: Marks) -> list[torch.Tensor]:
    """(H, W) bool each, of one picture."""
    if boxes is not None:
        return [prompted_logits(sam, seen, box, marks.on, marks.off) > 0 for box in boxes]
    if marks.on:
        return [prompted_logits(sam, seen, None, marks.on, marks.off) > 0]
    return [subject_of(EnsembleSAMSegment.DISPLAY_NAME, sam, seen, "image", "connect a box or write a point")]


def _check_together(boxes: list[list[Corners]] | None, marks: Marks) -> None:
    node = EnsembleSAMSegment.DISPLAY_NAME
    if marks.off and not marks.on and boxes is None:
        raise InputError(
            node, "negative_point", "alone it says only what is not meant; write a point or connect a box too"
        )
    several = 0 if boxes is None else max(map(len, boxes))
    if several > 1 and (marks.on or marks.off):
        raise InputError(
            node, "point", f"it cannot belong to {several} boxes at once; connect one box or leave the points out"
        )


def _read_points(name: str, text: str) -> list[Point]:
    """Points of lines "x, y", or of the JSON list of {"x", "y"} that the host's SAM3 nodes take."""
    text = text.strip()
    try:
        if text.startswith("["):
            return [(float(entry["x"]), float(entry["y"])) for entry in json.loads(text)]
        pairs = [line.replace(",", " ").split() for line in text.replace(";", "\n").splitlines() if line.strip()]
        return [(float(x), float(y)) for x, y in pairs]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise InputError(
            EnsembleSAMSegment.DISPLAY_NAME, name, f"'{text}' is no point; write x, y in pixels, one point a line"
        ) from None


def _check_inside(name: str, points: Sequence[Point], width: int, height: int) -> None:
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(
                EnsembleSAMSegment.DISPLAY_NAME,
                name,
                f"({x:g}, {y:g}) lies outside the {width} x {height} picture; count pixels from its upper left corner",
            )


NODES: list[type[io.ComfyNode]] = [EnsembleSAMLoader, EnsembleSAMSegment]
