"""Reference pictures: one puppet, or one of its things, alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ...pose_db.layout import in_box
from .backgrounds import PALE, plain
from .canvas import Canvas, Mark
from .dice import Dice
from .drawing import puppet_marks
from .figure import EYES, NOSE
from .identity import Colour, Item, Puppet
from .posing import Pose, entries, pose, room

WHITE: Colour = (255, 255, 255)
VARIANTS = 64  # of reference pictures of one puppet
ITEM_PARTS: Mapping[str, tuple[str, ...]] = {
    "face": ("face", "hair"),
    "upper garment": ("upper",),
    "dress": ("upper",),
    "lower garment": ("lower",),
    "shoes": ("shoes",),
    "hat": ("hat",),
    "bag": ("bag",),
}
_FACE = [NOSE, *EYES]
_MARGIN = 0.06  # of an item's side, around it
# Somebody who stands and looks at us: x and y in statures from the point between the feet.
_STAND = (
    *((0.0, -0.93), (0.0, -0.82)),
    *((-0.12, -0.81), (-0.2, -0.65), (-0.25, -0.51), (0.12, -0.81), (0.2, -0.65), (0.25, -0.51)),
    *((-0.06, -0.53), (-0.08, -0.285), (-0.09, -0.05), (0.06, -0.53), (0.08, -0.285), (0.09, -0.05)),
    *((-0.02, -0.955), (0.02, -0.955), (-0.045, -0.945), (0.045, -0.945)),
)


def neutral(width: int, height: int) -> np.ndarray:
    """Keypoints (18, 3) of somebody who stands and looks at us, with room for any hat."""
    size = min(height / 1.32, width / 0.8)
    points = np.array(_STAND) * size + (width / 2, height - 0.04 * size)
    return np.concatenate([points, np.ones((18, 1))], axis=1)


def draw_reference(puppet: Puppet, size: int, variant: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The whole puppet on a plain ground: (size, size, 3) uint8 and its mask (size, size) bool.

    Args:
        variant: 0 for a neutral stand on white; any other number for another pose and ground.
    """
    if variant == 0:
        colour, body, stature = WHITE, neutral(size, size), None
    else:
        dice = Dice("reference", variant)
        colour, entry = dice.pick((WHITE, *PALE.values())), _front_pose(variant)
        side = 0.96 * size
        where = in_box(replace(entry.group, box=room(entry, [puppet])), (0.02 * size, 0.02 * size, side, side))
        body = entry.people[0].copy()
        body[:, :2] = where.scale * body[:, :2] + where.offset
        stature = float(where.scale) * entry.sizes[0]
    canvas = Canvas(_ground(colour, size))
    canvas.draw(puppet_marks(puppet, body, stature))
    return canvas.picture(), canvas.labels() > 0


@lru_cache(maxsize=16)
def _ground(colour: Colour, size: int) -> np.ndarray:
    """A plain ground that a canvas draws upon and leaves as it is."""
    return plain(colour, size, size)


@lru_cache(maxsize=1024)
def _front_pose(variant: int) -> Pose:
    """Somebody upright whose face and limbs are all seen."""
    dice = Dice("reference pose", variant)
    choice = entries(1, 0.6)
    while True:
        entry = pose(dice.pick(choice), dice.chance(0.5))
        if (entry.people[0, :, 2] >= 0.4).all():
            return entry


def draw_item(puppet: Puppet, category: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One thing of a puppet alone on white, as large as fits: (size, size, 3) uint8 and its mask (size, size) bool.

    Raises:
        ValueError: the puppet has no such thing; one sentence.
    """
    if category not in categories(puppet):
        raise ValueError(f"puppet {puppet.seed} has no {category}; choose one of {', '.join(categories(puppet))}")
    shown = replace(puppet, hat=None) if category == "face" else puppet
    marks = _standing(shown, size, category == "bag")  # a backpack is seen from behind
    own = [mark for mark in marks if mark.part in ITEM_PARTS[category]]
    canvas = Canvas(_ground(WHITE, size))
    canvas.draw(_enlarged(own, size))
    return canvas.picture(), canvas.labels() > 0


@lru_cache(maxsize=16)
def _standing(puppet: Puppet, size: int, from_behind: bool) -> tuple[Mark, ...]:
    """A puppet that stands, kept while its things are drawn one after the other."""
    body = neutral(size, size)
    if from_behind:
        body[_FACE, 2] = 0.0
    return tuple(puppet_marks(puppet, body))


def _enlarged(marks: Sequence[Mark], size: int) -> list[Mark]:
    """Marks that fill a square of side `size` but for a margin."""
    points = np.concatenate([mark.points for mark in marks], axis=None)
    low = complex(np.real(points).min(), np.imag(points).min())
    high = complex(np.real(points).max(), np.imag(points).max())
    scale = (1 - 2 * _MARGIN) * size / max((high - low).real, (high - low).imag)
    offset = (1 + 1j) * size / 2 - scale * (low + high) / 2
    return [mark._replace(points=scale * mark.points + offset, thickness=scale * mark.thickness) for mark in marks]


def categories(puppet: Puppet) -> dict[str, Item | None]:
    """A puppet's things by category; a face is no item."""
    found: dict[str, Item | None] = {"face": None}
    found["dress" if puppet.upper.kind == "dress" else "upper garment"] = puppet.upper
    found |= {} if puppet.lower is None else {"lower garment": puppet.lower}
    found["shoes"] = puppet.shoes
    found |= {} if puppet.hat is None else {"hat": puppet.hat}
    found |= {} if puppet.bag is None else {"bag": puppet.bag}
    return found
