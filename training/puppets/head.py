"""Heads: skull and face, and the whole head with hair and hat as marks in a picture."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .canvas import Mark, shaded
from .features import Feature, Features, arc, area, disc, line
from .figure import Figure
from .hair import back_of_hair, fringe, hair_behind
from .hats import hat
from .identity import HEAD_SHAPES, Colour, Puppet

_BLUSH = (246, 130, 120)
# Colours that are the same on every head; the others are the puppet's.
_FIXED: dict[str, Colour] = {"white": (255, 255, 255), "dark": (34, 30, 34), "lip": (170, 40, 50)}


@lru_cache(maxsize=128)
def skull(shape: str, turn: int) -> Features:
    """Head and ears; `turn` is how many eighths the face looks to the right, 9 for the back of a head."""
    width, height, roundness = HEAD_SHAPES[shape]
    circle = arc(0, 345, 1, 1, count=24)
    across, tall = (np.sign(axis) * np.abs(axis) ** (2 / roundness) for axis in (np.real(circle), np.imag(circle)))
    outline = width * across + 1j * height * tall
    sides = [side for side in (-1, 1) if turn == 9 or side * turn < 4]
    ears = [feature for side in sides for feature in area(disc(side * 0.98 * width, -0.05, 0.2), "face", "skin")]
    return (*ears, *area(outline, "face", "skin"))


def face(shape: str, turn: int, tilt: int, mouth: str, glasses: bool, beard: bool) -> Features:
    """Eyes, cheeks, mouth, glasses and beard; `tilt` is how many eighths the face looks up."""
    return (_beard(shape, turn) if beard else ()) + _eyes(shape, turn, tilt, glasses) + _mouth(mouth, turn, tilt)


def _looking_at(turn: int, tilt: int) -> tuple[float, float]:
    """How far a face's middle is from its head's, x and y."""
    return 0.42 * turn / 8, 0.2 * tilt / 8


@lru_cache(maxsize=4096)
def _eyes(shape: str, turn: int, tilt: int, glasses: bool) -> Features:
    """Both eyes with their cheeks and glasses."""
    x, y = _looking_at(turn, tilt)
    found: list[Feature] = []
    for side in (-1, 1):
        eye = x + 0.38 * side * (1 - 0.35 * abs(turn / 8))
        if abs(eye) > 0.8 * HEAD_SHAPES[shape][0]:
            continue
        found += area(disc(eye, y + 0.08, 0.26), "face", "white", dark_edge=False)
        found += area(disc(eye + 0.06 * turn / 8, y + 0.06, 0.15, 8), "face", "eyes", dark_edge=False)
        found += area(disc(1.35 * eye, y - 0.3, 0.15, 8), "face", "blush", dark_edge=False)
        if glasses:
            ring = disc(eye, y + 0.08, 0.32)
            found += line(np.concatenate([ring, ring[:1]]), "face", "dark", 0.1)
    return tuple(found)


@lru_cache(maxsize=1024)
def _mouth(mouth: str, turn: int, tilt: int) -> Features:
    x, y = _looking_at(turn, tilt)
    if mouth == "open":
        return area(arc(180, 360, 0.25, 0.28, 1.25 * x, y - 0.46 + 0.1, 8), "face", "lip", dark_edge=False)
    bend = 0.17 if mouth == "smile" else 0.02
    return line(arc(200, 340, 0.28, bend, 1.25 * x, y - 0.46 + 0.04, 6), "face", "lip", 0.12)


@lru_cache(maxsize=128)
def _beard(shape: str, turn: int) -> Features:
    width, height, _ = HEAD_SHAPES[shape]
    x, _ = _looking_at(turn, 0)
    low = arc(200, 340, 1.02 * width, 1.1 * height, 0.1 * x, 0)
    high = arc(340, 200, 0.8 * width, 0.55, x, -0.08)
    return area(np.concatenate([low, high]), "hair", "hair", dark_edge=False)


def head_marks(puppet: Puppet, figure: Figure) -> tuple[list[Mark], list[Mark]]:
    """What is behind the trunk, and the head itself."""
    turn, tilt = round(8 * figure.yaw), round(8 * figure.pitch)
    shape, style, covered = puppet.head, puppet.hair_style, puppet.hat is not None
    if figure.back:
        behind, front = (), skull(shape, 9) + back_of_hair(style, shape, covered)
    else:
        behind = hair_behind(style, shape, turn)
        front = skull(shape, turn) + face(shape, turn, tilt, puppet.mouth, puppet.glasses, puppet.beard)
        front += fringe(style, shape, turn, covered)
    if puppet.hat is not None:
        front += hat(puppet.hat.kind, shape, 9 if figure.back else turn)
    marks = _placed(behind + front, puppet, figure)
    return marks[: len(behind)], marks[len(behind) :]


def _placed(features: Features, puppet: Puppet, figure: Figure) -> list[Mark]:
    """Features of a head as marks in the picture."""
    # y points up in the head and down in the picture.
    points = (
        figure.head + figure.radius * figure.right * np.concatenate([feature.points for feature in features]).conj()
    )
    colours = _FIXED | {"skin": puppet.skin, "hair": puppet.hair_rgb, "eyes": puppet.eyes, "blush": _blush(puppet.skin)}
    if puppet.hat is not None:
        colours |= {"hat": puppet.hat.rgb, "trimming": puppet.hat.second_rgb}
    marks, start = [], 0
    for own, part, name, way, thickness, dark in features:
        stop = start + own.size
        colour = shaded(colours[name]) if dark else colours[name]
        marks.append(Mark(points[start:stop], part, colour, way, thickness * figure.radius))
        start = stop
    return marks


@lru_cache(maxsize=16)
def _blush(skin: Colour) -> Colour:
    red, green, blue = ((one + other) // 2 for one, other in zip(skin, _BLUSH, strict=True))
    return red, green, blue
