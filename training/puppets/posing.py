"""Poses for puppets from the bundled pose database, and places for them in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ...pose_db.actions import swap_sides
from ...pose_db.builder import DEFAULT_OUTPUT
from ...pose_db.database import PoseDatabase, load_database
from ...pose_db.keypoints import MIRRORED
from ...pose_db.layout import Group, Placement, group_of_people, in_box, side_by_side, stature
from ...pose_db.people import BODY
from .actions import action_words
from .dice import Dice
from .figure import CHIN, EARS, HEAD_RADIUS, NECK
from .identity import Puppet

_SPLITS = {1: ((1,),), 2: ((2,), (1, 1)), 3: ((3,), (2, 1), (1, 1, 1)), 4: ((2, 2), (3, 1), (2, 1, 1), (1, 1, 1, 1))}
BROADEST = {1: 1.6, 2: 1.0, 3: 0.75, 4: 0.65}  # breadth by height of a person's room, by how many there are in all
_FLESH = 0.05  # statures that trunk and limbs reach beyond layout's box
_TALLEST = 0.8  # of the picture's height: a person's stature, so that somebody who crouches is not enlarged too much


@dataclass(frozen=True)
class Pose:
    """The people of one entry of the database, everybody whole, in pixels of its canvas.

    Attributes:
        people: (P, 18, 3), from left to right unless the action gives them different parts.
        sizes: P statures in pixels.
        heads: P middles, x + iy; ups: P unit vectors from the neck to them.
        group: of `pose_db.layout`.
        action: what they do, see `action_words`.
    """

    people: np.ndarray
    sizes: list[float]
    heads: list[complex]
    ups: list[complex]
    group: Group
    action: str


@lru_cache(maxsize=1)
def bundled() -> PoseDatabase:
    return load_database(DEFAULT_OUTPUT)


@lru_cache(maxsize=32)
def entries(people: int, broadest: float) -> list[int]:
    """Entries with so many people, all of them whole, that are at most so broad, by height, for each of them."""
    database = bundled()
    offsets = database.person_offsets
    first, last = offsets[:-1], offsets[1:]
    whole = np.logical_and.reduceat((database.keypoints[..., 2] > 0).all(axis=1), first)
    x, y = database.keypoints[..., 0], database.keypoints[..., 1]
    breadth, height = (
        np.maximum.reduceat(values.max(axis=1), first) - np.minimum.reduceat(values.min(axis=1), first)
        for values in (x, y)
    )
    return np.flatnonzero(whole & (last - first == people) & (breadth <= people * broadest * height)).tolist()


@lru_cache(maxsize=32768)
def pose(entry: int, mirrored: bool = False) -> Pose:
    """Entry number `entry` of the bundled database."""
    database = bundled()
    people, (width, _) = database.people(entry).astype(np.float64), database.canvases[entry]
    action = action_words(database.prompts[entry], database.tags[entry])
    if mirrored:
        people = people[:, MIRRORED]
        people[..., 0] = width - people[..., 0]
        action = swap_sides(action)
    if "{0}" not in action:
        people = people[np.argsort(people[:, NECK, 0], kind="stable")]
    group = group_of_people([{BODY: person} for person in people])
    assert group is not None
    points = people[..., 0] + 1j * people[..., 1]
    heads = points[:, EARS].mean(axis=1)
    ups = heads - points[:, NECK]
    ups /= np.maximum(np.abs(ups), 1e-6)
    return Pose(people, [stature(person) for person in people], heads.tolist(), ups.tolist(), group, action)


def choose_poses(dice: Dice, people: int) -> list[Pose]:
    """Entries for a picture of `people`, from left to right, none of them too broad for its share of the picture."""
    counts = dice.pick(_SPLITS[people])
    return [pose(dice.pick(entries(count, BROADEST[people])), dice.chance(0.5)) for count in counts]


def room(pose: Pose, puppets: Sequence[Puppet]) -> np.ndarray:
    """Box (4,) around everything of the puppets in a pose, in the pose's pixels."""
    points = []
    for puppet, size, head, up in zip(puppets, pose.sizes, pose.heads, pose.ups, strict=True):
        radius = HEAD_RADIUS * size * puppet.head_size
        head += up * (radius - CHIN * size)
        beside = puppet.head_breadth * radius * (1 + 1j)
        points += [head - beside, head + beside, head + puppet.head_height * radius * up]
    left, top, right, bottom = pose.group.box.tolist()
    flesh = _FLESH * pose.group.stature
    return np.array(
        [
            min(left - flesh, *(point.real for point in points)),
            min(top - flesh, *(point.imag for point in points)),
            max(right + flesh, *(point.real for point in points)),
            max(bottom + flesh, *(point.imag for point in points)),
        ]
    )


def place(
    dice: Dice, poses: Sequence[Pose], puppets: Sequence[Puppet], width: int, height: int
) -> tuple[np.ndarray, list[float]]:
    """Everybody in a picture: large, side by side, somewhat at random.

    Returns:
        Keypoints (P, 18, 3) and P statures, both in pixels.
    """
    groups, start = [], 0
    for entry in poses:
        stop = start + len(entry.people)
        box = room(entry, puppets[start:stop])
        groups.append(replace(entry.group, box=box, soles=float(box[3])))
        start = stop
    places = _places(groups, width, height)
    shrink, offset = _jitter(dice, _box_around(groups, places), width, height)
    people, sizes = [], []
    for entry, where in zip(poses, places, strict=True):
        moved = entry.people.copy()
        moved[..., :2] = shrink * (where.scale * moved[..., :2] + where.offset) + offset
        people.append(moved)
        sizes += [shrink * where.scale * size for size in entry.sizes]
    return np.concatenate(people), sizes


def _places(groups: Sequence[Group], width: int, height: int) -> list[Placement]:
    if len(groups) > 1:
        return [where for where in side_by_side(groups, width, height) if where is not None]
    whole = in_box(groups[0], (0.0, 0.0, width, height))
    share = min(1.0, _TALLEST * height / (whole.scale * groups[0].stature))
    return [in_box(groups[0], ((1 - share) * width / 2, 0.0, share * width, share * height))]


def _box_around(groups: Sequence[Group], places: Sequence[Placement]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of everybody once they are placed."""
    corners = []
    for group, where in zip(groups, places, strict=True):
        (left, top, right, bottom), (x, y), scale = group.box.tolist(), where.offset.tolist(), where.scale
        corners += [(scale * left + x, scale * top + y), (scale * right + x, scale * bottom + y)]
    across, tall = zip(*corners, strict=True)
    return min(across), min(tall), max(across), max(tall)


def _jitter(
    dice: Dice, box: tuple[float, float, float, float], width: int, height: int
) -> tuple[float, tuple[float, float]]:
    """A little smaller, and anywhere in the room that is left: scale, and how far to the right and down."""
    shrink = dice.between(0.88, 0.98)
    left, top, right, bottom = (shrink * side for side in box)
    free = height - bottom + top  # most of it stays above: whoever lies or jumps is still near the ground
    return shrink, (dice.between(-left, width - right), height - bottom - dice.between(0, 0.4) * free)
