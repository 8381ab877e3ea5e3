"""A pinhole camera: where keypoints of people in space fall on a canvas, and which of them the camera cannot see.

Axes as in ``skeleton``. The camera looks at the middle of the scene from ``azimuth`` degrees (0 in front of a person at
yaw 0, 90 on that person's left, 180 behind) and ``elevation`` degrees (positive looks down), from ``distance`` metres. The
picture is then scaled and shifted until what the crop asks for fits the canvas, as a photographer zooms and crops: neither
changes the perspective.

A keypoint is hidden when the line of sight to it passes through a part of somebody's body (capsules and heads), or, on a
head, when its side of the head faces away. Hidden keypoints keep their place with a low confidence, as a pose estimator
guesses them; keypoints outside the canvas get confidence 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .keypoints import KEYPOINT_INDEX
from .scene import Scene

# Capsules: two keypoints and a radius in body heights. Winter's figure gives no depths; these radii follow from limb circumferences
# of an adult of average build.
_CAPSULES = (
    ("left_shoulder", "left_elbow", 0.026),
    ("left_elbow", "left_wrist", 0.021),
    ("right_shoulder", "right_elbow", 0.026),
    ("right_elbow", "right_wrist", 0.021),
    ("left_hip", "left_knee", 0.042),
    ("left_knee", "left_ankle", 0.028),
    ("right_hip", "right_knee", 0.042),
    ("right_knee", "right_ankle", 0.028),
)
_LOWEST_CAMERA = 0.1  # metres above the ground
_TRUNK_RADIUS = 0.058
_TRUNK_SHARE = 0.5  # where the trunk's two columns begin, on the way from neck to shoulder
_HEAD_RADIUS = 0.44  # of the head's height
_SEEN_UP_TO = {
    "nose": 108.0,
    "eye": 86.0,
    "ear": 116.0,
}  # degrees between outward and the camera
_OUTWARD = {
    "nose": (0.0, 0.0, 1.0),
    "right_eye": (-0.34, 0.0, 0.94),
    "left_eye": (0.34, 0.0, 0.94),
    "right_ear": (-1.0, 0.0, 0.0),
    "left_ear": (1.0, 0.0, 0.0),
}

# Keypoints that lie in or on each capsule (limbs, trunk columns, head) and are never hidden by it.
_CAPSULE_KEYPOINTS = (
    ("left_shoulder", "left_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"),
    ("left_hip", "left_knee"),
    ("left_knee", "left_ankle"),
    ("right_hip", "right_knee"),
    ("right_knee", "right_ankle"),
    ("neck", "left_shoulder", "left_hip"),
    ("neck", "right_shoulder", "right_hip"),
    ("neck", "nose", "right_eye", "left_eye", "right_ear", "left_ear"),
)


@dataclass
class View:
    """Cameras of N variations.

    Attributes:
        azimuth, elevation: (N,) degrees.
        distance: (N,) metres from the middle of the scene.
        crop: N names of ``actions.CROPS``.
        canvas: (N, 2) width and height in pixels.
        margin: (N,) empty share of the canvas on each side.
    """

    azimuth: np.ndarray
    elevation: np.ndarray
    distance: np.ndarray
    crop: list[str]
    canvas: np.ndarray
    margin: np.ndarray


def camera_axes(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Right, down and viewing direction of cameras as rows, (N, 3, 3)."""
    turn, tilt = np.radians(azimuth), np.radians(elevation)
    zero = np.zeros_like(turn)
    back = np.stack([np.sin(turn) * np.cos(tilt), np.sin(tilt), np.cos(turn) * np.cos(tilt)], axis=-1)
    right = np.stack([np.cos(turn), zero, -np.sin(turn)], axis=-1)
    return np.stack([right, np.cross(right, back), -back], axis=-2)


