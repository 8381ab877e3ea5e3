"""What heads are made of, in coordinates of the head: 1 is its radius, x to the viewer's right, y up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .canvas import Way
from .figure import EDGE, HEAD_RADIUS


class Feature(NamedTuple):
    """A polygon or line of a head.

    Attributes:
        points: (n, 2).
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
Points = np.ndarray | Sequence[tuple[float, float]]


def area(points: Points, part: str, colour: str, dark_edge: bool = True) -> Features:
    """A polygon (n, 2), with its dark edge before it."""
    outline = np.asarray(points, dtype=np.float64)
    way = Way.CONVEX if _is_convex(outline) else Way.AREA
    edge = (Feature(_grown(outline, EDGE / HEAD_RADIUS), part, colour, way, dark=True),) if dark_edge else ()
    return (*edge, Feature(outline, part, colour, way))


def line(points: np.ndarray, part: str, colour: str, thickness: float) -> Features:
    return (Feature(points, part, colour, Way.LINE, line=thickness),)


def arc(start: float, end: float, rx: float, ry: float, x: float = 0.0, y: float = 0.0, count: int = 12) -> np.ndarray:
    """Points (count, 2) of an ellipse from one angle to another, degrees against the clock from the right."""
    angles = np.radians(np.linspace(start, end, count))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=-1)


def disc(x: float, y: float, radius: float, count: int = 10) -> np.ndarray:
    return arc(0, 360 - 360 / count, radius, radius, x, y, count)


def box(left: float, right: float, bottom: float, top: float) -> np.ndarray:
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)])


def _turns(points: np.ndarray) -> np.ndarray:
    """Twice the signed area at every corner, (n,)."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]


def _is_convex(points: np.ndarray) -> bool:
    turns = _turns(points)
    return bool((turns >= -1e-9).all() or (turns <= 1e-9).all())


def _grown(points: np.ndarray, reach: float) -> np.ndarray:
    """A polygon with every side `reach` farther out; sharp corners are cut where they would stand out too far."""
    following = np.roll(points, -1, axis=0)
    area = float((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())
    sides = following - points
    sides = sides / np.maximum(np.linalg.norm(sides, axis=1, keepdims=True), 1e-9)
    normals = np.stack([sides[:, 1], -sides[:, 0]], axis=-1) * (1 if area > 0 else -1)
    both = normals + np.roll(normals, 1, axis=0)
    length = np.maximum((both**2).sum(axis=1, keepdims=True) / 2, 0.5)  # at most twice as far at a corner
    return points + reach * both / length
