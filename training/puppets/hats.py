"""Hats, in the coordinates of `features`."""

from __future__ import annotations

from functools import lru_cache

from .features import Features, Points, arc, area, box, disc
from .identity import HEAD_SHAPES


def _hat(points: Points, colour: str = "hat", dark_edge: bool = True) -> Features:
    return area(points, "hat", colour, dark_edge)


@lru_cache(maxsize=1024)
def hat(kind: str, shape: str, turn: int) -> Features:
    """A hat; `turn` is how many eighths the face looks to the right, 9 for the back of a head."""
    wide = HEAD_SHAPES[shape][0]
    if kind == "cap":
        brim = () if turn == 9 else _hat(arc(0, 345, 1.0, 0.22, 0.75 * turn / 8, 0.42), "trimming")
        return _hat(arc(0, 180, 1.2 * wide, 1.05, 0, 0.42)) + brim
    if kind == "beanie":
        band = _hat(box(-1.25 * wide, 1.25 * wide, 0.28, 0.66), "trimming")
        return _hat(arc(0, 180, 1.2 * wide, 1.1, 0, 0.5)) + band + _hat(disc(0, 1.75, 0.36), "trimming")
    if kind == "top hat":
        tube = _hat([(-0.85, 0.6), (0.85, 0.6), (0.95, 2.0), (-0.95, 2.0)])
        return tube + _hat(box(-0.87, 0.87, 0.7, 1.08), "trimming", False) + _hat(arc(0, 345, 1.5, 0.2, 0, 0.58))
    if kind == "sun hat":
        dome = _hat(arc(0, 180, 1.05, 1.0, 0, 0.5))
        return dome + _hat(box(-1.0, 1.0, 0.5, 0.88), "trimming", False) + _hat(arc(0, 345, 1.95, 0.3, 0, 0.48, 20))
    if kind == "party hat":
        return _hat([(-0.75, 0.68), (0.75, 0.68), (0.0, 2.3)]) + _spots(
            (-0.3, 0.9), (0.3, 1.0), (0.0, 1.45), (0.0, 2.3)
        )
    spikes = [(0.95, 0.55), (-0.95, 0.55), (-1.05, 1.75), (-0.55, 1.15), (0.0, 1.9), (0.55, 1.15), (1.05, 1.75)]
    return _hat(spikes) + _spots((-0.5, 0.82), (0.0, 0.82), (0.5, 0.82))


def _spots(*middles: tuple[float, float]) -> Features:
    return tuple(feature for x, y in middles for feature in _hat(disc(x, y, 0.18, 8), "trimming", False))
