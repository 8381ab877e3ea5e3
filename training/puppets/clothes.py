"""What a puppet wears, as marks on its figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .canvas import Mark, Way, edge, outlined, shaded
from .cloth import spots
from .figure import BONE, HIPS, KNEES, NECK, Figure, dot, unit
from .identity import Colour, Item, Puppet

# Rows and columns of a pattern on each part: as many as fit its length when nothing foreshortens it.
_CELLS = {
    "short_sleeve": (1, 1),
    "upper_sleeve": (2, 1),
    "lower_sleeve": (2, 1),
    "upper_trouser": (3, 1),
    "short_trouser": (2, 1),
    "lower_trouser": (3, 1),
    "trunk": (4, 2),
    "skirt": (2, 3),
    "dress": (3, 3),
    "tails": (2, 3),
}


def cloth(
    points: np.ndarray,
    corners: np.ndarray,
    part: str,
    item: Item,
    name: str,
    way: Way = Way.CONVEX,
    bone: tuple[str, int] | None = None,
) -> list[Mark]:
    """A piece of cloth (n,) with its pattern, without an edge."""
    marks = [Mark(points, part, item.rgb, way, 0.0, bone)]
    if item.pattern != "plain":
        marks.append(Mark(spots(item.pattern, corners, *_CELLS[name]), part, item.second_rgb, Way.AREAS, 0.0, bone))
    return marks


def _bare(shape: Figure, names: tuple[str, ...], side: int, part: str, colour: Colour) -> list[Mark]:
    """Bones of one colour with one dark edge around all of them."""
    marks = _edges(shape, names, side, part, colour)
    limbs = shape.limbs
    return marks + [Mark(limbs[number], part, colour, Way.CONVEX, 0.0, bone) for bone, number in _bones(names, side)]


def _clothed(shape: Figure, names: tuple[str, ...], side: int, part: str, item: Item) -> list[Mark]:
    """Bones in cloth with one dark edge around all of them."""
    marks = _edges(shape, names, side, part, item.rgb)
    for bone, number in _bones(names, side):
        marks += cloth(shape.limbs[number], shape.corners[number], part, item, bone[0], bone=bone)
    return marks


def _edges(shape: Figure, names: tuple[str, ...], side: int, part: str, colour: Colour) -> list[Mark]:
    dark, edges = shaded(colour), shape.edges
    return [Mark(edges[number], part, dark, Way.CONVEX, 0.0, bone) for bone, number in _bones(names, side)]


@lru_cache(maxsize=64)
def _bones(names: tuple[str, ...], side: int) -> list[tuple[tuple[str, int], int]]:
    """Some bones of a side, with their numbers."""
    return [((name, side), BONE[name, side]) for name in names]


def arm(puppet: Puppet, shape: Figure, side: int) -> list[Mark]:
    if puppet.upper.kind in ("shirt", "coat"):
        skin, sleeves = ("hand",), ("lower_sleeve", "upper_sleeve")
    else:
        skin, sleeves = ("hand", "forearm", "upper_arm"), ("short_sleeve",)
    return _bare(shape, skin, side, "skin", puppet.skin) + _clothed(shape, sleeves, side, "upper", puppet.upper)


def legs(puppet: Puppet, shape: Figure) -> list[Mark]:
    """Both legs with shoes, and skirt or seat of the trousers."""
    joints = shape.joints
    knees, hips = [joints[knee] for knee in KNEES], [joints[hip] for hip in HIPS]
    order = sorted((0, 1), key=lambda side: (not shape.hidden_leg[side], knees[side].imag))
    marks = [mark for side in order for mark in _leg(puppet, shape, side)]
    lower = puppet.lower
    if lower is not None and lower.kind == "skirt":
        marks += _skirt(shape, lower, "lower", 0.62, "skirt")
    elif lower is not None:
        middles = [*hips, *(hip + 0.18 * (knee - hip) for hip, knee in zip(hips, knees, strict=True))]
        seat = _around(middles, 0.066 * puppet.girth * shape.size)
        marks.append(Mark(seat, "lower", lower.rgb, Way.CONVEX))
    return marks


def _leg(puppet: Puppet, shape: Figure, side: int) -> list[Mark]:
    lower = puppet.lower
    kind = lower.kind if lower else "dress"
    marks = [] if kind == "trousers" else _bare(shape, ("shank", "thigh"), side, "skin", puppet.skin)
    if lower is not None and kind != "skirt":
        marks += _clothed(shape, _TROUSERS[kind], side, "lower", lower)
    return marks + _bare(shape, ("foot",), side, "shoes", puppet.shoes.rgb)


_TROUSERS = {"trousers": ("lower_trouser", "upper_trouser"), "shorts": ("short_trouser",)}
_TURNS = np.arange(8) * np.pi / 4
_RING = np.cos(_TURNS) + 1j * np.sin(_TURNS)


def _around(middles: Sequence[complex], radius: float) -> np.ndarray:
    """Convex outline (n,) around circles with these middles."""
    return _hull((np.array(middles)[:, None] + radius * _RING).ravel())


def _hull(points: np.ndarray) -> np.ndarray:
    """Convex outline of points (n,)."""
    import cv2

    outline = cv2.convexHull(points.view(np.float64).reshape(-1, 2).astype(np.float32))
    return outline.astype(np.float64).ravel().view(np.complex128)


def _skirt(shape: Figure, item: Item, part: str, length: float, name: str) -> list[Mark]:
    """Cloth around both thighs, wider at its hem."""
    right, left = (
        shape.joints[hip] + length * (shape.joints[knee] - shape.joints[hip])
        for hip, knee in zip(HIPS, KNEES, strict=True)
    )
    _, _, third, fourth = shape.trunk
    across = unit(fourth - third)
    if dot(left - right, across) < 0:
        right, left = left, right
    flare = across * max(0.085, 0.13 - 0.2 * abs(left - right) / shape.size) * shape.size
    corners = np.array([third, fourth, right - flare, left + flare])
    outline = _hull(corners)
    return [edge(outline, part, item.rgb, shape.size), *cloth(outline, corners, part, item, name)]


def neck(puppet: Puppet, shape: Figure) -> list[Mark]:
    line = np.array([shape.joints[NECK], shape.head])
    return [Mark(line, "skin", puppet.skin, Way.LINE, 0.07 * shape.size * puppet.girth)]


def trunk(puppet: Puppet, shape: Figure) -> list[Mark]:
    upper = puppet.upper
    marks: list[Mark] = []
    if upper.kind == "dress":
        marks += _skirt(shape, upper, "upper", 0.85, "dress")
    if upper.kind == "coat":
        marks += _skirt(shape, upper, "upper", 0.5, "tails")
    first, second, third, fourth = shape.trunk
    down = (third + fourth - first - second) / 2
    hem = 0.08 * down if upper.kind in ("t-shirt", "shirt") else 0j
    corners = np.array([first, second, third + hem, fourth + hem])
    collar = (first + second) / 2 - 0.07 * down
    sides = [first, first + 0.12 * down, third + hem, fourth + hem, second + 0.12 * down, second]
    outline = np.array([collar + 0.4 * (first - collar), *sides, collar + 0.4 * (second - collar)])
    marks += [
        edge(outline, "upper", upper.rgb, shape.size),
        *cloth(outline, corners, "upper", upper, "trunk", Way.AREA),
    ]
    if upper.kind == "coat" and not shape.back:
        marks += _buttons(shape, upper)
    return marks


def _buttons(shape: Figure, coat: Item) -> list[Mark]:
    first, second, third, fourth = shape.trunk
    shift = (second - first) * 0.3 * shape.yaw
    shift = shift if dot(second - first, shape.right) >= 0 else -shift
    top, bottom = (first + second) / 2 + shift, (third + fourth) / 2 + shift
    marks = [Mark(np.array([top, bottom]), "upper", coat.second_rgb, Way.LINE, 0.03 * shape.size)]
    for share in (0.25, 0.55, 0.85):
        button = top + share * (bottom - top) + 0.022 * shape.size * _RING
        marks += outlined(button, "upper", coat.second_rgb, shape.size)
    return marks
