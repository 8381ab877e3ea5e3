"""Hair, in the coordinates of `features`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .features import Features, Points, arc, area, disc
from .identity import HEAD_SHAPES

_LOW = {"long": -2.1, "bob": -1.05}  # how far down it hangs


def _hair(points: Points, dark_edge: bool = True) -> Features:
    return area(points, "hair", "hair", dark_edge)


@lru_cache(maxsize=2048)
def fringe(style: str, shape: str, turn: int, covered: bool) -> Features:
    """Hair above and beside a face; less of it under a hat."""
    if style == "bald":
        return ()
    if style == "mohawk":
        return () if covered else _hair([-0.3 + 0.7j, -0.26 + 1.55j, 1.8j, 0.26 + 1.55j, 0.3 + 0.7j])
    wide, tall, _ = HEAD_SHAPES[shape]
    width, height = 1.1 * wide, 1.12 * tall
    start = float(np.degrees(np.arcsin({"short": 0.15, "spiky": 0.15, "curly": 0.0}.get(style, -0.25) / height)))
    top = arc(start, 180 - start, width, height, count=15)
    if style == "spiky" and not covered:
        top = top * np.where(np.arange(15) % 2, 1.45, 1.0)
    line = arc(160, 20, 0.86 * wide, 0.42, 0.42 * turn / 8, 0.22, 8)
    return (*_hair(np.concatenate([top, line])), *(() if covered else _on_top(style, shape)))


def _on_top(style: str, shape: str) -> Features:
    wide, tall, _ = HEAD_SHAPES[shape]
    if style == "bun":
        return _hair(disc(0, 1.35 * tall, 0.45))
    if style == "curly":
        middles = arc(0, 180, 1.05 * wide, 1.05 * tall, 0, 0.1, 7)
        return tuple(
            feature for spot in middles.tolist() for feature in _hair(spot + disc(0, 0, 0.34), dark_edge=False)
        )
    return ()


@lru_cache(maxsize=1024)
def hair_behind(style: str, shape: str, turn: int) -> Features:
    """Hair behind a head that is seen from the front."""
    wide, tall, _ = HEAD_SHAPES[shape]
    if style == "afro":
        return _hair(disc(0, 0.25, 1.62, 16))
    if style in _LOW:
        low, shift = _LOW[style], -0.3 * turn / 8
        ends = [complex(-1.3 + shift, low), complex(1.3 + shift, low)]
        return _hair(np.concatenate([arc(0, 180, 1.24 * wide, 1.12 * tall), ends]))
    if style == "ponytail":
        side = -1 if turn > 0 else 1
        return _hair(_mirrored([0.6 + 0.5j, 1.5 + 0.75j, 1.9 + 0.2j, 1.7 - 0.9j, 1.4 - 1.4j, 1.15 - 0.3j], side))
    if style == "pigtails":
        tail = [0.7 + 0.35j, 1.45 + 0.55j, 1.9 - 0.2j, 1.65 - 1.3j, 1.3 - 0.5j]
        return tuple(feature for side in (-1, 1) for feature in _hair(_mirrored(tail, side)))
    return ()


def _mirrored(points: Sequence[complex], side: int) -> list[complex]:
    """Points of the viewer's right (1) or left (-1)."""
    return [complex(side * point.real, point.imag) for point in points]


@lru_cache(maxsize=256)
def back_of_hair(style: str, shape: str, covered: bool) -> Features:
    """The whole back of a head."""
    if style == "bald":
        return ()
    if style == "mohawk":
        return _hair([-0.3 - 0.6j, -0.26 + 1.55j, 1.8j, 0.26 + 1.55j, 0.3 - 0.6j])
    wide, tall, _ = HEAD_SHAPES[shape]
    found = hair_behind(style, shape, 0) if style in ("pigtails", "afro") else ()
    top = arc(-25, 205, 1.12 * wide, 1.14 * tall, count=15)
    if style == "spiky" and not covered:
        top = top * np.where(np.arange(15) % 2, 1.35, 1.0)
    half, low = (1.15, _LOW[style]) if style in _LOW else (0.75, -0.75)
    found += _hair(np.concatenate([top, [complex(-half, low), complex(half, low)]]))
    if style == "ponytail":
        found += _hair([-0.25 + 0.4j, -0.45 - 0.6j, -1.9j, 0.45 - 0.6j, 0.25 + 0.4j])
    return found if covered else found + _on_top(style, shape)
