"""Instance masks for AnyStory's router: one a subject, no pixel in two of them.

Where masks overlap, a pixel belongs to the subject in front. `area` takes the smaller one to be in front (a bag before the
person who carries it); `depth` the one whose lower end is lower in the picture, because what stands on the ground nearer
to the camera does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Order = Literal["area", "depth"]


def in_front_first(masks: np.ndarray, order: Order) -> list[int]:
    """The numbers of the masks (N, H, W) bool, the one in front first; equal ones keep their order."""
    areas = masks.sum(axis=(1, 2))
    if order == "area":
        return sorted(range(len(masks)), key=lambda number: areas[number])
    lowest = [int(np.flatnonzero(mask.any(axis=1))[-1]) if mask.any() else -1 for mask in masks]
    return sorted(range(len(masks)), key=lambda number: (-lowest[number], areas[number]))


def without_overlap(masks: np.ndarray, order: Order) -> np.ndarray:
    """The masks (N, H, W) bool, every pixel left to the subject in front."""
    result = np.zeros_like(masks)
    taken = np.zeros(masks.shape[1:], dtype=bool)
    for number in in_front_first(masks, order):
        result[number] = masks[number] & ~taken
        taken |= masks[number]
    return result
