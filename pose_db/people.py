"""The people of an OpenPose frame, whole: body, hands, face and feet.

Frames come in two dialects: keypoints in canvas pixels (SDPose, this pack) and as shares of the canvas (the OpenPose
nodes of the ControlNet preprocessors). Both are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .keypoints import KEYPOINT_INDEX, KEYPOINTS, PoseFrame, keypoint_array

BODY = "pose_keypoints_2d"
HANDS = ("hand_left_keypoints_2d", "hand_right_keypoints_2d")
FACE = "face_keypoints_2d"
FEET = "foot_keypoints_2d"
PARTS = (BODY, *HANDS, FACE, FEET)
HAND_KEYPOINTS = 21

MIN_CONFIDENCE = 0.3  # from here on a keypoint counts as seen, as in the host's own pose drawing
HIDDEN_SHARE = 0.5  # of it, for joints of trunk and limbs: estimators find them behind something too, less surely
_HEAD = [KEYPOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]
_BODY_SHARES = np.full(len(KEYPOINTS), HIDDEN_SHARE)
_BODY_SHARES[_HEAD] = 1.0

Person = dict[str, np.ndarray]  # (K, 3) per part: x, y and confidence


def read_people(frame: PoseFrame) -> list[Person]:
    """Everybody in a frame, in shares of the canvas: (0, 0) is its upper left, (1, 1) its lower right corner.

    Raises:
        ValueError: one sentence with its remedy: a list of keypoints is damaged or of another kind than BODY-18.
    """
    listed = frame["people"]
    if not isinstance(listed, Sequence) or not all(isinstance(person, Mapping) for person in listed):
        raise ValueError("a frame's people are not a list of OpenPose people; take the pose from a pose detector")
    people = [_read_person(person, number) for number, person in enumerate(listed, start=1)]
    canvas = np.array([frame["canvas_width"], frame["canvas_height"]], dtype=np.float64)
    if not _in_shares(people):
        for values in (values for person in people for values in person.values()):
            values[:, :2] /= canvas
    for number, person in enumerate(people, start=1):
        _drop_missing(person)
        _check_near_canvas(person, number, canvas)
    return people


def _read_person(person: Mapping, number: int) -> Person:
    found: Person = {}
    for part in PARTS:
        try:
            values = keypoint_array(person, part)
        except (TypeError, ValueError) as error:
            raise ValueError(f"person {number}: {error}; detect the pose again") from None
        if values is not None:
            found[part] = values.copy()
    bodies = len(found.get(BODY, ()))
    if bodies != len(KEYPOINTS):
        raise ValueError(
            f"person {number} has {bodies} body keypoints, expected 18 (BODY-18); set the detector to OpenPose's 18"
            " keypoints (COCO order with a neck), not to BODY-25 or plain COCO-17"
        )
    for part in HANDS:
        count = len(found.get(part, ())) or HAND_KEYPOINTS
        if count != HAND_KEYPOINTS:
            raise ValueError(f"person {number}'s {part} has {count} keypoints, a hand has 21; detect the hands again")
    return found


def _in_shares(people: list[Person]) -> bool:
    """Whether keypoints are shares of the canvas: read as pixels, all of them would lie within the first one."""
    found = [values[values[:, 2] > 0, :2] for person in people for values in person.values()]
    return all(bool((np.abs(positions) <= 1).all()) for positions in found)


def _drop_missing(person: Person) -> None:
    """Hands and faces of the ControlNet preprocessors are always sure; keypoints not found are at -1."""
    for part in (*HANDS, FACE):
        if part in person:
            person[part][(person[part][:, :2] < 0).any(axis=1), 2] = 0.0


def _check_near_canvas(person: Person, number: int, canvas: np.ndarray) -> None:
    for part, values in person.items():
        far = shown(values, part) & ((values[:, :2] < -1) | (values[:, :2] > 2)).any(axis=1)
        if far.any():
            (x, y), (width, height) = values[far][0, :2] * canvas, canvas
            raise ValueError(
                f"person {number} has a keypoint at ({x:.0f}, {y:.0f}), far outside the {width:.0f} x {height:.0f}"
                " canvas; give the frame the canvas size of the picture its pose was found in"
            )


def shown(values: np.ndarray, part: str, min_confidence: float = MIN_CONFIDENCE) -> np.ndarray:
    """Which keypoints (K, 3) of a part are sure enough to draw, (K,) bool.

    Joints of trunk and limbs need only half the confidence. Like OpenPose, which learned it from COCO's labels, this
    draws an arm behind the back, but no face on the back of a head.
    """
    needed = min_confidence * _BODY_SHARES if part == BODY else min_confidence
    return (values[:, 2] > 0) & (values[:, 2] >= needed)


def moved(person: Person, scale: float | np.ndarray, offset: np.ndarray) -> Person:
    """A copy with x' = scale x + offset; keypoints of confidence 0 become (0, 0, 0), OpenPose's "not there"."""
    result = {}
    for part, values in person.items():
        position = np.where(values[:, 2:] > 0, values[:, :2] * scale + offset, 0.0)
        result[part] = np.concatenate([position, values[:, 2:]], axis=1)
    return result


def fit(people: list[Person], canvas: tuple[int, int], target: tuple[int, int]) -> list[Person]:
    """Shares of a canvas (width, height) as pixels of a target: as large as fits, centred, nobody stretched."""
    (width, height), (target_width, target_height) = canvas, target
    if target_width * height <= target_height * width:
        size = np.array([target_width, height * target_width / width])
    else:
        size = np.array([width * target_height / height, target_height])
    return [moved(person, size, (np.asarray(target) - size) / 2) for person in people]
