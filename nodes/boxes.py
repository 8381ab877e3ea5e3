"""Boxes, in any of the forms in which ComfyUI's nodes pass them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import InputError

Corners = tuple[float, float, float, float]  # left, top, right, bottom


def read_boxes(node: str, input_name: str, box: Any, pictures: int, width: int, height: int) -> list[list[Corners]]:
    """The boxes of every picture: one box, a list for all pictures, or a list of lists.

    Raises:
        InputError: a picture has none, or a box covers nothing of it.
    """
    if isinstance(box, Mapping):
        each = [[box]] * pictures
    elif isinstance(box, list | tuple) and box and isinstance(box[0], list | tuple):
        each = list(box) * (pictures if len(box) == 1 else 1)
    else:
        each = [box if isinstance(box, list | tuple) else []] * pictures
    if len(each) != pictures:
        raise InputError(
            node, input_name, f"boxes of {len(each)} pictures came for {pictures}; use those found in these pictures"
        )
    for number, boxes in enumerate(each, start=1):
        if not boxes:
            raise InputError(node, input_name, f"there is none for picture {number}; draw one or disconnect the input")
    return [
        [_corners(node, input_name, number, entry, width, height) for number, entry in enumerate(boxes, start=1)]
        for boxes in each
    ]


def _corners(node: str, input_name: str, number: int, box: Any, width: int, height: int) -> Corners:
    """A box's part within the picture."""
    try:
        x, y, breadth, depth = (float(box[key]) for key in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            node,
            input_name,
            f"box {number} lacks x, y, width or height; use Create Bounding Boxes or a detector",
        ) from None
    corners = (max(0.0, x), max(0.0, y), min(float(width), x + breadth), min(float(height), y + depth))
    finite = all(map(math.isfinite, (x, y, breadth, depth)))
    if not finite or corners[2] - corners[0] < 1 or corners[3] - corners[1] < 1:
        raise InputError(
            node,
            input_name,
            f"box {number} ({breadth:g} x {depth:g} at ({x:g}, {y:g})) covers nothing of the {width} x {height} picture;"
            " draw it on the subject",
        )
    return corners
