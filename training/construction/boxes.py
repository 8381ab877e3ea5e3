"""Boxes: left, top, right, bottom in pixels of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]


def clipped(box: Sequence[float], width: int, height: int) -> Box | None:
    """The part of a box within the picture; None where there is none, or a side is shorter than a pixel."""
    left, top, right, bottom = (float(value) for value in box)
    left, right = max(0.0, left), min(float(width), right)
    top, bottom = max(0.0, top), min(float(height), bottom)
    return (left, top, right, bottom) if right - left >= 1 and bottom - top >= 1 else None


def area(box: Box) -> float:
    """In pixels; 0 for an empty box."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def common(first: Box, second: Box) -> float:
    """Pixels that lie in both."""
    return area(
        (max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3]))
    )


def overlap(first: Box, second: Box) -> float:
    """Intersection over union."""
    shared = common(first, second)
    union = area(first) + area(second) - shared
    return shared / union if union > 0 else 0.0


def inside(inner: Box, outer: Box) -> float:
    """Share of `inner` that lies in `outer`."""
    return common(inner, outer) / area(inner) if area(inner) > 0 else 0.0


def box_of_mask(mask: np.ndarray) -> Box | None:
    """The box around a mask (H, W) bool; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def grown(box: Box, share: float, width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels around a box and a margin of `share` of its longer side, within the picture."""
    margin = share * max(box[2] - box[0], box[3] - box[1])
    left, top = max(0, int(np.floor(box[0] - margin))), max(0, int(np.floor(box[1] - margin)))
    right, bottom = min(width, int(np.ceil(box[2] + margin))), min(height, int(np.ceil(box[3] + margin)))
    return left, top, right, bottom
