"""A kinematic 3D skeleton: body proportions, joint limits and forward kinematics.

Axes: x to the left of a person at yaw 0, y up, z forward; a camera at azimuth 0 looks along -z, so a person's left is on the
right of the picture. Lengths are metres, angles degrees. Every angle is 0 in the upright stand with the arms hanging. Signs:

* ``root_yaw`` turns to the person's left, ``root_pitch`` tips the whole body forward, ``root_roll`` tips it to the left.
* ``trunk_flexion`` bends forward, ``trunk_bend`` to the left, ``trunk_twist`` turns the chest to the left; the same for
  ``neck_flexion``, ``neck_tilt`` and ``neck_turn`` (the head relative to the chest).
* A shoulder or hip is ``flexion`` (about the left-right axis, limb forward), then ``abduction`` in the flexed frame (away
  from the middle; with flexion 90 it opens the limb horizontally), then ``rotation`` about the limb (inward positive). As a
  matrix: ``Rx(-flexion) Rz(abduction) Ry(-rotation)`` on the left side, mirrored on the right.
* An elbow bends forward, a knee backward. ``shrug`` lifts a shoulder.

Proportions: Drillis and Contini, "Body Segment Parameters", New York University 1966, as fractions of stature in Winter,
"Biomechanics and Motor Control of Human Movement". Children: statures near the medians of the WHO growth references (2006,
2007); the larger head and shorter legs follow Snyder et al., "Anthropometry of Infants, Children, and Youths to Age 18",
1977, rounded. Differences between adult builds (man, heavy, ...) are ours.
Joint limits: American Academy of Orthopaedic Surgeons, "Joint Motion: Method of Measuring and Recording", 1965; the neck's
turn is the 80 degrees of the American Medical Association's "Guides to the Evaluation of Permanent Impairment".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .keypoints import KEYPOINT_INDEX, KEYPOINTS

SIDES = ("left", "right")
ARM = ("shoulder_flexion", "shoulder_abduction", "shoulder_rotation", "elbow_flexion")
LEG = ("hip_flexion", "hip_abduction", "hip_rotation", "knee_flexion")

ANGLES = (
    *("root_yaw", "root_pitch", "root_roll"),
    *("trunk_flexion", "trunk_bend", "trunk_twist"),
    *("neck_flexion", "neck_tilt", "neck_turn"),
    *("left_shrug", "right_shrug"),
    *(f"{side}_{name}" for side in SIDES for name in ARM + LEG),
)
ANGLE_INDEX = {name: index for index, name in enumerate(ANGLES)}

# Degrees. Shoulder adduction past the middle is horizontal flexion (135 from the side, so 45 past straight ahead); trunk
# flexion is the spine's alone (hips bend on their own). Shrug is not in the AAOS tables: a usual textbook value of the
# collarbone's elevation.
JOINT_LIMITS = {
    "root_yaw": (-360.0, 360.0),
    "root_pitch": (-180.0, 180.0),
    "root_roll": (-180.0, 180.0),
    "trunk_flexion": (-30.0, 80.0),
    "trunk_bend": (-35.0, 35.0),
    "trunk_twist": (-45.0, 45.0),
    "neck_flexion": (-45.0, 45.0),
    "neck_tilt": (-45.0, 45.0),
    "neck_turn": (-80.0, 80.0),
    "shrug": (-5.0, 40.0),
    "shoulder_flexion": (-60.0, 180.0),
    "shoulder_abduction": (-45.0, 180.0),
    "shoulder_rotation": (-90.0, 70.0),
    "elbow_flexion": (0.0, 150.0),
    "hip_flexion": (-30.0, 120.0),
    "hip_abduction": (-30.0, 45.0),
    "hip_rotation": (-45.0, 45.0),
    "knee_flexion": (0.0, 135.0),
}
# What an action may use that says "flexible": ranges under the body's own weight (kneeling on the heels, a deep squat) and
# of trained dancers, gymnasts and martial artists. An allowance of this project, not a table of the AAOS.
FLEXIBLE_LIMITS = JOINT_LIMITS | {
    "trunk_flexion": (-50.0, 95.0),
    "neck_flexion": (-60.0, 60.0),
    "shoulder_flexion": (-80.0, 190.0),
    "shoulder_rotation": (-110.0, 95.0),
    "hip_flexion": (-70.0, 150.0),
    "hip_abduction": (-35.0, 90.0),
    "hip_rotation": (-75.0, 60.0),
    "knee_flexion": (0.0, 160.0),
}

LENGTHS = (
    *("height", "ankle", "shank", "thigh", "hip_half", "trunk", "shoulder_half"),
    *("upper_arm", "forearm", "neck", "head", "girth"),
)
LENGTH_INDEX = {name: index for index, name in enumerate(LENGTHS)}

# Fractions of stature, but for stature itself (metres). "trunk" is hip line to shoulder line, "neck" shoulder line to the
# middle of the head, "head" chin to crown; hip joints sit inside the 0.191 breadth of the hips. "girth" scales the thickness
# of the limbs.
_ADULT = {
    "height": 1.70,
    "ankle": 0.039,
    "shank": 0.246,
    "thigh": 0.245,
    "hip_half": 0.055,
    "trunk": 0.288,
    "shoulder_half": 0.124,
    "upper_arm": 0.186,
    "forearm": 0.146,
    "neck": 0.117,
    "head": 0.130,
    "girth": 1.0,
}
_CHILD = _ADULT | {
    "height": 1.27,
    "shank": 0.234,
    "thigh": 0.234,
    "trunk": 0.284,
    "shoulder_half": 0.117,
    "upper_arm": 0.178,
    "forearm": 0.140,
    "neck": 0.122,
    "head": 0.155,
    "girth": 0.98,
}
BODIES: Mapping[str, Mapping[str, float]] = {
    "person": _ADULT,
    "man": _ADULT | {"height": 1.77, "shoulder_half": 0.129},
    "woman": _ADULT | {"height": 1.64, "shoulder_half": 0.115, "hip_half": 0.058, "girth": 0.94},
    "tall": _ADULT | {"height": 1.92, "head": 0.122, "shank": 0.251, "thigh": 0.250, "trunk": 0.280},
    "short": _ADULT | {"height": 1.55, "head": 0.137, "shank": 0.240, "thigh": 0.240, "trunk": 0.292},
    "heavy": _ADULT | {"shoulder_half": 0.136, "hip_half": 0.066, "girth": 1.35},
    "slim": _ADULT | {"shoulder_half": 0.116, "hip_half": 0.051, "girth": 0.82},
    "muscular": _ADULT | {"height": 1.80, "shoulder_half": 0.141, "girth": 1.15},
    "elderly": _ADULT | {"height": 1.63, "trunk": 0.278},
    "teenager": _ADULT | {"height": 1.60, "shoulder_half": 0.119, "head": 0.141, "trunk": 0.282, "girth": 0.88},
    "child": _CHILD,
    "toddler": _CHILD
    | {
        "height": 0.96,
        "shank": 0.213,
        "thigh": 0.213,
        "trunk": 0.295,
        "shoulder_half": 0.118,
        "upper_arm": 0.166,
        "forearm": 0.132,
        "neck": 0.133,
        "head": 0.195,
        "girth": 1.1,
    },
}

# Points of the head in its own frame, as fractions of the head's height from the head's middle: left, up, forward.
_HEAD_POINTS = {
    "nose": (0.0, -0.15, 0.55),
    "right_eye": (-0.14, 0.02, 0.43),
    "left_eye": (0.14, 0.02, 0.43),
    "right_ear": (-0.33, -0.05, 0.0),
    "left_ear": (0.33, -0.05, 0.0),
}

# How far a joint's surface is from its centre, in statures: what touches the ground first.
_CONTACT = {
    "shoulder": 0.055,
    "elbow": 0.028,
    "wrist": 0.028,
    "hip": 0.060,
    "knee": 0.034,
    "nose": 0.012,
    "ear": 0.022,
}


def check_angles(angles: np.ndarray, flexible: bool = False, tolerance: float = 1e-6) -> None:
    """Hold one posture's angles, (27,) in degrees, against the joint limits.

    Raises:
        ValueError: an angle is not finite or outside its limits; the sentence names the joint.
    """
    low, high = angle_limits(flexible)
    for name, value, least, most in zip(ANGLES, angles, low, high, strict=True):
        if not least - tolerance <= value <= most + tolerance:
            raise ValueError(f"{name} is {value:.1f} degrees, outside its limits of {least:.0f} to {most:.0f}")


def angle_limits(flexible: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limit of every angle, each (27,) in degrees."""
    table = FLEXIBLE_LIMITS if flexible else JOINT_LIMITS
    pairs = [table.get(name) or table[name.split("_", 1)[1]] for name in ANGLES]
    low, high = np.array(pairs).T
    return low, high


