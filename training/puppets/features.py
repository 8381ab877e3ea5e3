"""What heads are made of, in coordinates of the head: 1 is its radius, x to the viewer's right, y up; points are x + iy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .canvas import Way
from .figure import EDGE, HEAD_RADIUS


class Feature(NamedTuple):
    """A polygon or line of a head.

    Attributes:
        points: (n,) complex.
        part: a name of `canvas.PARTS`.
        colour: white, dark, lip, skin, blush, eyes, hair, hat or trimming.
        way: how it is drawn.
        line: thickness of an open line.
        dark: whether it is the dark edge of what comes after it.
    """

    points: np.ndarray
    part: str
    colour: str
    way: Way
    line: float = 0.0
    dark: bool = False


Features = tuple[Feature, ...]
Points = np.ndarray | Sequence[complex]


def area(points: Points, part: str, colour: str, dark_edge: bool = True) -> Features:
    """A polygon (n,), with its dark edge before it."""
    outline = np.asarray(points, dtype=np.complex128)
    sides = _ahead(outline) - outline
    turns = np.imag(sides.conj() * _ahead(sides))
    way = Way.CONVEX if turns.min() >= -1e-9 or turns.max() <= 1e-9 else Way.AREA
    edge = (Feature(_grown(outline, sides, EDGE / HEAD_RADIUS), part, colour, way, dark=True),) if dark_edge else ()
    return (*edge, Feature(outline, part, colour, way))


def line(points: np.ndarray, part: str, colour: str, thickness: float) -> Features:
    return (Feature(points, part, colour, Way.LINE, line=thickness),)


def arc(start: float, end: float, rx: float, ry: float, x: float = 0.0, y: float = 0.0, count: int = 12) -> np.ndarray:
    """Points (count,) of an ellipse from one angle to another, degrees against the clock from the right."""
    cosines, sines = _circle(start, end, count)
    return (x + rx * cosines) + 1j * (y + ry * sines)


@lru_cache(maxsize=256)
def _circle(start: float, end: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.radians(np.linspace(start, end, count))
    return np.cos(angles), np.sin(angles)


def disc(x: float, y: float, radius: float, count: int = 10) -> np.ndarray:
    return arc(0, 360 - 360 / count, radius, radius, x, y, count)


def box(left: float, right: float, bottom: float, top: float) -> np.ndarray:
    return np.array([complex(left, bottom), complex(right, bottom), complex(right, top), complex(left, top)])


def _ahead(values: np.ndarray) -> np.ndarray:
    """Of every point or side of a polygon the one that follows."""
    return np.concatenate([values[1:], values[:1]])


def _grown(points: np.ndarray, sides: np.ndarray, reach: float) -> np.ndarray:
    """A polygon with every side `reach` farther out; sharp corners are cut where they would stand out too far."""
    area = float(np.imag(points.conj() * _ahead(points)).sum())
    normals = sides / np.maximum(np.abs(sides), 1e-9) * (-1j if area > 0 else 1j)
    both = normals + np.concatenate([normals[-1:], normals[:-1]])
    length = np.maximum((both * both.conj()).real / 2, 0.5)  # at most twice as far at a corner
    return points + reach * both / length
