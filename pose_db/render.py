"""Draws OpenPose frames the way pose-conditioned models were trained to see them.

Order, colours and shapes are those of the OpenPose drawing that ControlNet's annotator made the standard (Cao et al.,
CVPR 2017; Zhang et al., ICCV 2023), and equal controlnet-aux pixel for pixel: person after person, of each the sticks,
the joints, the left hand, the right hand and the face. Later people cover earlier ones.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .keypoints import LIMBS, PoseFrame
from .people import BODY, FACE, HANDS, MIN_CONFIDENCE, Person, fit, read_people, shown

COLOURS = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
)
STICK_COLOURS = tuple(tuple(int(channel * 0.6) for channel in colour) for colour in COLOURS)  # joints stand out on them
HAND_JOINT_COLOUR = (0, 0, 255)
FACE_COLOUR = (255, 255, 255)

# From the wrist along every finger, with the colours of a rainbow.
BONES = tuple((joint - 1 if joint % 4 != 1 else 0, joint) for joint in range(1, 21))
BONE_COLOURS = tuple(
    tuple(255 * channel for channel in colorsys.hsv_to_rgb(bone / len(BONES), 1.0, 1.0)) for bone in range(len(BONES))
)

# Sizes in pixels at the standard line width.
LINE_WIDTH = 4
JOINT_RADIUS = 4
FACE_RADIUS = 3
BONE_THICKNESS = 2

Point = tuple[int, int]


class Stick(NamedTuple):
    """A filled ellipse along a limb."""

    centre: Point
    half_axes: Point
    degrees: int
    colour: tuple[int, ...]


class Line(NamedTuple):
    start: Point
    end: Point
    thickness: int
    colour: tuple[float, ...]


class Disc(NamedTuple):
    centre: Point
    radius: int
    colour: tuple[int, ...]


def render_frame(
    frame: PoseFrame, width: int, height: int, line_width: int = LINE_WIDTH, min_confidence: float = MIN_CONFIDENCE
) -> np.ndarray:
    """Draw one OpenPose frame on black, fitted into width x height without stretching.

    Args:
        line_width: half the thickness of a stick in pixels; joints, fingers and faces grow with it.
        min_confidence: see `people.shown`.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        ValueError: as `people.read_people`.
    """
    people = fit(read_people(frame), (frame["canvas_width"], frame["canvas_height"]), (width, height))
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for person in people:
        _paint(picture, _person_shapes(person, line_width, min_confidence))
    return picture


def _person_shapes(person: Person, line_width: int, min_confidence: float) -> Iterator[Stick | Line | Disc]:
    """Everything to draw of a person, whose keypoints are in pixels of the picture, bottom to top."""
    radius, face_radius, thickness = (
        max(1, round(size * line_width / LINE_WIDTH)) for size in (JOINT_RADIUS, FACE_RADIUS, BONE_THICKNESS)
    )
    points = _points(person, BODY, min_confidence)
    for (start, end), colour in zip(LIMBS, STICK_COLOURS, strict=False):
        if start in points and end in points:
            yield _stick(points[start], points[end], line_width, colour)
    for joint, point in points.items():
        yield Disc(_pixel(point), radius, COLOURS[joint])
    for hand in HANDS:
        points = _points(person, hand, min_confidence)
        for (start, end), colour in zip(BONES, BONE_COLOURS, strict=True):
            if start in points and end in points:
                yield Line(_pixel(points[start]), _pixel(points[end]), thickness, colour)
        for point in points.values():
            yield Disc(_pixel(point), radius, HAND_JOINT_COLOUR)
    for point in _points(person, FACE, min_confidence).values():
        yield Disc(_pixel(point), face_radius, FACE_COLOUR)


def _points(person: Person, part: str, min_confidence: float) -> dict[int, list[float]]:
    """x, y of a part's shown keypoints by their index."""
    if part not in person:
        return {}
    values = person[part]
    seen = shown(values, part, min_confidence)
    if part != BODY:
        seen &= (values[:, :2] >= 1).all(axis=1)  # controlnet-aux draws nothing of hands and faces in the first pixels
    return dict(zip(np.flatnonzero(seen).tolist(), values[seen, :2].tolist(), strict=True))


def _pixel(point: list[float]) -> Point:
    return int(point[0]), int(point[1])


def _stick(start: list[float], end: list[float], line_width: int, colour: tuple[int, ...]) -> Stick:
    dx, dy = start[0] - end[0], start[1] - end[1]
    centre = int((start[0] + end[0]) / 2), int((start[1] + end[1]) / 2)
    length = (dx**2 + dy**2) ** 0.5  # rounds as controlnet-aux does; math.hypot may differ in the last bit
    return Stick(centre, (int(length / 2), line_width), int(math.degrees(math.atan2(dy, dx))), colour)


def _paint(picture: np.ndarray, shapes: Iterator[Stick | Line | Disc]) -> None:
    import cv2  # optional dependency

    for shape in shapes:
        if isinstance(shape, Stick):
            outline = cv2.ellipse2Poly(shape.centre, shape.half_axes, shape.degrees, 0, 360, 1)
            cv2.fillConvexPoly(picture, np.asarray(outline), shape.colour)
        elif isinstance(shape, Line):
            cv2.line(picture, shape.start, shape.end, shape.colour, thickness=shape.thickness)
        else:
            cv2.circle(picture, shape.centre, shape.radius, shape.colour, thickness=-1)
