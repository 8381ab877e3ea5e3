"""What no body can look like in a picture: the second stage of the pose check, one person at a time.

A picture shows bones foreshortened, so a bone may look shorter than it is but never longer, and an angle in the picture
bounds the angle in space. Only what no pose in space can look like is found. Proportions and joint limits are those of
``skeleton``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from .keypoints import KEYPOINT_INDEX, KEYPOINTS, LIMBS
from .skeleton import ANGLES, FLEXIBLE_LIMITS, body_lengths, forward

_BONES = LIMBS[:13]  # the rest of the drawing order lies within the face
_FACE = tuple(KEYPOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear"))
_LIMB_JOINTS = ("elbow", "wrist", "knee", "ankle")


@cache
def _standing() -> np.ndarray:
    """Keypoints of an upright adult of stature 1, (18, 3): the longest that bones can look."""
    lengths = body_lengths("person")
    return forward(np.zeros((1, len(ANGLES))), lengths[None]).joints[0] / lengths[0]


def _share(start: int, end: int) -> float:
    """Distance of two keypoints of an upright adult, as a share of stature."""
    return float(np.linalg.norm(_standing()[start] - _standing()[end]))


def body_scale(person: np.ndarray, seen: np.ndarray) -> float:
    """Stature of a person in pixels: the upper quartile of what the seen bones imply, since foreshortening only
    shortens.

    Args:
        person: (18, 3).
        seen: (18,) bool.
    """
    implied = [
        np.linalg.norm(person[start, :2] - person[end, :2]) / _share(start, end)
        for start, end in _BONES
        if seen[start] and seen[end]
    ]
    return float(np.quantile(implied, 0.75)) if implied else 0.0


def anatomy_problems(person: np.ndarray, min_confidence: float, max_bone_ratio: float) -> Iterator[str]:
    """What no body can look like, in words.

    Args:
        person: (18, 3).
        min_confidence: below it a keypoint is taken as not seen.
        max_bone_ratio: how much longer a bone may look than the rest of the body says.
    """
    seen = person[:, 2] >= min_confidence
    scale = body_scale(person, seen)
    points = person[:, :2]
    if scale <= 0 or _collapsed(points, seen, scale):
        yield "its keypoints fall together"
        return
    yield from _bone_problems(points, seen, scale, max_bone_ratio)
    yield from _joint_problems(points, seen, scale)
    yield from _side_problems(points, seen, scale)


def _collapsed(points: np.ndarray, seen: np.ndarray, scale: float) -> bool:
    """Whether a third of the bones have no length (2 % of stature or less of the bones that are 12 % to 29 %)."""
    lengths = [np.linalg.norm(points[start] - points[end]) for start, end in _BONES if seen[start] and seen[end]]
    return len(lengths) < 3 or float(np.mean(np.array(lengths) < 0.01 * scale)) > 1 / 3


def _bone_problems(points: np.ndarray, seen: np.ndarray, scale: float, max_bone_ratio: float) -> Iterator[str]:
    """Bones that look too long; a pair of joints that would fit the other way round is called swapped."""
    ratio = _bone_ratios(points, seen, scale)
    long = {bone for bone, value in ratio.items() if value > max_bone_ratio}
    for joint in _LIMB_JOINTS:
        pair = [KEYPOINT_INDEX[f"{side}_{joint}"] for side in ("right", "left")]
        touching = {bone for bone in long if set(bone) & set(pair)}
        if not touching or not seen[pair].all():
            continue
        order = np.arange(len(KEYPOINTS))
        order[pair] = order[pair[::-1]]
        swapped = _bone_ratios(points[order], seen[order], scale)
        if all(swapped[bone] <= max_bone_ratio for bone in swapped if set(bone) & set(pair)):
            yield f"left and right {joint} seem swapped"
            long -= touching
    for start, end in sorted(long):
        yield f"{_name(start)} to {_name(end)} is {ratio[start, end]:.1f} times as long as the rest of the body allows"
    for point in _FACE[1:]:
        reach = np.linalg.norm(points[point] - points[_FACE[0]]) / (scale * _share(_FACE[0], point))
        if seen[point] and seen[_FACE[0]] and reach > 2 * max_bone_ratio:
            yield f"the {_name(point)} is too far from the nose"


def _bone_ratios(points: np.ndarray, seen: np.ndarray, scale: float) -> dict[tuple[int, int], float]:
    """How long every seen bone looks, against an upright adult of stature `scale` pixels."""
    return {
        (start, end): float(np.linalg.norm(points[start] - points[end]) / (scale * _share(start, end)))
        for start, end in _BONES
        if seen[start] and seen[end]
    }


def widest_angle(first: np.ndarray, second: np.ndarray, lengths: tuple[float, float]) -> float:
    """The widest angle in space, in degrees, that two bones of known length can have whose projections are given.

    With depths z_i = ±sqrt(l_i² - |p_i|²) the angle is acos((p_1 · p_2 + z_1 z_2) / (l_1 l_2)), widest for z_1 z_2 < 0.

    Args:
        first, second: (2,) projections p, from the joint outwards.
        lengths: true lengths l; where a projection is longer, its own length is taken.
    """
    flat = np.array([np.linalg.norm(first), np.linalg.norm(second)])
    true = np.maximum(lengths, flat)
    depth = np.sqrt(true**2 - flat**2)
    cosine = (float(first @ second) - depth.prod()) / max(true.prod(), 1e-12)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


# Bones of other builds, and at other depths than the average one, are longer than the scale says. In an angle a
# longer bone only widens what is possible, in a width it hides how far a line is turned.
_JOINT_SLACK = 1.1
_SLACK = 1.25
_TOLERANCE = 12.0  # degrees that a detector's keypoints may be off
# joint, its two bones outwards, smallest angle between them in degrees
_JOINTS = tuple(
    (f"{side}_{middle}", f"{side}_{root}", f"{side}_{tip}", 180.0 - FLEXIBLE_LIMITS[f"{middle}_flexion"][1])
    for side in ("left", "right")
    for root, middle, tip in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle"))
) + tuple(("neck", f"{side}_hip", "nose", 45.0) for side in ("left", "right"))


def _joint_problems(points: np.ndarray, seen: np.ndarray, scale: float) -> Iterator[str]:
    """Joints bent further than they can be, whatever the depths."""
    for name, *ends, smallest in _JOINTS:
        joint, first, second = (KEYPOINT_INDEX[part] for part in (name, *ends))
        if not seen[[joint, first, second]].all():
            continue
        lengths = tuple(_JOINT_SLACK * scale * _share(joint, end) for end in (first, second))
        angle = widest_angle(points[first] - points[joint], points[second] - points[joint], (lengths[0], lengths[1]))
        if angle < smallest - _TOLERANCE:
            yield f"the {name.replace('_', ' ')} is bent further than it can be ({angle:.0f} degrees between its bones)"
    yield from _knee_problems(points, seen, scale)


def _knee_problems(points: np.ndarray, seen: np.ndarray, scale: float) -> Iterator[str]:
    """Knees that bend forward, which only a view from the side shows."""
    facing = _facing(points, seen, scale)
    if facing == 0:
        return
    for side in ("left", "right"):
        hip, knee, ankle = (KEYPOINT_INDEX[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        if not seen[[hip, knee, ankle]].all():
            continue
        thigh, shank = points[knee] - points[hip], points[ankle] - points[knee]
        long_enough = min(np.linalg.norm(thigh), np.linalg.norm(shank)) > 0.6 * scale * _share(knee, ankle)
        bend = np.degrees(np.arctan2(_cross(thigh, shank), thigh @ shank)) * facing
        if long_enough and -150.0 < bend < -35.0:
            yield f"the {side} knee bends forward"


def _facing(points: np.ndarray, seen: np.ndarray, scale: float) -> int:
    """1 or -1 for a body seen from the side that looks to the right or left of its own up, 0 for any other view."""
    neck, nose = KEYPOINT_INDEX["neck"], KEYPOINT_INDEX["nose"]
    hips = [KEYPOINT_INDEX["right_hip"], KEYPOINT_INDEX["left_hip"]]
    shoulders = [KEYPOINT_INDEX["right_shoulder"], KEYPOINT_INDEX["left_shoulder"]]
    if not seen[[neck, nose, *hips, *shoulders]].all():
        return 0
    if any(_width(points, pair, scale) > 0.35 for pair in (hips, shoulders)):
        return 0
    trunk = points[neck] - points[hips].mean(0)
    if np.linalg.norm(trunk) < 0.15 * scale:
        return 0
    ahead = _cross(trunk / np.linalg.norm(trunk), points[nose] - points[neck])
    return 0 if abs(ahead) < 0.06 * scale else int(np.sign(ahead))


# Two pairs of keypoints that turn with the body, and how far in degrees one can be turned against the other.
_TURNS = (("hip", "shoulder", 75.0), ("eye", "shoulder", 125.0), ("eye", "hip", 160.0))


def _side_problems(points: np.ndarray, seen: np.ndarray, scale: float) -> Iterator[str]:
    """Left and right the wrong way round.

    A line between a left and a right keypoint that looks r times its full width is turned out of the picture by
    acos(r). Two such lines that point opposite ways are therefore turned by at least 180 - acos(r_1) - acos(r_2)
    degrees against each other.
    """
    for first, second, most in _TURNS:
        pairs = [[KEYPOINT_INDEX[f"{side}_{part}"] for side in ("right", "left")] for part in (first, second)]
        if not seen[pairs[0] + pairs[1]].all():
            continue
        lines = [points[left] - points[right] for right, left in pairs]
        widths = [min(1.0, _width(points, pair, scale)) for pair in pairs]
        turn = 180.0 - sum(np.degrees(np.arccos(width)) for width in widths)
        if float(lines[0] @ lines[1]) < 0 and turn > most:
            yield f"left and right of the {first}s and the {second}s contradict each other"
            return
    yield from _mirrored_face(points, seen, scale)


def _mirrored_face(points: np.ndarray, seen: np.ndarray, scale: float) -> Iterator[str]:
    """A face seen from within the head, which is what a person with all sides swapped looks like."""
    nose, right, left = (KEYPOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye"))
    neck = KEYPOINT_INDEX["neck"]
    if not seen[[nose, right, left, neck]].all():
        return
    across, up = points[left] - points[right], points[[left, right]].mean(0) - points[nose]
    wide = _width(points, (right, left), scale) > 0.5
    # A head that leans far back also shows its nose above its eyes; then the eyes lie towards the neck.
    upright = float(up @ (points[nose] - points[neck])) > 0 and np.linalg.norm(up) > 0.02 * scale
    if wide and upright and _cross(across, up) > 0:
        yield "left and right of the face are swapped"


def _width(points: np.ndarray, pair: Sequence[int], scale: float) -> float:
    """How wide a pair looks, as a share of its full width."""
    return float(np.linalg.norm(points[pair[0]] - points[pair[1]]) / (_SLACK * scale * _share(pair[0], pair[1])))


def _cross(first: np.ndarray, second: np.ndarray) -> float:
    return float(first[0] * second[1] - first[1] * second[0])


def _name(keypoint: int) -> str:
    return KEYPOINTS[keypoint].replace("_", " ")
