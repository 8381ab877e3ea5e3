"""Inverse kinematics of one arm or leg: joint angles that bring a wrist or an ankle to a point.

Two bones leave one freedom, the swivel of the elbow or knee about the line from the limb's root to its end. The swivel nearest to
the wanted direction at which every joint is within its limits is taken. (Tolani, Goswami and Badler, "Real-time inverse kinematics
techniques for anthropomorphic limbs", Graphical Models 2000, section 3.)
"""

from __future__ import annotations

import numpy as np

from .skeleton import ANGLE_INDEX, ARM, LEG, Posture, angle_limits

_SWIVELS = np.array([0.0, *(sign * step for step in range(10, 181, 10) for sign in (1, -1))])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _middle_joints(root: np.ndarray, end: np.ndarray, upper: np.ndarray, lower: np.ndarray, hint: np.ndarray):
    """Elbow or knee positions for every swivel, and the end point moved within reach.

    Args:
        root, end, hint: (N, 3) root of the limb, wanted end, direction in which the middle joint should point.
        upper, lower: (N,) bone lengths.

    Returns:
        (N, S, 3) middle joints and (N, 3) end points.
    """
    line = end - root
    distance = np.linalg.norm(line, axis=-1)
    reach = np.clip(distance, np.abs(upper - lower) * 1.001 + 1e-6, (upper + lower) * 0.9995)
    axis = _unit(line)
    across = _unit(hint - np.sum(hint * axis, axis=-1, keepdims=True) * axis)
    third = np.cross(axis, across)
    along = (upper**2 - lower**2 + reach**2) / (2 * reach)
    radius = np.sqrt(np.maximum(upper**2 - along**2, 0.0))
    turn = np.radians(_SWIVELS)[None, :, None]
    circle = np.cos(turn) * across[:, None] + np.sin(turn) * third[:, None]
    middle = root[:, None] + along[:, None, None] * axis[:, None] + radius[:, None, None] * circle
    return middle, root + reach[:, None] * axis


def limb_angles(parent: np.ndarray, upper: np.ndarray, lower: np.ndarray, side: str, leg: bool) -> np.ndarray:
    """The two sets of joint angles that give a limb its bone directions.

    Args:
        parent: (..., 3, 3) frame of the chest (arm) or pelvis (leg).
        upper, lower: (..., 3) unit directions of the two bones.
        side: ``left`` or ``right``.
        leg: whether the middle joint bends backward.

    Returns:
        (..., 2, 4) flexion, abduction, rotation and bend in degrees.
    """
    mirror = np.array([1.0 if side == "left" else -1.0, 1.0, 1.0])
    local = np.einsum("...ji,...j->...i", parent, upper) * mirror
    local_lower = np.einsum("...ji,...j->...i", parent, lower) * mirror
    bend = np.degrees(np.arccos(np.clip(np.sum(upper * lower, axis=-1), -1.0, 1.0)))
    flexion = np.arctan2(local[..., 2], -local[..., 1])
    abduction = np.arcsin(np.clip(local[..., 0], -1.0, 1.0))
    # Undo flexion and abduction on the lower bone: what is left of it sideways is the limb's own rotation.
    sin_f, cos_f = np.sin(flexion), np.cos(flexion)
    up = cos_f * local_lower[..., 1] - sin_f * local_lower[..., 2]
    ahead = sin_f * local_lower[..., 1] + cos_f * local_lower[..., 2]
    out = np.cos(abduction) * local_lower[..., 0] + np.sin(abduction) * up
    turn = np.arctan2(out, -ahead) if leg else np.arctan2(-out, ahead)
    turn = np.where(bend > 1.0, turn, 0.0)
    first = np.degrees(np.stack([flexion, abduction, turn], axis=-1))
    second = first + np.array([180.0, 0.0, 180.0])
    second[..., 1] = 180.0 - first[..., 1]
    both = np.stack([first, second], axis=-2)
    both[..., 0] = (both[..., 0] + 90.0) % 360.0 - 90.0
    both[..., 2] = (both[..., 2] + 180.0) % 360.0 - 180.0
    return np.concatenate([both, np.broadcast_to(bend[..., None, None], (*both.shape[:-1], 1))], axis=-1)


def solve_limb(
    posture: Posture, limb: str, end: np.ndarray, hint: np.ndarray, flexible: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Joint angles that bring a wrist or ankle to a point, as far as the limb reaches.

    Args:
        posture: N people.
        limb: ``left_arm``, ``right_arm``, ``left_leg`` or ``right_leg``.
        end: (N, 3) where the wrist or ankle should be, metres.
        hint: (N, 3) direction in which elbow or knee should point.
        flexible: use the wider joint limits.

    Returns:
        (N, 4) flexion, abduction, rotation and bend in degrees, and (N,) how far in degrees the best swivel still is outside the
        joint limits (0 when it is within).
    """
    side, kind = limb.split("_")
    leg = kind == "leg"
    root = posture.joint(f"{side}_{'hip' if leg else 'shoulder'}")
    upper = posture.length("thigh" if leg else "upper_arm")
    lower = posture.length("shank" if leg else "forearm")
    middle, end = _middle_joints(root, end, upper, lower, hint)
    parent = posture.frames["pelvis" if leg else "chest"]
    options = limb_angles(
        np.broadcast_to(parent[:, None], (*middle.shape[:2], 3, 3)),
        _unit(middle - root[:, None]),
        _unit(end[:, None] - middle),
        side,
        leg,
    )
    low, high = (limits[limb_columns(limb)] for limits in angle_limits(flexible))
    outside = np.sum(np.maximum(low - options, 0.0) + np.maximum(options - high, 0.0), axis=-1)
    # Limits first, then the swivel asked for, then the smaller angles of two that mean the same.
    cost = 1e3 * outside + np.abs(_SWIVELS)[None, :, None] + 1e-3 * np.abs(options).sum(axis=-1)
    people = np.arange(len(root))
    best = cost.reshape(len(root), -1).argmin(axis=1)
    chosen = options.reshape(len(root), -1, 4)[people, best]
    return np.clip(chosen, low, high), outside.reshape(len(root), -1)[people, best]


def limb_columns(limb: str) -> list[int]:
    """Columns of a limb's four angles in ``ANGLES``."""
    side, kind = limb.split("_")
    return [ANGLE_INDEX[f"{side}_{name}"] for name in (LEG if kind == "leg" else ARM)]
