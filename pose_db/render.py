"""Draws OpenPose frames the way pose-conditioned models were trained to see them.

Limb order, colours and the elliptic stick are those of the OpenPose drawing that ControlNet's annotator made the standard
(Cao et al., CVPR 2017; Zhang et al., ICCV 2023).
"""

from __future__ import annotations

import math

import numpy as np

from .keypoints import KEYPOINTS, LIMBS, PoseFrame, people_from_frame

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
STICK_BRIGHTNESS = 0.6  # sticks are drawn at 60 % so that the joints on top of them stand out
JOINT_RADIUS = 4  # pixels, at the standard stick width of 4
MIN_CONFIDENCE = 0.3  # below it a keypoint is taken as not seen, as in the host's own pose drawing


def fit_people(people: np.ndarray, canvas: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Scale keypoints from one canvas into another without stretching anybody: as large as fits, centred.

    Args:
        people: (P, 18, 3).
        canvas, target: (width, height) in pixels.

    Returns:
        (P, 18, 3), a new array.
    """
    scale = min(target[0] / canvas[0], target[1] / canvas[1])
    margin = (np.asarray(target) - scale * np.asarray(canvas)) / 2
    fitted = people.copy()
    fitted[..., :2] = people[..., :2] * scale + margin
    return fitted


def render_people(people: np.ndarray, width: int, height: int, line_width: int = 4) -> np.ndarray:
    """Draw skeletons on black.

    Args:
        people: (P, 18, 3), x, y in pixels of the picture to draw and confidence.
        width, height: size of the picture in pixels.
        line_width: half the thickness of a stick in pixels (OpenPose: 4).

    Returns:
        (height, width, 3) uint8, RGB.
    """
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    visible = people[..., 2] >= MIN_CONFIDENCE
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        for person, seen in zip(people, visible, strict=True):
            if seen[start] and seen[end]:
                _draw_stick(picture, person[start, :2], person[end, :2], colour, line_width)
    radius = max(1, round(JOINT_RADIUS * line_width / 4))
    for keypoint, colour in zip(range(len(KEYPOINTS)), COLOURS, strict=True):
        for person, seen in zip(people, visible, strict=True):
            if seen[keypoint]:
                _draw_joint(picture, person[keypoint, :2], colour, radius)
    return picture


def render_frame(frame: PoseFrame, width: int, height: int, line_width: int = 4) -> np.ndarray:
    """Draw one OpenPose frame, fitted into width x height without stretching; (height, width, 3) uint8, RGB."""
    canvas = (frame["canvas_width"], frame["canvas_height"])
    return render_people(fit_people(people_from_frame(frame), canvas, (width, height)), width, height, line_width)


def _draw_stick(
    picture: np.ndarray, start: np.ndarray, end: np.ndarray, colour: tuple[int, int, int], line_width: int
) -> None:
    import cv2  # optional dependency

    centre = (start + end) / 2
    length = math.dist(start, end)
    angle = math.degrees(math.atan2(start[1] - end[1], start[0] - end[0]))
    outline = cv2.ellipse2Poly(
        (int(centre[0]), int(centre[1])), (int(length / 2), line_width), int(angle), 0, 360, 1
    )
    cv2.fillConvexPoly(picture, outline, tuple(int(channel * STICK_BRIGHTNESS) for channel in colour))


def _draw_joint(picture: np.ndarray, point: np.ndarray, colour: tuple[int, int, int], radius: int) -> None:
    import cv2  # optional dependency

    cv2.circle(picture, (int(point[0]), int(point[1])), radius, colour, thickness=-1)