def body_lengths(body: str, stature: float = 1.0) -> np.ndarray:
    """Lengths of a body type, (12,) in metres in the order of ``LENGTHS`` (the girth stays a factor).

    Args:
        body: a key of ``BODIES``.
        stature: factor on the body type's usual height.
    """
    fractions = np.array([BODIES[body][name] for name in LENGTHS])
    height = fractions[0] * stature
    lengths = fractions * height
    lengths[LENGTH_INDEX["height"]] = height
    lengths[LENGTH_INDEX["girth"]] = fractions[LENGTH_INDEX["girth"]]
    return lengths


def rotation(axis: str, degrees: np.ndarray | float) -> np.ndarray:
    """Right-handed rotation matrices about x, y or z, (..., 3, 3) for angles of shape (...)."""
    radians = np.radians(np.asarray(degrees, dtype=np.float64))
    cos, sin = np.cos(radians), np.sin(radians)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.zeros((*radians.shape, 3, 3))
    matrix[..., "xyz".index(axis), "xyz".index(axis)] = 1.0
    matrix[..., first, first] = matrix[..., second, second] = cos
    matrix[..., second, first] = sin
    matrix[..., first, second] = -sin
    return matrix


@dataclass
class Posture:
    """Joints of N people in space, each with its pelvis where ``joints`` says.

    Attributes:
        joints: (N, 18, 3) keypoints in metres, BODY-18 order.
        pelvis: (N, 3) middle of the hips.
        head: (N, 3) middle of the head.
        frames: ``yaw``, ``pelvis``, ``chest`` and ``head``, each (N, 3, 3) with the axes left, up and forward as columns.
        lengths: (N, 12) body lengths.
    """

    joints: np.ndarray
    pelvis: np.ndarray
    head: np.ndarray
    frames: dict[str, np.ndarray]
    lengths: np.ndarray

    def length(self, name: str) -> np.ndarray:
        """One body length of every person, (N,)."""
        return self.lengths[:, LENGTH_INDEX[name]]

    def joint(self, name: str) -> np.ndarray:
        """One keypoint of every person, (N, 3)."""
        return self.joints[:, KEYPOINT_INDEX[name]]

    def move(self, offset: np.ndarray) -> None:
        """Shift everybody by (N, 3) metres."""
        self.joints += offset[:, None]
        self.pelvis += offset
        self.head += offset


