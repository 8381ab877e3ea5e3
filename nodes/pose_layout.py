"""Poses: every subject's own, put together on one canvas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ..pose_db.keypoints import PoseFrame, check_frames
from ..pose_db.layout import lay_out
from .cast import MAX_SUBJECTS
from .errors import InputError
from .pose import MAX_SIDE
from .types import POSE

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class EnsemblePoseLayout(io.ComfyNode):
    """Puts one pose on each subject."""

    DISPLAY_NAME = "Lay Out Poses"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsemblePoseLayout",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/pose",
            description="Puts several poses into one picture, one a subject in the order of the cast: side by side on"
            " one ground line, or into boxes. Nobody is stretched.",
            search_aliases=[
                "arrange poses",
                "combine poses",
                "assign pose",
                "multi-subject",
                "ASTRA",
                "openpose",
                "ensemble",
            ],
            inputs=[
                io.Autogrow.Input(
                    "poses",
                    template=io.Autogrow.TemplatePrefix(
                        POSE.Input("pose", tooltip="The pose of one subject; its first frame, with everybody in it."),
                        prefix="pose",
                        min=1,
                        max=MAX_SUBJECTS,
                    ),
                    tooltip="One pose a subject, in the order of the cast. A pose without people leaves a gap.",
                ),
                io.Int.Input(
                    "width", default=1024, min=16, max=MAX_SIDE, step=8, tooltip="Use the width of your latent."
                ),
                io.Int.Input(
                    "height", default=1024, min=16, max=MAX_SIDE, step=8, tooltip="Use the height of your latent."
                ),
                io.BoundingBox.Input(
                    "boxes",
                    optional=True,
                    force_input=True,
                    tooltip="One box a pose, in the same order, for example from Create Bounding Boxes. Feet stand on"
                    " the lower edge. Without boxes the poses go side by side.",
                ),
            ],
            outputs=[
                POSE.Output(display_name="pose", tooltip="One frame with all people, of the width and height above.")
            ],
        )

    @classmethod
    def execute(cls, poses: io.Autogrow.Type, width: int, height: int, boxes: Any = None) -> io.NodeOutput:
        connected = sorted(poses, key=lambda name: int(name.removeprefix("pose")))
        frames = [_first_frame(number, poses[name]) for number, name in enumerate(connected, start=1)]
        places = None if boxes is None else _check_boxes(boxes, len(frames), width, height)
        try:
            return io.NodeOutput([lay_out(frames, width, height, places)])
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "poses", str(error)) from None


def _first_frame(number: int, pose: Any) -> PoseFrame:
    try:
        return check_frames(pose)[0]
    except ValueError as error:
        raise InputError(
            EnsemblePoseLayout.DISPLAY_NAME,
            "poses",
            f"pose {number} cannot be read, {error}; connect a pose detector or Retrieve Pose",
        ) from None


def _check_boxes(boxes: Any, count: int, width: int, height: int) -> list[Box]:
    """One box a pose from any form in which the host passes boxes."""
    found = _boxes_of_first_picture(boxes)
    if len(found) != count:
        raise InputError(
            EnsemblePoseLayout.DISPLAY_NAME,
            "boxes",
            f"{count} poses need {count} boxes, but {len(found)} came; give every pose one box, in the same order",
        )
    return [_check_box(number, box, width, height) for number, box in enumerate(found, start=1)]


def _boxes_of_first_picture(boxes: Any) -> Sequence[Any]:
    """A single box, a list of boxes, or a list of boxes for every picture of a batch."""
    if isinstance(boxes, Mapping):
        return [boxes]
    if not isinstance(boxes, list | tuple):
        return []
    return boxes[0] if boxes and isinstance(boxes[0], list | tuple) else boxes


def _check_box(number: int, box: Any, width: int, height: int) -> Box:
    node = EnsemblePoseLayout.DISPLAY_NAME
    try:
        x, y, box_width, box_height = (float(box[key]) for key in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            node, "boxes", f"box {number} lacks x, y, width or height; use Create Bounding Boxes or a detector"
        ) from None
    size = f"{box_width:g} x {box_height:g} at ({x:g}, {y:g})"
    if not all(map(math.isfinite, (x, y, box_width, box_height))):
        raise InputError(node, "boxes", f"box {number} ({size}) is not a place on the canvas; draw it again")
    if min(box_width, box_height) < 1:
        raise InputError(node, "boxes", f"box {number} ({size}) is smaller than a pixel; draw it larger")
    if min(x, y) < 0 or x + box_width > width or y + box_height > height:
        raise InputError(
            node,
            "boxes",
            f"box {number} ({size}) reaches outside the {width} x {height} canvas; draw the boxes on one of that size",
        )
    return x, y, box_width, box_height


NODES: list[type[io.ComfyNode]] = [EnsemblePoseLayout]
