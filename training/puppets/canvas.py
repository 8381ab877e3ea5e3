"""A picture being drawn together with the truth about it: whose part every pixel shows.

Everything is drawn once, as numbers of inks, at twice the picture's size. An ink is a colour of a part of a puppet, so
the same drawing gives the picture (inks looked up and averaged) and the labels (one pixel of four).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .figure import EDGE
from .identity import Colour

FINER = 2  # drawn pixels for one of the picture, on a side
FRACTION = 4  # bits after the point in OpenCV's coordinates
PERSON_STEP = 16  # labels: this times the puppet's number from 1, plus the part
PARTS = ("nothing", "face", "hair", "skin", "upper", "lower", "shoes", "hat", "bag")
PART = {name: number for number, name in enumerate(PARTS)}
_SHADE = 0.5  # of a colour, for its edge
_MAX_INKS = 255


class Way(Enum):
    """How a mark's points are drawn."""

    CONVEX = 0  # a filled polygon without dents
    AREA = 1  # any filled polygon
    AREAS = 2  # several filled polygons that do not overlap
    RING = 3  # a closed line
    LINE = 4  # an open line


class Mark(NamedTuple):
    """One thing to draw.

    Attributes:
        points: (n,) complex, for `Way.AREAS` (polygons, n), in pixels of the picture.
        part: a name of `PARTS`.
        thickness: of lines, pixels of the picture.
        bone: name and side of the bone it is drawn on, see `Figure.limbs`; None for all else.
    """

    points: np.ndarray
    part: str
    colour: Colour
    way: Way = Way.AREA
    thickness: float = 0.0
    bone: tuple[str, int] | None = None


@lru_cache(maxsize=256)
def shaded(colour: Colour) -> Colour:
    """A colour's dark edge."""
    red, green, blue = colour
    return int(red * _SHADE), int(green * _SHADE), int(blue * _SHADE)


def outlined(points: np.ndarray, part: str, colour: Colour, size: float, way: Way = Way.CONVEX) -> list[Mark]:
    """A polygon (n,) with a dark edge, for a puppet of stature `size`."""
    return [edge(points, part, colour, size), Mark(points, part, colour, way)]


def edge(points: np.ndarray, part: str, colour: Colour, size: float) -> Mark:
    """The dark edge of a polygon, whose inner half what is drawn over it covers."""
    return Mark(points, part, shaded(colour), Way.RING, 2 * EDGE * size)


class Canvas:
    """Takes marks from far to near.

    Args:
        background: (H, W, 3) uint8 RGB.
    """

    def __init__(self, background: np.ndarray) -> None:
        self._background = background
        height, width = background.shape[:2]
        self._inks = np.zeros((FINER * height, FINER * width), dtype=np.uint8)
        self._numbers: dict[tuple[int, str, Colour], int] = {}

    def draw(self, marks: Sequence[Mark], person: int = 1) -> None:
        """Draw marks of puppet number `person`, counted from 1."""
        from cv2 import LINE_8, fillConvexPoly, fillPoly, polylines

        inks, numbers, points, start = self._inks, self._numbers, _fixed(marks), 0
        for mark in marks:
            own_points, part, colour, way, thickness, _ = mark
            stop = start + own_points.size
            own, start = points[start:stop], stop
            ink = numbers.setdefault((person, part, colour), len(numbers) + 1)
            if way is Way.CONVEX:
                fillConvexPoly(inks, own, ink, LINE_8, FRACTION)
            elif way is Way.AREA:
                fillPoly(inks, [own], ink, LINE_8, FRACTION)
            elif way is Way.AREAS:
                fillPoly(inks, list(own.reshape(*own_points.shape, 2)), ink, LINE_8, FRACTION)
            else:
                wide = max(1, round(FINER * thickness))
                polylines(inks, [own], way is Way.RING, ink, wide, LINE_8, FRACTION)
        if len(numbers) > _MAX_INKS:
            raise ValueError(f"more than {_MAX_INKS} colours in one picture of puppets; draw fewer puppets")

    def labels(self) -> np.ndarray:
        """(H, W) uint8: 0 for the background, else `PERSON_STEP` * puppet + part."""
        import cv2

        table = np.zeros(_MAX_INKS + 1, dtype=np.uint8)
        table[1 : len(self._numbers) + 1] = [PERSON_STEP * person + PART[part] for person, part, _ in self._numbers]
        return cv2.LUT(self._inks[::FINER, ::FINER], table)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        import cv2

        picture = self._background.copy()
        left, top, width, height = cv2.boundingRect(self._inks)
        if width == 0:
            return picture
        left, top = left // FINER, top // FINER
        right, bottom = -(-(FINER * left + width + 1) // FINER), -(-(FINER * top + height + 1) // FINER)
        drawn = self._inks[FINER * top : FINER * bottom, FINER * left : FINER * right]
        room = picture[top:bottom, left:right]
        # Four channels, so that a pixel is one number: OpenCV's `applyColorMap` would wake all its threads for these few.
        table = np.zeros((len(self._numbers) + 1, 4), dtype=np.uint8)
        table[1:, :3] = [colour for _, _, colour in self._numbers]
        coloured = table.view(np.uint32).take(drawn).view(np.uint8).reshape(*drawn.shape, 4)
        fine = cv2.resize(cv2.cvtColor(room, cv2.COLOR_RGB2RGBA), drawn.shape[::-1], interpolation=cv2.INTER_NEAREST)
        cv2.copyTo(coloured, drawn, fine)
        small = cv2.resize(fine, room.shape[1::-1], interpolation=cv2.INTER_AREA)
        cv2.cvtColor(small, cv2.COLOR_RGBA2RGB, room)
        return picture


def _fixed(marks: Sequence[Mark]) -> np.ndarray:
    """All marks' points, one after the other, as OpenCV's fixed-point numbers (n, 2) int32."""
    points = np.concatenate([mark[0] for mark in marks], axis=None)
    scale = FINER << FRACTION
    # The middle of a pixel is a whole number in both sizes.
    return np.rint(points.view(np.float64).reshape(-1, 2) * scale + (scale - (1 << FRACTION)) / 2).astype(np.int32)
