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
        tube = _hat([-0.85 + 0.6j, 0.85 + 0.6j, 0.95 + 2.0j, -0.95 + 2.0j])
        return tube + _hat(box(-0.87, 0.87, 0.7, 1.08), "trimming", False) + _hat(arc(0, 345, 1.5, 0.2, 0, 0.58))
    if kind == "sun hat":
        dome = _hat(arc(0, 180, 1.05, 1.0, 0, 0.5))
        return dome + _hat(box(-1.0, 1.0, 0.5, 0.88), "trimming", False) + _hat(arc(0, 345, 1.95, 0.3, 0, 0.48, 20))
    if kind == "party hat":
        return _hat([-0.75 + 0.68j, 0.75 + 0.68j, 2.3j]) + _spots(-0.3 + 0.9j, 0.3 + 1.0j, 1.45j, 2.3j)
    spikes = [0.95 + 0.55j, -0.95 + 0.55j, -1.05 + 1.75j, -0.55 + 1.15j, 1.9j, 0.55 + 1.15j, 1.05 + 1.75j]
    return _hat(spikes) + _spots(-0.5 + 0.82j, 0.82j, 0.5 + 0.82j)


def _spots(*middles: complex) -> Features:
    return tuple(feature for middle in middles for feature in _hat(middle + disc(0, 0, 0.18, 8), "trimming", False))
