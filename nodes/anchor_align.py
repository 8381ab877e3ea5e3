"""AnchorAlign: the structure's subject to where the appearance's subject is, at its size."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention_patches.anchor_align import Box, align, background_colour, cut_off, moved_box
from ..attention_patches.projection import Move, Size, project, project_cast, project_mask
from ..pose_db.keypoints import PoseFrame, frame_from_people
from ..pose_db.layout import Group
from ..pose_db.subjects import moved_frame
from .anchor_preview import draw_alignment
from .anchor_sides import APPEARANCE, NODE, STRUCTURE, Side, find_subjects, given_of, matched, subject_masks
from .errors import InputError
from .types import POSE, SAM


class EnsembleAnchorAlign(io.ComfyNode):
    """Aligns the structure with the appearance."""

    DISPLAY_NAME = NODE

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAnchorAlign",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Scales and moves a structure picture (pose, depth map, photo), so that its subject stands where the"
            " subject of the appearance picture stands, as tall as it is there.",
            search_aliases=[
                "AnchorAlign",
                "SeAl",
                "align pose",
                "match position",
                "geometric pre-alignment",
                "bounding box",
                "ensemble",
            ],
            inputs=[
                io.Image.Input("structure", tooltip="The picture to align: a drawn pose, a depth map, a photo."),
                io.Image.Input("appearance", tooltip="The picture of your subject; the result has its size."),
                io.Mask.Input(
                    "structure_mask",
                    optional=True,
                    tooltip="White where the structure's subject is. A batch of masks is one a subject, in the order of"
                    " the cast.",
                ),
                io.Mask.Input(
                    "appearance_mask",
                    optional=True,
                    tooltip="Likewise for the appearance. Load Image gives the opposite: invert it first.",
                ),
                SAM.Input(
                    "sam",
                    optional=True,
                    tooltip="Finds the subject of a picture that comes without mask, alpha channel and pose.",
                ),
                POSE.Input(
                    "structure_pose",
                    optional=True,
                    tooltip="The pose that the structure shows. It says where the subjects are and is aligned with them.",
                ),
                POSE.Input(
                    "appearance_pose",
                    optional=True,
                    tooltip="The pose of the appearance's subject, from a pose detector, instead of a mask.",
                ),
                io.Boolean.Input(
                    "enabled",
                    default=True,
                    optional=True,
                    tooltip="Off: the structure is passed on as it is.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The aligned structure, at the appearance's size."),
                io.String.Output(display_name="report", tooltip="Boxes, scale, translation, and what was cut off."),
                io.Image.Output(display_name="preview", tooltip="Both pictures with their boxes, and the result."),
                POSE.Output(display_name="pose", tooltip="structure_pose, aligned; without it nobody."),
                io.Mask.Output(display_name="mask", tooltip="Where the subjects are now, one mask each."),
            ],
        )

    @classmethod
    def execute(
        cls,
        structure: torch.Tensor,
        appearance: torch.Tensor,
        structure_mask: torch.Tensor | None = None,
        appearance_mask: torch.Tensor | None = None,
        sam: ModelPatcher | None = None,
        structure_pose: Any = None,
        appearance_pose: Any = None,
        enabled: bool = True,
    ) -> io.NodeOutput:
        if not enabled:
            return _passed_on(structure, structure_mask, structure_pose)
        pictures = max(len(structure), len(appearance))
        structures, appearances = (
            [find_subjects(given, sam) for given in given_of(*side, pictures)]
            for side in (
                (STRUCTURE, structure, structure_mask, structure_pose),
                (APPEARANCE, appearance, appearance_mask, appearance_pose),
            )
        )
        # A single picture goes with all of the other side.
        pairs = zip(*(side * (pictures if len(side) == 1 else 1) for side in (structures, appearances)), strict=True)
        results = [_align(*matched(*pair)) for pair in pairs]
        reports = [result.report for result in results]
        if pictures > 1:
            reports = [f"Picture {number}\n{report}" for number, report in enumerate(reports, start=1)]
        return io.NodeOutput(
            _batch([result.picture for result in results]),
            "\n\n".join(reports),
            _batch([result.preview for result in results]),
            [result.pose for result in results],
            results[0].masks if pictures == 1 else torch.cat([result.masks for result in results]),
        )


def _batch(pictures: list[torch.Tensor]) -> torch.Tensor:
    """Pictures (H, W, C) as one batch; a single one is not copied."""
    return pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)


def _passed_on(structure: torch.Tensor, mask: torch.Tensor | None, pose: Any) -> io.NodeOutput:
    """The structure and what belongs to it, untouched."""
    height, width = structure.shape[1:3]
    if mask is None:
        mask = structure.new_ones((len(structure), height, width))
    if pose is None:
        pose = [_nobody(height, width)]
    return io.NodeOutput(structure, "Not aligned: enabled is off.", structure[..., :3], pose, mask)


def _nobody(height: int, width: int) -> PoseFrame:
    return frame_from_people(np.zeros((0, 18, 3)), width, height)


class Result(NamedTuple):
    picture: torch.Tensor  # (h, w, 3)
    masks: torch.Tensor  # (N, h, w)
    pose: PoseFrame
    preview: torch.Tensor  # (H, W, 3)
    report: str


def _align(structure: Side, appearance: Side) -> Result:
    """One pair of pictures with as many subjects each."""
    source, target = structure.given.picture, appearance.given.picture
    size = (target.shape[0], target.shape[1])
    moves = [align(*boxes) for boxes in zip(structure.boxes, appearance.boxes, strict=True)]
    pose = _moved_pose(structure.given.subjects, moves, size)
    masks = subject_masks(structure)
    colour = background_colour(source, masks[0] if len(masks) == 1 else masks.amax(dim=0))
    if len(moves) == 1:
        picture = project(source, moves[0], size, colour)
        moved = project_mask(masks[0], moves[0], size)[None]
    else:
        far_to_near = sorted(range(len(moves)), key=lambda number: appearance.boxes[number].bottom)
        picture, moved = project_cast(source, masks, moves, size, colour, far_to_near)
    preview = draw_alignment(source, target, picture, structure.boxes, appearance.boxes, moves)
    return Result(picture, moved, pose, torch.from_numpy(preview), _report(structure, appearance, moves, size))


def _moved_pose(subjects: list[Group], moves: list[Move], size: Size) -> PoseFrame:
    if not subjects:
        return _nobody(*size)
    if len(moves) not in (1, len(subjects)):
        raise InputError(
            NODE,
            "structure_pose",
            f"{len(subjects)} subjects are in it and {len(moves)} in the masks; give both the same, in the order of the cast",
        )
    return moved_frame(subjects, moves * (len(subjects) if len(moves) == 1 else 1), size[1], size[0])


def _report(structure: Side, appearance: Side, moves: list[Move], size: Size) -> str:
    lines = []
    for number, (own, target, move) in enumerate(zip(structure.boxes, appearance.boxes, moves, strict=True), start=1):
        name = f"Subject {number}: " if len(moves) > 1 else ""
        lines += [
            f"{name}structure box {_spell(own)}, from {structure.source}",
            f"{name}appearance box {_spell(target)}, from {appearance.source}",
            f"{name}scale {move.scale:.4g}, translation ({move.x:+.1f}, {move.y:+.1f})",
            f"{name}{_spell_cut_off(moved_box(own, move), size)}",
        ]
    for side in (structure, appearance):
        if (
            side.masks is not None
            and all(_covers(box, side.given.picture) for box in side.boxes)
            and side.masks.min() > 0.5
        ):
            lines.append(
                f"Note: {side.source} covers the whole {side.given.role} picture; was it meant to be inverted?"
            )
    return "\n".join(lines)


def _covers(box: Box, picture: torch.Tensor) -> bool:
    return box == (0, 0, picture.shape[1], picture.shape[0])


def _spell(box: Box) -> str:
    return f"{box.width:.0f} x {box.height:.0f} at ({box.left:.0f}, {box.top:.0f})"


def _spell_cut_off(box: Box, size: Size) -> str:
    lost = cut_off(box, size)
    sides = ", ".join(
        f"{side} {share:.1%}" for side, share in zip(lost._fields[1:], lost[1:], strict=True) if share > 0.0005
    )
    return f"cut off: {lost.area:.1%} of the box ({sides})" if sides else "nothing is cut off"


NODES: list[type[io.ComfyNode]] = [EnsembleAnchorAlign]
