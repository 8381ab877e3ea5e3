"""The subjects of a pose: which people belong together, and which pixels of a picture are whose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .keypoints import LIMBS, PoseFrame
from .layout import Group, group_of
from .people import BODY, Person, fit, moved, read_people, shown

FAR = 1.0  # canvas sizes beyond the canvas up to which a frame may hold keypoints


def subjects_of(frame: PoseFrame, width: int, height: int) -> list[Group]:
    """The subjects of a frame in the order of the cast, in pixels of a picture of width x height.

    People with the same number ``subject``, as Lay Out Poses gives it, are one subject; without numbers everybody is one
    for himself. Who has no keypoint that is sure enough is left out.

    Raises:
        ValueError: as `read_people`.
    """
    people = fit(read_people(frame), (frame["canvas_width"], frame["canvas_height"]), (width, height))
    numbers = [person.get("subject") for person in frame["people"]]
    if not all(isinstance(number, int) for number in numbers):
        numbers = list(range(len(people)))
    groups = []
    for subject in sorted(set(numbers)):
        own = [person for person, number in zip(people, numbers, strict=True) if number == subject]
        groups.append(group_of(_frame([(subject, own)], width, height)))
    return [group for group in groups if group is not None]


def moved_frame(
    subjects: Sequence[Group], moves: Sequence[tuple[float, float, float]], width: int, height: int
) -> PoseFrame:
    """A frame with every subject's keypoints at (scale x + dx, scale y + dy) on a canvas of width x height.

    Args:
        subjects: in pixels.
        moves: scale, dx and dy, one a subject.

    Returns:
        Every person has ``subject``, its number from 0. Keypoints so far outside that no frame may hold them are dropped.
    """
    placed = []
    for number, (subject, (scale, dx, dy)) in enumerate(zip(subjects, moves, strict=True)):
        people = [moved(person, scale, np.array([dx, dy])) for person in subject.people]
        placed.append((number, [_near(person, width, height) for person in people]))
    return _frame(placed, width, height)


def nearest_subject(subjects: Sequence[Group], width: int, height: int) -> np.ndarray:
    """For every pixel of width x height the number of the subject with the nearest limb: (height, width) int64."""
    import cv2  # optional dependency

    distances = []
    for subject in subjects:
        free = np.full((height, width), 255, dtype=np.uint8)
        for person in subject.people:
            for start, end in _lines(person):
                cv2.line(free, start, end, 0)
        distances.append(cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_5))
    return np.argmin(distances, axis=0)


def _lines(person: Person) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Limbs between shown keypoints, and the shown keypoints themselves, as pairs of pixels."""
    lines = []
    for part, values in person.items():
        seen = shown(values, part)
        spots = [(int(x), int(y)) for x, y in values[:, :2]]
        lines += [(spot, spot) for spot, there in zip(spots, seen, strict=True) if there]
        if part == BODY:
            lines += [(spots[start], spots[end]) for start, end in LIMBS if seen[start] and seen[end]]
    return lines


def _near(person: Person, width: int, height: int) -> Person:
    size = np.array([width, height])
    kept = {}
    for part, values in person.items():
        far = np.any((values[:, :2] < -FAR * size) | (values[:, :2] > (1 + FAR) * size), axis=1, keepdims=True)
        kept[part] = np.where(far, 0.0, values)
    return kept


def _frame(subjects: Sequence[tuple[int, Sequence[Person]]], width: int, height: int) -> PoseFrame:
    """Numbered subjects, in pixels, as an OpenPose frame."""
    people = [
        {**{part: values.reshape(-1).tolist() for part, values in person.items()}, "subject": number}
        for number, own in subjects
        for person in own
    ]
    return {"people": people, "canvas_width": width, "canvas_height": height}
