"""BODY-18 keypoints and the OpenPose frames that carry them.

ComfyUI nodes exchange poses as ``POSE_KEYPOINT``: a list of OpenPose frames (one a picture), each a dict with ``people``,
``canvas_width`` and ``canvas_height``. A person's ``pose_keypoints_2d`` is a flat list ``x, y, confidence`` of 18 keypoints
in the COCO order below, in canvas pixels; confidence 0 means "not there".

Source: Cao et al., "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields", CVPR 2017 (OpenPose).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KEYPOINTS = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
)
KEYPOINT_INDEX = {name: index for index, name in enumerate(KEYPOINTS)}

# The 17 drawn limbs, in OpenPose's drawing order, as (from, to) keypoint indices.
LIMBS = (
    (1, 2),
    (1, 5),
    (2, 3),
    (3, 4),
    (5, 6),
    (6, 7),
    (1, 8),
    (8, 9),
    (9, 10),
    (1, 11),
    (11, 12),
    (12, 13),
    (1, 0),
    (0, 14),
    (14, 16),
    (0, 15),
    (15, 17),
)

# Left and right keypoint indices that change places when a pose is mirrored.
MIRRORED = tuple(
    KEYPOINT_INDEX[name.replace("left", "right") if "left" in name else name.replace("right", "left")]
    for name in KEYPOINTS
)

PoseFrame = dict[str, Any]


def frame_from_people(people: np.ndarray, width: int, height: int) -> PoseFrame:
    """Make an OpenPose frame.

    Args:
        people: (P, 18, 3) of x, y in canvas pixels and confidence in [0, 1].
        width, height: canvas size in pixels.
    """
    return {
        "people": [
            {"pose_keypoints_2d": np.asarray(person, dtype=np.float64).reshape(-1).tolist()} for person in people
        ],
        "canvas_width": int(width),
        "canvas_height": int(height),
    }


def keypoint_array(person: Mapping[str, Any], key: str) -> np.ndarray | None:
    """One keypoint list of an OpenPose person as (K, 3), or None where the person has none.

    Raises:
        ValueError: the list is not made of x, y, confidence triples, or holds a number that is not finite.
    """
    flat = person.get(key)
    if flat is None or len(flat) == 0:
        return None
    values = np.asarray(flat, dtype=np.float64)
    if values.ndim != 1 or values.size % 3:
        raise ValueError(f"{key} has {values.size} numbers, which is not a list of x, y, confidence triples")
    if not np.isfinite(values).all():
        raise ValueError(f"{key} holds a number that is not finite")
    return values.reshape(-1, 3)


def check_frames(pose: Any) -> Sequence[PoseFrame]:
    """The pose as a non-empty sequence of OpenPose frames.

    Raises:
        ValueError: it is not one.
    """
    frames = [pose] if isinstance(pose, Mapping) else pose
    if not isinstance(frames, Sequence) or isinstance(frames, str) or len(frames) == 0:
        raise ValueError("it is not a list of OpenPose frames")
    for frame in frames:
        if not isinstance(frame, Mapping) or not {"people", "canvas_width", "canvas_height"} <= frame.keys():
            raise ValueError("a frame lacks people, canvas_width or canvas_height")
        if min(frame["canvas_width"], frame["canvas_height"]) < 1:
            raise ValueError("a frame's canvas is smaller than one pixel")
    return frames
