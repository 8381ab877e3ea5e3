"""Places for puppets: quiet colours and large shapes, so that nobody gets lost in them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .canvas import FRACTION
from .dice import Dice
from .identity import Colour

# Pale versions of the puppets' colours, and the words for them.
PALE: dict[str, Colour] = {
    "pink": (252, 214, 222),
    "yellow": (252, 240, 196),
    "green": (208, 234, 206),
    "blue": (200, 224, 246),
    "grey": (216, 218, 222),
    "purple": (224, 212, 240),
}
_SKY, _NIGHT = ((150, 202, 244), (222, 240, 252)), ((24, 30, 74), (70, 76, 130))
VARIANTS = 512  # of backgrounds; enough to be always another, few enough to keep the recent ones in memory


def background(variant: int, width: int, height: int) -> tuple[np.ndarray, str]:
    """A background (height, width, 3) uint8 of one's own, and the words for it, such as "on a beach"."""
    picture, words = _background(variant % VARIANTS, width, height)
    return picture.copy(), words


@lru_cache(maxsize=VARIANTS)
def _background(variant: int, width: int, height: int) -> tuple[np.ndarray, str]:
    dice = Dice("background", variant)
    return dice.pick(tuple(_PLACES))(dice, width, height)


def plain(colour: Colour, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def _gradient(top: Colour, bottom: Colour, width: int, height: int) -> np.ndarray:
    share = np.linspace(0, 1, height)[:, None, None]
    rows = np.rint((1 - share) * np.array(top) + share * np.array(bottom)).astype(np.uint8)
    return np.repeat(rows, width, axis=1)


def _polygon(picture: np.ndarray, points: list[tuple[float, float]], colour: Colour) -> None:
    """Points in shares of the picture."""
    import cv2

    height, width = picture.shape[:2]
    pixels = np.rint(np.array(points) * (width, height) * (1 << FRACTION)).astype(np.int32)
    cv2.fillPoly(picture, [pixels], colour, cv2.LINE_AA, FRACTION)


def _disc(picture: np.ndarray, x: float, y: float, radius: float, colour: Colour) -> None:
    angles = np.arange(32) * np.pi / 16
    height, width = picture.shape[:2]
    reach = radius * min(width, height) / np.array([width, height])
    points = np.array([x, y]) + reach * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    _polygon(picture, [(float(one), float(other)) for one, other in points], colour)


def _wall(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    name = dice.pick(tuple(PALE))
    return plain(PALE[name], width, height), f"on plain {name}"


def _fade(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    first, second = dice.shuffled(tuple(PALE))[:2]
    return _gradient(PALE[first], PALE[second], width, height), f"on {first} and {second}"


def _park(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    picture = _gradient(*_SKY, width, height)
    ground = dice.between(0.55, 0.75)
    for _ in range(2):
        x = dice.between(0.05, 0.95)
        _polygon(
            picture,
            [(x - 0.02, ground), (x - 0.02, ground - 0.25), (x + 0.02, ground - 0.25), (x + 0.02, ground)],
            (150, 116, 86),
        )
        _disc(picture, x, ground - 0.32, dice.between(0.12, 0.18), (128, 186, 120))
    _polygon(picture, [(0, ground), (1, ground), (1, 1), (0, 1)], (166, 212, 128))
    return picture, "in a park"


def _beach(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    picture = _gradient(*_SKY, width, height)
    sea = dice.between(0.4, 0.55)
    sand = sea + dice.between(0.12, 0.2)
    _disc(picture, dice.between(0.1, 0.9), dice.between(0.1, 0.25), 0.09, (255, 236, 140))
    _polygon(picture, [(0, sea), (1, sea), (1, 1), (0, 1)], (104, 172, 214))
    _polygon(picture, [(0, sand), (1, sand + dice.between(-0.05, 0.05)), (1, 1), (0, 1)], (242, 222, 170))
    return picture, "on a beach"


def _street(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    picture = _gradient(*_SKY, width, height)
    ground, left = dice.between(0.66, 0.8), 0.0
    walls = ((232, 190, 170), (238, 218, 178), (196, 210, 220), (218, 196, 214))
    while left < 1:
        right, top = left + dice.between(0.22, 0.4), dice.between(0.12, 0.4)
        _polygon(picture, [(left, ground), (left, top), (right, top), (right, ground)], dice.pick(walls))
        for row in (0.12, 0.32):
            for share in (0.25, 0.65):
                x, y = left + share * (right - left), top + row
                _polygon(picture, [(x, y), (x + 0.06, y), (x + 0.06, y + 0.1), (x, y + 0.1)], (150, 172, 190))
        left = right
    _polygon(picture, [(0, ground), (1, ground), (1, 1), (0, 1)], (190, 190, 194))
    return picture, "on a street"


def _room(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    picture = plain(PALE[dice.pick(tuple(PALE))], width, height)
    floor, x = dice.between(0.68, 0.8), dice.between(0.08, 0.62)
    _polygon(picture, [(x, 0.1), (x + 0.3, 0.1), (x + 0.3, 0.42), (x, 0.42)], (250, 250, 250))
    for column in (0.015, 0.16):
        left = x + column
        _polygon(picture, [(left, 0.12), (left + 0.125, 0.12), (left + 0.125, 0.4), (left, 0.4)], (176, 214, 240))
    _polygon(
        picture,
        [(0, floor), (1, floor), (1, 1), (0, 1)],
        dice.pick(((206, 168, 128), (190, 176, 160), (214, 190, 160))),
    )
    _polygon(picture, [(0, floor - 0.02), (1, floor - 0.02), (1, floor), (0, floor)], (248, 246, 240))
    return picture, "in a room"


def _tiles(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    first, second = PALE[dice.pick(tuple(PALE))], (238, 240, 242)
    count = dice.pick((5, 6, 8))
    side = max(width, height) / count
    rows, columns = np.arange(height) // side, np.arange(width) // side
    odd = (rows[:, None] + columns[None, :]) % 2 == 1
    return np.where(odd[..., None], np.array(first, np.uint8), np.array(second, np.uint8)), "before tiles"


def _striped(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    first, second = PALE[dice.pick(tuple(PALE))], (246, 244, 238)
    side = max(width, height) / dice.pick((7, 9, 12))
    odd = (np.arange(width) // side) % 2 == 1
    return np.repeat(
        np.where(odd[None, :, None], np.array(first, np.uint8), np.array(second, np.uint8)), height, axis=0
    ), "before striped wallpaper"


def _stage(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    picture = plain((236, 200, 190), width, height)
    for fold in range(10):
        x = fold / 10
        _polygon(picture, [(x, 0), (x + 0.05, 0), (x + 0.05, 0.8), (x, 0.8)], (206, 150, 148))
    _polygon(picture, [(0, 0.76), (1, 0.76), (1, 1), (0, 1)], (200, 160, 116))
    return picture, "on a stage"


def _snow(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    picture = _gradient((172, 196, 220), (226, 234, 242), width, height)
    ground, peak = dice.between(0.55, 0.7), dice.between(0.2, 0.8)
    _polygon(picture, [(peak - 0.45, ground), (peak, 0.15), (peak + 0.45, ground)], (150, 168, 196))
    _polygon(picture, [(peak - 0.14, 0.3), (peak, 0.15), (peak + 0.14, 0.3), (peak, 0.34)], (248, 250, 252))
    _polygon(picture, [(0, ground), (1, ground), (1, 1), (0, 1)], (244, 247, 251))
    return picture, "in the snow"


def _at_night(dice: Dice, width: int, height: int) -> tuple[np.ndarray, str]:
    picture = _gradient(*_NIGHT, width, height)
    _disc(picture, dice.between(0.1, 0.9), 0.16, 0.08, (250, 244, 210))
    for _ in range(8):
        _disc(picture, dice.between(0, 1), dice.between(0, 0.5), 0.01, (250, 250, 230))
    ground = dice.between(0.66, 0.8)
    _polygon(picture, [(0, ground), (1, ground), (1, 1), (0, 1)], (74, 104, 96))
    return picture, "at night"


_PLACES: tuple[Callable[[Dice, int, int], tuple[np.ndarray, str]], ...] = (
    *(_wall, _fade, _park, _beach, _street, _room),
    *(_tiles, _striped, _stage, _snow, _at_night),
)
