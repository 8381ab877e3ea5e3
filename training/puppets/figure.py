"""From a BODY-18 person to the shapes of a puppet's body: tapered capsules, trunk, head frame. No colours, no pixels.

Points are complex numbers, x + iy: a turn or a stretch is one multiplication, and a handful of points needs no array.
Lengths are pixels of the picture; radii are shares of the person's stature (`pose_db.layout.stature`). Heads and limbs
are larger than life, so that they can be read in a small picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...pose_db.keypoints import KEYPOINT_INDEX
from ...pose_db.layout import stature
from ...pose_db.people import MIN_CONFIDENCE
from .identity import Puppet

HEAD_RADIUS = 0.113
CHIN = 0.075  # below the middle of the head's joints: puppets' large heads grow upward from there
SIDES = ("right", "left")
EDGE = 0.011  # statures: how far a dark edge reaches beyond what it surrounds
SURE = MIN_CONFIDENCE + 0.1  # below it a joint is only guessed at: something is in front of it

NOSE, NECK = KEYPOINT_INDEX["nose"], KEYPOINT_INDEX["neck"]
EYES = [KEYPOINT_INDEX["right_eye"], KEYPOINT_INDEX["left_eye"]]
EARS = [KEYPOINT_INDEX["right_ear"], KEYPOINT_INDEX["left_ear"]]
SHOULDERS, ELBOWS, WRISTS, HIPS, KNEES, ANKLES = (
    [KEYPOINT_INDEX[f"{side}_{joint}"] for side in SIDES]
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
)
# A joint that is not there hangs below the one before it, at its share of the stature.
_GUESSES = (
    *((hip, shoulder, 0.288) for hip, shoulder in zip(HIPS, SHOULDERS, strict=True)),
    *((knee, hip, 0.245) for knee, hip in zip(KNEES, HIPS, strict=True)),
    *((ankle, knee, 0.246) for ankle, knee in zip(ANKLES, KNEES, strict=True)),
    *((elbow, shoulder, 0.186) for elbow, shoulder in zip(ELBOWS, SHOULDERS, strict=True)),
    *((wrist, elbow, 0.146) for wrist, elbow in zip(WRISTS, ELBOWS, strict=True)),
)
_FACE_JOINTS = [NOSE, *EYES]
_HEAD_JOINTS = [*_FACE_JOINTS, *EARS]
_FINGERTIPS, _TOES = (18, 19), (20, 21)  # come after the joints, see `_tips`
# Bones: name, joints they run between, the share of the way they go, radius at both ends.
_BONES = (
    ("upper_arm", SHOULDERS, ELBOWS, 1.0, 0.038, 0.033),
    ("short_sleeve", SHOULDERS, ELBOWS, 0.55, 0.050, 0.050),
    ("upper_sleeve", SHOULDERS, ELBOWS, 1.0, 0.050, 0.043),
    ("forearm", ELBOWS, WRISTS, 1.0, 0.034, 0.027),
    ("lower_sleeve", ELBOWS, WRISTS, 0.94, 0.043, 0.042),
    ("thigh", HIPS, KNEES, 1.0, 0.062, 0.046),
    ("upper_trouser", HIPS, KNEES, 1.0, 0.068, 0.053),
    ("short_trouser", HIPS, KNEES, 0.75, 0.068, 0.066),
    ("shank", KNEES, ANKLES, 1.0, 0.045, 0.034),
    ("lower_trouser", KNEES, ANKLES, 0.95, 0.053, 0.050),
    ("hand", WRISTS, _FINGERTIPS, 1.0, 0.033, 0.036),
    ("foot", ANKLES, _TOES, 1.0, 0.036, 0.034),
)
# Number of every bone by name and side, such as ``("thigh", 0)``; 0 is the right side.
BONE = {key: number for number, key in enumerate((name, side) for name, *_ in _BONES for side in (0, 1))}
_FROM = np.array([pair for _, pair, *_ in _BONES]).ravel()
_TO = np.array([pair for _, _, pair, *_ in _BONES]).ravel()
_SHARE = np.array([bone[3] for bone in _BONES]).repeat(2)
_RADII = np.array([bone[-2:] for bone in _BONES]).repeat(2, axis=0)  # (bones, 2)
_HALF_CIRCLE = np.exp(1j * np.linspace(-np.pi / 2, np.pi / 2, 6))
_CAPS = np.concatenate([_HALF_CIRCLE, -_HALF_CIRCLE])  # around the end of a bone, then around its start
# Points of a bone: its outline, the outline's dark edge, its corners; and which of its joints they surround, 0 the start.
_OUTLINE, _EDGE, _CORNERS = slice(0, 12), slice(12, 24), slice(24, 28)
_JOINT = np.array([1] * 6 + [0] * 6 + [1] * 6 + [0] * 6 + [0, 0, 1, 1])
_ROUND = _RADII[:, _JOINT] * np.concatenate([_CAPS, _CAPS, [-1j, 1j, -1j, 1j]])  # (bones, 28), for a bone to the right
_GROWN = np.zeros(28, dtype=np.complex128)
_GROWN[_EDGE] = EDGE * _CAPS


@dataclass(frozen=True, slots=True)
class Figure:
    """The body of one puppet in one pose; all points are complex.

    Attributes:
        size: stature in pixels.
        joints: 18 points in pixels, guessed where the pose has none.
        limbs: (bones, 12) outline of every bone, in the order of `BONE`.
        edges: (bones, 12) the same, for a dark edge around it.
        corners: (bones, 4) of every bone: both edges at its start, then at its end.
        trunk: the trunk's 4 corners: right and left at the shoulders, then at the hips.
        head: its middle; up: unit vector of the head in the picture.
        radius: of the head, pixels.
        yaw, pitch: where the face points in the picture, -1 (left, down) to 1 (right, up).
        back: whether the head is seen from behind.
        hidden_arm, hidden_leg: a pair, right and left: whether the pose says that it is behind something.
    """

    size: float
    joints: list[complex]
    limbs: np.ndarray
    edges: np.ndarray
    corners: np.ndarray
    trunk: tuple[complex, complex, complex, complex]
    head: complex
    up: complex
    radius: float
    yaw: float
    pitch: float
    back: bool
    hidden_arm: tuple[bool, bool]
    hidden_leg: tuple[bool, bool]

    @property
    def right(self) -> complex:
        """Unit vector of the head in the picture, right as the viewer sees it."""
        return 1j * self.up


def dot(one: complex, other: complex) -> float:
    """Inner product of two vectors of the plane."""
    return (one.conjugate() * other).real


def cross(one: complex, other: complex) -> float:
    """Signed area between two vectors of the plane."""
    return (one.conjugate() * other).imag


def unit(vector: complex) -> complex:
    """A vector of the plane at length 1; one without a length stays short."""
    return vector / max(abs(vector), 1e-6)


def figure(puppet: Puppet, body: np.ndarray, size: float | None = None) -> Figure:
    """The body of `puppet` on keypoints `body` (18, 3) in pixels; `size` is its stature where that is known already."""
    size = stature(body) if size is None else size
    joints = completed(body, size)
    sure = body[:, 2].tolist()
    back = all(sure[joint] < MIN_CONFIDENCE for joint in _FACE_JOINTS)
    middle, up = _head(joints, sure, size)
    ahead = joints[NOSE] - middle if sure[NOSE] > 0 else 0j
    yaw = _limited(cross(up, ahead) / (0.062 * size))
    radius = HEAD_RADIUS * puppet.head_size * size
    outlines, edges, corners = _limbs(joints, size, puppet.girth, 0.0 if back else yaw)
    return Figure(
        size=size,
        joints=joints,
        limbs=outlines,
        edges=edges,
        corners=corners,
        trunk=_trunk(joints, size, puppet.girth),
        head=middle + up * (radius - CHIN * size),
        up=up,
        radius=radius,
        yaw=yaw,
        pitch=_limited((dot(up, ahead) / size + 0.02) / 0.06),
        back=back,
        hidden_arm=(_hidden(sure, WRISTS[0]), _hidden(sure, WRISTS[1])),
        hidden_leg=(_hidden(sure, KNEES[0], ANKLES[0]), _hidden(sure, KNEES[1], ANKLES[1])),
    )


def _limited(value: float) -> float:
    return min(max(value, -1.0), 1.0)


def _hidden(sure: list[float], *joints: int) -> bool:
    return any(0 < sure[joint] < SURE for joint in joints)


def completed(body: np.ndarray, size: float) -> list[complex]:
    """Positions of all 18 joints of the body: what is not there hangs straight down from what is."""
    joints = [complex(x, y) for x, y in body[:, :2].tolist()]
    there = (body[:, 2] > 0).tolist()
    if all(there):
        return joints
    if not there[NECK]:
        joints[NECK] = _guessed_neck(joints, there, size)
    for side, joint in enumerate(SHOULDERS):
        if not there[joint]:
            joints[joint] = joints[NECK] + 0.12 * size * (-1, 1)[side]
    for joint, above, share in _GUESSES:
        if not there[joint]:
            joints[joint] = joints[above] + 1j * share * size
    return joints


def _guessed_neck(joints: list[complex], there: list[bool], size: float) -> complex:
    """Between the shoulders, below the head, or above whatever else there is."""
    for near, below in ((SHOULDERS, 0.0), (_HEAD_JOINTS, 0.117), (HIPS, -0.288), (KNEES, -0.53), (range(18), -0.2)):
        seen = [joints[joint] for joint in near if there[joint]]
        if seen:
            return sum(seen) / len(seen) + 1j * below * size
    return joints[NECK]


def _head(joints: list[complex], sure: list[float], size: float) -> tuple[complex, complex]:
    """Middle of the head's joints, and its upward direction."""
    seen = [joints[joint] for joint in EARS if sure[joint] > 0]
    if len(seen) < 2:
        seen = [joints[joint] for joint in _HEAD_JOINTS if sure[joint] > 0]
    trunk = unit(joints[NECK] - (joints[HIPS[0]] + joints[HIPS[1]]) / 2)
    if not seen:
        return joints[NECK] + 0.117 * size * trunk, trunk
    middle = sum(seen) / len(seen)
    up = middle - joints[NECK] + 0.02 * size * trunk
    return middle, up / abs(up) if abs(up) > 1e-6 else trunk