def project(points: np.ndarray, position: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Pinhole projection: x / depth to the right and y / depth downward.

    Args:
        points: (N, K, 3) metres.
        position: (N, 3) camera centres.
        axes: (N, 3, 3) rows right, down, viewing direction.

    Returns:
        (N, K, 2) picture coordinates at focal length 1.

    Raises:
        ValueError: a point is not in front of its camera.
    """
    seen = np.einsum("nij,nkj->nki", axes, points - position[:, None])
    if (seen[..., 2] <= 0).any():
        raise ValueError("a point lies behind the camera: move the camera away")
    return seen[..., :2] / seen[..., 2:]


def _crop_line(scene: Scene, flat: np.ndarray, crop: str, row: int) -> float:
    """Picture height at which a crop cuts the people off, at focal length 1."""
    joints = flat[row].reshape(scene.joints.shape[1], 18, 2)[..., 1]
    upper, lower = ("hip", "knee") if crop == "waist" else ("knee", "ankle")
    high = np.mean([joints[:, KEYPOINT_INDEX[f"{side}_{upper}"]] for side in ("left", "right")])
    low = np.mean([joints[:, KEYPOINT_INDEX[f"{side}_{lower}"]] for side in ("left", "right")])
    return float(high + (0.12 if crop == "waist" else 0.15) * (low - high))


def _fit(box: np.ndarray, canvas: np.ndarray, margin: float, cut: float | None) -> tuple[float, np.ndarray]:
    """Zoom and shift that put a box (left, top, right, bottom) on a canvas; ``cut`` moves the canvas' lower edge there."""
    room = canvas * (1 - 2 * margin)
    size = np.maximum(box[2:] - box[:2], 1e-6)
    zoom = float(np.min(room / size))
    shift = canvas / 2 - zoom * (box[:2] + box[2:]) / 2
    if cut is not None:
        top = canvas[1] * margin
        zoom = min(float((canvas[1] - top) / (cut - box[1])), float(room[0] / size[0]))
        shift = np.array([canvas[0] / 2 - zoom * (box[0] + box[2]) / 2, canvas[1] - zoom * cut])
    return zoom, shift


def photograph(scene: Scene, view: View, confidence: np.ndarray, hidden_confidence: np.ndarray) -> np.ndarray:
    """Keypoints of every person on the canvas.

    Args:
        scene: N variations of P people.
        view: N cameras.
        confidence, hidden_confidence: (N, P, 18) confidence of a keypoint that is seen and of one that is hidden.

    Returns:
        (N, P, 18, 3) x, y in pixels and confidence; all three 0 outside the canvas.
    """
    count, people = scene.joints.shape[:2]
    joints = scene.joints.reshape(count, people * 18, 3)
    middle = 0.5 * (joints.min(axis=1) + joints.max(axis=1))
    # A camera that looks up stands on the ground at the lowest, not under it.
    lowest = np.degrees(np.arcsin(np.clip((_LOWEST_CAMERA - middle[:, 1]) / view.distance, -1.0, 1.0)))
    axes = camera_axes(view.azimuth, np.maximum(view.elevation, lowest))
    position = middle - view.distance[:, None] * axes[:, 2]
    flat = project(joints, position, axes)
    outline = project(_outline(scene), position, axes)
    pixels = np.zeros((count, people * 18, 2))
    for row in range(count):
        pixels[row] = _to_canvas(scene, view, flat, outline, row)
    seen = ~hidden(scene, position)
    result = np.zeros((count, people, 18, 3))
    result[..., :2] = pixels.reshape(count, people, 18, 2)
    result[..., 2] = np.where(seen, confidence, hidden_confidence)
    limit = view.canvas[:, None, None, :] - 1
    inside = np.all((result[..., :2] >= 0) & (result[..., :2] <= limit), axis=-1, keepdims=True)
    return np.where(inside, result, 0.0)


def _outline(scene: Scene) -> np.ndarray:
    """Keypoints plus crowns, soles and hands, (N, K, 3): what a full-body picture has to hold."""
    crown = scene.head + 0.5 * scene.head_height[..., None] * scene.head_frame[..., 1]
    extra = [crown]
    for side in ("left", "right"):
        ankle = scene.joints[:, :, KEYPOINT_INDEX[f"{side}_ankle"]]
        knee = scene.joints[:, :, KEYPOINT_INDEX[f"{side}_knee"]]
        wrist = scene.joints[:, :, KEYPOINT_INDEX[f"{side}_wrist"]]
        elbow = scene.joints[:, :, KEYPOINT_INDEX[f"{side}_elbow"]]
        extra += [ankle + 0.2 * (ankle - knee), wrist + 0.5 * (wrist - elbow)]
    points = np.concatenate([scene.joints, np.stack(extra, axis=2)], axis=2)
    return points.reshape(len(points), -1, 3)


def _to_canvas(scene: Scene, view: View, flat: np.ndarray, outline: np.ndarray, row: int) -> np.ndarray:
    """Pixels of one variation's keypoints, (P * 18, 2)."""
    crop, canvas = view.crop[row], view.canvas[row].astype(np.float64)
    margin = float(view.margin[row]) + (0.12 if crop == "wide" else 0.0)
    points, cut = outline[row], None
    if crop in ("waist", "knees"):
        cut = _crop_line(scene, flat, crop, row)
        points = points[points[:, 1] <= cut]
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    zoom, shift = _fit(box, canvas, margin, cut)
    return zoom * flat[row] + shift


def _capsules(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start (N, C, 3), end (N, C, 3) and radius (N, C) of every body part of every person, person by person."""
    start, end, radius = [], [], []
    neck = scene.joints[:, :, KEYPOINT_INDEX["neck"]]
    for first, second, share in _CAPSULES:
        start.append(scene.joints[:, :, KEYPOINT_INDEX[first]])
        end.append(scene.joints[:, :, KEYPOINT_INDEX[second]])
        radius.append(share * scene.thickness)
    for side in ("left", "right"):
        shoulder = scene.joints[:, :, KEYPOINT_INDEX[f"{side}_shoulder"]]
        top = neck + _TRUNK_SHARE * (shoulder - neck)
        hip = scene.joints[:, :, KEYPOINT_INDEX[f"{side}_hip"]]
        start.append(top + 0.12 * (hip - top))
        end.append(hip)
        radius.append(_TRUNK_RADIUS * scene.thickness)
    start.append(scene.head)
    end.append(scene.head)
    radius.append(_HEAD_RADIUS * scene.head_height)
    count = len(scene.joints)
    stacked = [np.stack(parts, axis=2).reshape(count, -1, 3) for parts in (start, end)]
    return stacked[0], stacked[1], np.stack(radius, axis=2).reshape(count, -1)


def hidden(scene: Scene, position: np.ndarray) -> np.ndarray:
    """Which keypoints cameras at ``position``, (N, 3) metres, cannot see: (N, P, 18) bool."""
    count, people = scene.joints.shape[:2]
    points = scene.joints.reshape(count, -1, 3)
    start, end, radius = _capsules(scene)
    distance, before = _sight_distance(points, position, start, end)
    covered = (distance < 0.85 * radius[:, None]) & (before > 0.9 * radius[:, None])
    own = np.zeros((people * 18, radius.shape[1]), dtype=bool)
    parts = len(_CAPSULE_KEYPOINTS)
    for person in range(people):
        for capsule, names in enumerate(_CAPSULE_KEYPOINTS):
            own[[person * 18 + KEYPOINT_INDEX[name] for name in names], person * parts + capsule] = True
    result = (covered & ~own).any(axis=2).reshape(count, people, 18)
    for name, direction in _OUTWARD.items():
        outward = np.einsum("npij,j->npi", scene.head_frame, np.array(direction) / np.linalg.norm(direction))
        towards = position[:, None] - scene.head
        towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
        angle = np.degrees(np.arccos(np.clip(np.sum(outward * towards, axis=-1), -1.0, 1.0)))
        result[..., KEYPOINT_INDEX[name]] |= angle > _SEEN_UP_TO[name.rpartition("_")[2]]
    return result


def _sight_distance(
    points: np.ndarray, position: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How near every line of sight passes to every capsule's core, and how far in front of its keypoint.

    The closest points of two segments (Ericson, "Real-Time Collision Detection", 2005, section 5.1.9).

    Args:
        points: (N, K, 3) keypoints.
        position: (N, 3) cameras.
        start, end: (N, C, 3) capsule cores.

    Returns:
        Two arrays (N, K, C) in metres.
    """
    sight = points - position[:, None]  # (N, K, 3)
    core = end - start  # (N, C, 3)
    between = position[:, None] - start  # (N, C, 3)
    a = np.sum(sight**2, axis=-1)[:, :, None]
    e = np.maximum(np.sum(core**2, axis=-1), 1e-12)[:, None]
    b = np.einsum("nki,nci->nkc", sight, core)
    c = np.einsum("nki,nci->nkc", sight, between)
    f = np.sum(core * between, axis=-1)[:, None]
    s = np.clip((b * f - c * e) / np.maximum(a * e - b * b, 1e-12), 0.0, 1.0)
    t = np.clip((b * s + f) / e, 0.0, 1.0)
    s = np.clip((b * t - c) / a, 0.0, 1.0)
    gap = between[:, None] + s[..., None] * sight[:, :, None] - t[..., None] * core[:, None]
    return np.linalg.norm(gap, axis=-1), (1.0 - s) * np.sqrt(a)
