"""Gives every subject of a cast its place on a canvas: in boxes, or side by side.

A placement is one scale and one offset for all people of a subject: nobody is stretched, people in touch stay in touch.

Body proportions: Drillis and Contini, "Body Segment Parameters", 1966, as fractions of stature in Winter, "Biomechanics
and Motor Control of Human Movement", fig. 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .keypoints import KEYPOINT_INDEX, KEYPOINTS, PoseFrame
from .people import BODY, Person, moved, read_people, shown

MARGIN = 0.04  # of the canvas' shorter side, left free around automatic placements
GAP = 0.06  # statures between neighbours, at least
FOREGROUND = (
    1 / 3
)  # of the height that stays free, below the ground line: people in a row stand a little below the middle
EMPTY_ROOM = (0.4, 1.0)  # statures: width and height kept free for a subject whose pose has nobody in it

# What reaches beyond a keypoint, in statures: crown above eyes and nose, hand beyond wrist, sole below ankle; elsewhere
# a guess at the flesh.
_REACH = np.full(len(KEYPOINTS), 0.03)
_REACH[[KEYPOINT_INDEX[name] for name in ("right_eye", "left_eye", "right_ear", "left_ear")]] = 0.064
_REACH[KEYPOINT_INDEX["nose"]] = 0.09
_REACH[[KEYPOINT_INDEX[name] for name in ("right_wrist", "left_wrist")]] = 0.108
_REACH[[KEYPOINT_INDEX[name] for name in ("right_ankle", "left_ankle")]] = 0.039

# Lengths between keypoints in statures.
_SEGMENTS = [
    (KEYPOINT_INDEX[f"{side}_{start}"], KEYPOINT_INDEX[f"{side}_{end}"], length)
    for side in ("right", "left")
    for start, end, length in (
        ("shoulder", "elbow", 0.186),
        ("elbow", "wrist", 0.146),
        ("shoulder", "hip", 0.288),
        ("hip", "knee", 0.245),
        ("knee", "ankle", 0.246),
    )
] + [(KEYPOINT_INDEX["right_shoulder"], KEYPOINT_INDEX["left_shoulder"], 0.259)]

# How far above the soles joints are in the upright stand, in statures, lowest first.
_LEG_LENGTHS = (("knee", 0.285), ("hip", 0.530), ("shoulder", 0.818))


@dataclass(frozen=True)
class Group:
    """The people of one subject's pose, who are placed together.

    Attributes:
        people: in pixels of the canvas they come from.
        stature: pixels the largest of them would measure standing upright.
        box: (4,) left, top, right, bottom of the room they take, crowns, hands and soles included.
        soles: y of the soles, or where they would be below a picture that cuts everybody off above the ankles.
    """

    people: list[Person]
    stature: float
    box: np.ndarray
    soles: float

    @property
    def cut_off(self) -> bool:
        """Whether nobody's feet are in the picture."""
        return self.soles > self.box[3]


@dataclass(frozen=True)
class Placement:
    """x' = scale x + offset, for every keypoint of a group."""

    scale: float
    offset: np.ndarray  # (2,) pixels


def stature(body: np.ndarray) -> float:
    """How tall a person would stand, in the unit of its keypoints (18, 3).

    Every limb in sight gives an estimate by its share of a body's height. A picture only ever shortens a limb, so a
    high quantile of them is taken; not the highest, which a single bad keypoint could make.
    """
    seen = shown(body, BODY)
    points, sure = body[:, :2].tolist(), seen.tolist()
    estimates = [
        math.dist(points[start], points[end]) / share for start, end, share in _SEGMENTS if sure[start] and sure[end]
    ]
    if not estimates:  # a head alone: take what there is
        estimates = [float(np.ptp(body[seen, :2], axis=0).max())]
    return max(_upper_quartile(estimates), 1.0)


