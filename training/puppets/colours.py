"""How alike colours are, and which colours a puppet has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from .identity import Colour, Puppet

ALIKE = 24.0  # CIELAB units within which two colours pass for the same; the puppets' clothes are 40 and more apart

Segment = tuple[Colour, Colour]  # from a cloth's colour to its pattern's: a blurred pattern lies between them


def lab(picture: np.ndarray) -> np.ndarray:
    """A picture (..., 3), uint8 or floats in [0, 1], in CIELAB, float32 of the same shape."""
    import cv2

    values = np.asarray(picture)
    floats = values.astype(np.float32) / 255 if values.dtype == np.uint8 else values.astype(np.float32).clip(0, 1)
    return cv2.cvtColor(np.ascontiguousarray(floats.reshape(1, -1, 3)), cv2.COLOR_RGB2LAB).reshape(values.shape)


@lru_cache(maxsize=4096)
def lab_of(colour: Colour) -> np.ndarray:
    """(3,)"""
    return lab(np.array(colour, dtype=np.uint8))


@lru_cache(maxsize=1024)
def part_colours(puppet: Puppet) -> Mapping[str, Segment]:
    """The colours of every part of a puppet that is there, by the names of `canvas.PARTS`."""
    items = {"upper": puppet.upper, "lower": puppet.lower, "shoes": puppet.shoes, "hat": puppet.hat, "bag": puppet.bag}
    found: dict[str, Segment] = {"face": (puppet.skin, puppet.skin), "skin": (puppet.skin, puppet.skin)}
    if puppet.hair_style != "bald" or puppet.beard:
        found["hair"] = (puppet.hair_rgb, puppet.hair_rgb)
    for part, item in items.items():
        if item is not None:
            two = item.pattern != "plain" or part in ("hat", "bag") or item.kind == "coat"
            found[part] = (item.rgb, item.second_rgb if two else item.rgb)
    return found


def distance(values: np.ndarray, segment: Segment) -> np.ndarray:
    """How far CIELAB colours (..., 3) are from the line between two colours, (...)."""
    start, end = lab_of(segment[0]), lab_of(segment[1])
    along = end - start
    share = ((values - start) @ along) / max(float(along @ along), 1e-6)
    return np.linalg.norm(values - start - share.clip(0, 1)[..., None] * along, axis=-1)


def nearest(values: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Distance of CIELAB colours (..., 3) to the nearest of some segments, (...)."""
    return np.min([distance(values, segment) for segment in segments], axis=0)
