"""Subjects cut out of pictures, by a box or by a mask.

What is cut out is shown to an encoder whole, padded to a square with white: the encoders cut the middle square out of what they
are given, which would take heads and feet off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..models_info.vision_input import cut_out, square
from .errors import EvaluationError

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def subject_crop(
    picture: torch.Tensor, box: Sequence[float] | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The subject of a picture (H, W, 3): the whole picture where nothing says where it is, else a square (S, S, 3).

    Args:
        box: left, top, right and bottom in pixels; pixels that it covers in part belong to it.
        mask: (H, W), 1 on the subject; what is not it becomes white. The box around it is cut out where none is given.

    Raises:
        EvaluationError: the box or the mask covers nothing of the picture.
    """
    if box is None and mask is None:
        return picture
    shown = picture[None]
    if mask is not None:
        around = box_of_mask(picture, mask)
        shown = cut_out(shown, mask[None])
        box = around if box is None else box
    left, top, right, bottom = whole_pixels(box or (), picture.shape[1], picture.shape[0])
    return square(shown[:, top:bottom, left:right])[0]


def box_of_mask(picture: torch.Tensor, mask: torch.Tensor, name: str = "a mask") -> Box:
    """The box around a mask (H, W) of a picture (H, W, 3).

    Args:
        name: of the mask, for sentences.

    Raises:
        EvaluationError: the mask is of another size, or empty.
    """
    if mask.shape != picture.shape[:2]:
        raise EvaluationError(
            f"{name} is {mask.shape[1]} x {mask.shape[0]}, its picture {picture.shape[1]} x {picture.shape[0]}; make the mask"
            " of this picture"
        )
    rows, columns = (mask > 0.5).nonzero(as_tuple=True)
    if not len(rows):
        raise EvaluationError(f"{name} is empty; paint or find the subject in it")
    return float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)


def whole_pixels(box: Sequence[float], width: int, height: int) -> tuple[int, int, int, int]:
    """The pixels within the picture that a box covers, those that it covers in part among them.

    Raises:
        EvaluationError: there are none.
    """
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise EvaluationError(f"{tuple(box)} is no box; give left, top, right and bottom in pixels")
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
    if right <= left or bottom <= top:
        raise EvaluationError(
            f"a box ({box[0]:g}, {box[1]:g}, {box[2]:g}, {box[3]:g}) covers nothing of the {width} x {height} picture;"
            " give the box of the subject in this picture"
        )
    return left, top, right, bottom