def _upper_quartile(values: list[float]) -> float:
    """As `numpy.quantile(values, 0.75)`, which takes twenty times as long for a handful of numbers."""
    ordered, place = sorted(values), 0.75 * (len(values) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (place % 1) * (high - low)


def group_of(frame: PoseFrame) -> Group | None:
    """A frame's people as one group, or None where nobody is in it; raises as `read_people` does."""
    canvas = np.array([frame["canvas_width"], frame["canvas_height"]])
    return group_of_people([moved(person, canvas, np.zeros(2)) for person in read_people(frame)])


def group_of_people(people: Sequence[Person]) -> Group | None:
    """People in pixels of one canvas as one group, or None where nobody of them is seen."""
    people = [person for person in people if shown(person[BODY], BODY).any()]
    if not people:
        return None
    statures = [stature(person[BODY]) for person in people]
    corners = np.concatenate([_reached(person, size) for person, size in zip(people, statures, strict=True)])
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    soles = box[3]
    if not any(len(_seen(person, "ankle")) for person in people):
        soles = max(soles, *(_upright_soles(person, size) for person, size in zip(people, statures, strict=True)))
    return Group(people, max(statures), box, float(soles))


def _reached(person: Person, size: float) -> np.ndarray:
    """Corner points around everything of a person that is shown, (2 K, 2)."""
    corners = []
    for part, values in person.items():
        seen = shown(values, part)
        reach = size * _REACH[seen][:, None] if part == BODY else 0.0
        corners += [values[seen, :2] - reach, values[seen, :2] + reach]
    return np.concatenate(corners)


def _seen(person: Person, joint: str) -> np.ndarray:
    """The shown ones of a person's right and left `joint`, (0..2, 3)."""
    body = person[BODY]
    pair = [KEYPOINT_INDEX[f"right_{joint}"], KEYPOINT_INDEX[f"left_{joint}"]]
    return body[pair][shown(body, BODY)[pair]]


def _upright_soles(person: Person, size: float) -> float:
    """Where the soles of somebody cut off would be, standing; -inf where no knee, hip or shoulder is in sight."""
    for joint, above_soles in _LEG_LENGTHS:
        pair = _seen(person, joint)
        if len(pair):
            return float(pair[:, 1].mean() + above_soles * size)
    return -np.inf


def side_by_side(groups: Sequence[Group | None], width: int, height: int) -> list[Placement | None]:
    """Places from left to right without overlap: everybody at one stature, soles on one ground line.

    The stature is the largest at which all groups fit, but a standing person never outgrows the canvas. Somebody cut
    off by the edge of a picture gets room for the missing legs; where all are, this canvas' lower edge cuts them again.
    """
    margin = MARGIN * min(width, height)
    present = [group for group in groups if group is not None]
    close_up = bool(present) and all(group.cut_off for group in present)
    sizes = [_size_in_statures(group, close_up) for group in groups]
    room = width - 2 * margin, height - margin if close_up else height - 2 * margin
    broad, high = sum(size[0] for size in sizes), max(size[1] for size in sizes)
    tall = min(room[0] / (broad + GAP * (len(groups) - 1)), room[1] / high)
    tall = tall if close_up else min(tall, room[1])
    ground = height if close_up else height - margin - FOREGROUND * (room[1] - tall * high)
    space = (room[0] - tall * broad) / (len(groups) + 1)
    places: list[Placement | None] = []
    left = margin + space
    for group, size in zip(groups, sizes, strict=True):
        if group is not None:
            scale = tall / group.stature
            bottom = group.box[3] if close_up else group.soles
            places.append(Placement(scale, np.array([left, ground]) - scale * np.array([group.box[0], bottom])))
        else:
            places.append(None)
        left += tall * size[0] + space
    return places


def _size_in_statures(group: Group | None, close_up: bool) -> tuple[float, float]:
    if group is None:
        return EMPTY_ROOM
    left, top, right, bottom = group.box.tolist()
    bottom = bottom if close_up else group.soles
    return (right - left) / group.stature, (bottom - top) / group.stature


def in_box(group: Group, box: tuple[float, float, float, float]) -> Placement:
    """As large as fits into box (x, y, width, height), in the middle of its lower edge."""
    x, y, width, height = box
    left, top, right, bottom = group.box.tolist()
    scale = min(width / (right - left), height / (bottom - top))
    return Placement(scale, np.array([x + width / 2 - scale * (left + right) / 2, y + height - scale * bottom]))


def lay_out(
    frames: Sequence[PoseFrame],
    width: int,
    height: int,
    boxes: Sequence[tuple[float, float, float, float]] | None = None,
) -> PoseFrame:
    """One frame with every subject's people in place.

    Args:
        frames: one a subject, in the order of the cast; one without people keeps its place free.
        width, height: canvas in pixels.
        boxes: one (x, y, width, height) a subject, or None for `side_by_side`.

    Returns:
        An OpenPose frame in pixels. Every person has ``subject``, its number in `frames` from 0. Side by side the
        people keep the order of the cast. In boxes, which may overlap, they go from far to near, judged by stature:
        drawn in this order, the nearer covers the farther.

    Raises:
        ValueError: as `read_people`, with the pose's number.
    """
    groups = [_numbered_group(frame, number) for number, frame in enumerate(frames, start=1)]
    if boxes is None:
        places = side_by_side(groups, width, height)
    else:
        places = [group and in_box(group, box) for group, box in zip(groups, boxes, strict=True)]
    placed = [
        (subject, group, place)
        for subject, (group, place) in enumerate(zip(groups, places, strict=True))
        if group is not None and place is not None
    ]
    if boxes is not None:
        placed.sort(key=lambda entry: round(entry[2].scale * entry[1].stature))  # whole pixels: equals keep their order
    people = [
        {**_as_lists(moved(person, place.scale, place.offset)), "subject": subject}
        for subject, group, place in placed
        for person in group.people
    ]
    return {"people": people, "canvas_width": width, "canvas_height": height}


def _numbered_group(frame: PoseFrame, number: int) -> Group | None:
    try:
        return group_of(frame)
    except ValueError as error:
        raise ValueError(f"in pose {number}, {error}") from None


def _as_lists(person: Person) -> dict[str, list[float]]:
    return {part: values.reshape(-1).tolist() for part, values in person.items()}