def _trunk(joints: list[complex], size: float, girth: float) -> tuple[complex, complex, complex, complex]:
    """The four corners; a trunk seen from the side keeps a body's depth."""
    shoulder, hip = joints[SHOULDERS[0]], joints[HIPS[0]]
    top, bottom = (shoulder + joints[SHOULDERS[1]]) / 2, (hip + joints[HIPS[1]]) / 2
    axis = bottom - top
    across = -1j * axis / abs(axis) if abs(axis) > 1e-6 else 1 + 0j
    wide = _half_width(dot(across, shoulder - top), 0.07, size, girth) * across
    broad = _half_width(dot(across, hip - bottom), 0.08, size, girth) * across
    return top + wide, top - wide, bottom + broad, bottom - broad


def _half_width(half: float, least: float, size: float, girth: float) -> float:
    """From the trunk's middle to its right edge, with flesh on the joint at `half`."""
    width = girth * max(abs(half) + 0.012 * size, least * size)
    return width if half >= 0 else -width


def _limbs(joints: list[complex], size: float, girth: float, yaw: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outlines and edges (bones, 12) and corners (bones, 4) of all bones, both sides of each."""
    ends_of_bones = np.array([*joints, *_tips(joints, size, yaw)])
    starts, ends = ends_of_bones[_FROM], ends_of_bones[_TO]
    ends = starts + _SHARE * (ends - starts)
    along = ends - starts
    along /= np.maximum(np.abs(along), 1e-6)
    points = along[:, None] * ((size * girth) * _ROUND + size * _GROWN)
    points += np.stack([starts, ends], axis=1)[:, _JOINT]
    return points[:, _OUTLINE], points[:, _EDGE], points[:, _CORNERS]


def _tips(joints: list[complex], size: float, yaw: float) -> list[complex]:
    """Fingertips and toes, right and left: toes outward from the front, ahead from the side."""
    tips = []
    for elbow, wrist in zip(ELBOWS, WRISTS, strict=True):
        tips.append(joints[wrist] + 0.03 * size * unit(joints[wrist] - joints[elbow]))
    for outward, knee, ankle in zip((-0.035, 0.035), KNEES, ANKLES, strict=True):
        shank = unit(joints[ankle] - joints[knee])
        ahead = -1j * shank  # to the right of the picture for a leg that stands
        toe = (outward * (1 - abs(yaw)) + 0.075 * yaw) * ahead + 0.022 * shank
        tips.append(joints[ankle] + size * toe)
    return tips