def _limb_frame(parent: np.ndarray, angles: np.ndarray, side: str, joint: str) -> np.ndarray:
    """Frame of an upper arm or thigh from its three joint angles, (N, 3, 3)."""
    sign = 1.0 if side == "left" else -1.0
    flexion, abduction, turn = (
        angles[:, ANGLE_INDEX[f"{side}_{joint}_{name}"]] for name in ("flexion", "abduction", "rotation")
    )
    return parent @ rotation("x", -flexion) @ rotation("z", sign * abduction) @ rotation("y", -sign * turn)


def _spine_step(angles: np.ndarray, part: str, names: tuple[str, str, str], share: float) -> np.ndarray:
    """Rotation of one spine joint: turn, then flexion, then sideways, (N, 3, 3)."""
    flexion, bend, turn = (share * angles[:, ANGLE_INDEX[f"{part}_{name}"]] for name in names)
    return rotation("y", turn) @ rotation("x", flexion) @ rotation("z", -bend)


def forward(angles: np.ndarray, lengths: np.ndarray) -> Posture:
    """Forward kinematics with the pelvis at the origin.

    Args:
        angles: (N, 27) degrees in the order of ``ANGLES``.
        lengths: (N, 12) metres in the order of ``LENGTHS``.
    """
    angles, lengths = np.asarray(angles, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    size = {name: lengths[:, index, None] for name, index in LENGTH_INDEX.items()}
    joints = np.zeros((len(angles), len(KEYPOINTS), 3))
    yaw = rotation("y", angles[:, ANGLE_INDEX["root_yaw"]])
    pelvis = yaw @ rotation("x", angles[:, ANGLE_INDEX["root_pitch"]])
    pelvis = pelvis @ rotation("z", -angles[:, ANGLE_INDEX["root_roll"]])
    # Half of the trunk's motion happens at the hips' end of the spine and half in its middle, so a bow is round.
    step = _spine_step(angles, "trunk", ("flexion", "bend", "twist"), 0.5)
    waist = pelvis @ step
    chest = waist @ step
    head = chest @ _spine_step(angles, "neck", ("flexion", "tilt", "turn"), 1.0)
    collar = 0.5 * size["trunk"] * (waist[..., 1] + chest[..., 1])
    # The head turns about the top of the neck column, a third of the way from shoulder line to head middle.
    skull = collar + size["neck"] * (chest[..., 1] / 3 + head[..., 1] * (2 / 3)) + 0.1 * size["head"] * head[..., 2]
    for name, (left, up, ahead) in _HEAD_POINTS.items():
        point = left * head[..., 0] + up * head[..., 1] + ahead * head[..., 2]
        joints[:, KEYPOINT_INDEX[name]] = skull + size["head"] * point
    for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
        shrug = rotation("z", sign * angles[:, ANGLE_INDEX[f"{side}_shrug"]])
        shoulder = collar + sign * size["shoulder_half"] * (chest @ shrug)[..., 0]
        arm = _limb_frame(chest, angles, side, "shoulder")
        elbow = shoulder - size["upper_arm"] * arm[..., 1]
        lower = arm @ rotation("x", -angles[:, ANGLE_INDEX[f"{side}_elbow_flexion"]])
        hip = sign * size["hip_half"] * pelvis[..., 0]
        leg = _limb_frame(pelvis, angles, side, "hip")
        knee = hip - size["thigh"] * leg[..., 1]
        shank = leg @ rotation("x", angles[:, ANGLE_INDEX[f"{side}_knee_flexion"]])
        points = {
            "shoulder": shoulder,
            "elbow": elbow,
            "wrist": elbow - size["forearm"] * lower[..., 1],
            "hip": hip,
            "knee": knee,
            "ankle": knee - size["shank"] * shank[..., 1],
        }
        for name, point in points.items():
            joints[:, KEYPOINT_INDEX[f"{side}_{name}"]] = point
    # OpenPose has no neck annotation of its own: it is the middle of the shoulders.
    joints[:, KEYPOINT_INDEX["neck"]] = 0.5 * (
        joints[:, KEYPOINT_INDEX["left_shoulder"]] + joints[:, KEYPOINT_INDEX["right_shoulder"]]
    )
    frames = {"yaw": yaw, "pelvis": pelvis, "chest": chest, "head": head}
    return Posture(joints, np.zeros((len(angles), 3)), skull, frames, lengths)


def ground_gap(posture: Posture, free_hands: tuple[str, ...] = ()) -> np.ndarray:
    """Height of the lowest point of every body above y = 0, (N,) in metres.

    Args:
        free_hands: sides whose arm does not count, because it will still be moved to its target.
    """
    height = posture.length("height")
    gaps = [posture.joint(f"{side}_ankle")[:, 1] - posture.length("ankle") for side in SIDES]
    for name in KEYPOINTS:
        side, _, part = name.partition("_")
        thickness = _CONTACT.get(part or side)
        if thickness is None or (part in ("elbow", "wrist") and side in free_hands):
            continue
        gaps.append(posture.joint(name)[:, 1] - thickness * height)
    return np.min(gaps, axis=0)
