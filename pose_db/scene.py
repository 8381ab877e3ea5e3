"""Several people in one space: put them on the ground, bring hands and feet where they belong, keep them within joint limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .keypoints import KEYPOINTS, MIRRORED
from .reach import limb_columns, solve_limb
from .skeleton import SIDES, Posture, angle_limits, forward, ground_gap

STANDARD_HEIGHT = 1.70  # metres; authored distances between people are for people of this height

# Own frame of every anchor: offsets from it turn with that part of the body.
_PART_FRAME = {
    "head": "head",
    "nose": "head",
    "eye": "head",
    "ear": "head",
    "neck": "chest",
    "shoulder": "chest",
    "elbow": "chest",
    "wrist": "chest",
    "chest": "chest",
    "belly": "pelvis",
    "pelvis": "pelvis",
    "hip": "pelvis",
    "knee": "yaw",
    "ankle": "yaw",
    "ground": "yaw",
}
ANCHORS = (*KEYPOINTS, "head", "chest", "belly", "pelvis", "ground")


@dataclass(frozen=True)
class Reach:
    """A hand or foot that goes to a point instead of having its joint angles given.

    Attributes:
        limb: ``left_arm``, ``right_arm``, ``left_leg`` or ``right_leg``.
        anchor: a name of ``ANCHORS``, or ``meet``: on the ground halfway between the two people.
        person: whose anchor, or None for the own one.
        offset: from the anchor, in body heights of its owner (feet: in leg lengths). Out (away from the middle, on the limb's own
            side), up, forward for an own anchor; left, up, forward for another person's; x, y, z of the scene for ``meet``.
        hint: out, up, forward: where elbow or knee points.
    """

    limb: str
    anchor: str
    person: int | None
    offset: tuple[float, float, float]
    hint: tuple[float, float, float]


@dataclass(frozen=True)
class PersonPose:
    """One person of an action.

    Attributes:
        angles: (27,) degrees.
        reaches: limbs that go to a point.
        lift: height of the lowest point above the ground, in body heights.
        place: x (left of the scene's front) and z (towards the camera) in metres.
        ride: None, or the person and anchor that carry this one, and the offset of the pelvis from there (left, up, forward of
            that person, in this person's heights).
        flexible: use the wider joint limits.
    """

    angles: np.ndarray
    reaches: tuple[Reach, ...]
    lift: float
    place: tuple[float, float]
    ride: tuple[int, str, tuple[float, float, float]] | None
    flexible: bool


@dataclass
class Scene:
    """People in space for N variations.

    Attributes:
        joints: (N, P, 18, 3) metres.
        head: (N, P, 3) middle of each head.
        head_frame: (N, P, 3, 3) axes left, up, forward of each head as columns.
        thickness: (N, P) stature times girth, metres: scales the body's volume.
        head_height: (N, P) chin to crown, metres.
        misses: (N, P) largest distance in metres between a reaching limb's end and its target.
        strains: (N, P) largest angle in degrees that a reaching limb would need beyond its limits.
    """

    joints: np.ndarray
    head: np.ndarray
    head_frame: np.ndarray
    thickness: np.ndarray
    head_height: np.ndarray
    misses: np.ndarray
    strains: np.ndarray

    def mirrored(self, which: np.ndarray) -> Scene:
        """The scene with left and right exchanged in the variations where ``which``, (N,) bool, is true."""
        flip = np.array([-1.0, 1.0, 1.0])
        pick = which[:, None, None, None]
        joints = np.where(pick, self.joints[:, :, list(MIRRORED)] * flip, self.joints)
        head = np.where(pick[..., 0], self.head * flip, self.head)
        # Mirroring turns a left axis into a right one, so that column is negated once more to stay "left".
        frame = np.where(pick, self.head_frame * flip[:, None] * flip, self.head_frame)
        return Scene(joints, head, frame, self.thickness, self.head_height, self.misses, self.strains)


def anchor_point(posture: Posture, anchor: str) -> tuple[np.ndarray, np.ndarray]:
    """Position (N, 3) and frame (N, 3, 3) of a named point of the body."""
    part = anchor.rpartition("_")[2]
    frame = posture.frames[_PART_FRAME[part]]
    if anchor == "head":
        return posture.head, frame
    if anchor == "ground":
        return posture.pelvis * np.array([1.0, 0.0, 1.0]), frame
    if anchor in ("pelvis", "belly", "chest"):
        share = {"pelvis": 0.0, "belly": 0.35, "chest": 0.75}[anchor]
        return posture.pelvis + share * (posture.joint("neck") - posture.pelvis), frame
    return posture.joint(anchor), frame


def _target(person: int, reach: Reach, postures: Sequence[Posture]) -> np.ndarray:
    """Where a hand should go, (N, 3) metres."""
    own = postures[person]
    if reach.anchor == "meet":
        other = postures[reach.person or 0]
        height = 0.5 * (own.length("height") + other.length("height"))
        middle = 0.5 * (own.pelvis + other.pelvis) * np.array([1.0, 0.0, 1.0])
        return middle + height[:, None] * np.array(reach.offset)
    owner = own if reach.person is None else postures[reach.person]
    offset = np.array(reach.offset)
    if reach.person is None and reach.limb.startswith("right"):
        offset = offset * np.array([-1.0, 1.0, 1.0])
    point, frame = anchor_point(owner, reach.anchor)
    return point + owner.length("height")[:, None] * np.einsum("nij,j->ni", frame, offset)


def _move_limb(
    person: PersonPose, angles: np.ndarray, posture: Posture, reach: Reach, end: np.ndarray
) -> tuple[Posture, np.ndarray, np.ndarray]:
    """Bring one limb to ``end``, (N, 3); returns the new posture, the miss in metres and the strain in degrees, both (N,)."""
    side, kind = reach.limb.split("_")
    hint = np.array(reach.hint) * np.array([1.0 if side == "left" else -1.0, 1.0, 1.0])
    hint = np.einsum("nij,j->ni", posture.frames["yaw" if kind == "leg" else "chest"], hint)
    angles[:, limb_columns(reach.limb)], strain = solve_limb(posture, reach.limb, end, hint, person.flexible)
    moved = forward(angles, posture.lengths)
    moved.move(posture.pelvis - moved.pelvis)
    miss = np.linalg.norm(moved.joint(f"{side}_{'ankle' if kind == 'leg' else 'wrist'}") - end, axis=-1)
    return moved, miss, strain


def _feet(person: PersonPose, angles: np.ndarray, lengths: np.ndarray) -> tuple[Posture, np.ndarray, np.ndarray]:
    """Posture with the feet where they should be relative to the pelvis, with its miss and strain."""
    posture = forward(angles, lengths)
    worst = np.zeros((2, len(angles)))
    leg = (posture.length("thigh") + posture.length("shank"))[:, None]
    for reach in person.reaches:
        if not reach.limb.endswith("leg"):
            continue
        sign = 1.0 if reach.limb.startswith("left") else -1.0
        offset = np.einsum("nij,j->ni", posture.frames["yaw"], np.array(reach.offset) * np.array([sign, 1.0, 1.0]))
        posture, *found = _move_limb(person, angles, posture, reach, posture.pelvis + leg * offset)
        worst = np.maximum(worst, found)
    return posture, worst[0], worst[1]


def _settle(
    person: PersonPose, angles: np.ndarray, lengths: np.ndarray, scale: np.ndarray, others: Sequence[Posture]
) -> tuple[Posture, np.ndarray, np.ndarray]:
    """Posture of one person at its place: on the ground, or carried by one of ``others``."""
    posture, miss, strain = _feet(person, angles, lengths)
    height = posture.length("height")
    if person.ride is not None:
        carrier, anchor, offset = person.ride
        point, _ = anchor_point(others[carrier], anchor)
        frame = others[carrier].frames["yaw"]
        posture.move(point + height[:, None] * np.einsum("nij,j->ni", frame, np.array(offset)) - posture.pelvis)
        return posture, miss, strain
    free = tuple(side for side in SIDES if any(reach.limb == f"{side}_arm" for reach in person.reaches))
    shift = np.zeros((len(angles), 3))
    shift[:, 1] = person.lift * height - ground_gap(posture, free)
    shift[:, [0, 2]] = scale[:, None] * np.array(person.place)
    posture.move(shift)
    return posture, miss, strain


def solve_scene(people: Sequence[PersonPose], angles: np.ndarray, lengths: np.ndarray, wobble: np.ndarray) -> Scene:
    """Place the people of an action and move their limbs to their targets.

    Args:
        people: P authored persons.
        angles: (N, P, 27) degrees, the authored angles of N variations (clipped to the joint limits here).
        lengths: (N, P, 12) metres.
        wobble: (N, P, 3) metres added to the target of every reaching hand.
    """
    scale = lengths[:, :, 0].mean(axis=1) / STANDARD_HEIGHT
    angles = angles.copy()
    postures: list[Posture] = []
    misses, strains = np.zeros(lengths.shape[:2]), np.zeros(lengths.shape[:2])
    for number, person in enumerate(people):
        low, high = angle_limits(person.flexible)
        angles[:, number] = np.clip(angles[:, number], low, high)
        posture, misses[:, number], strains[:, number] = _settle(
            person, angles[:, number], lengths[:, number], scale, postures
        )
        postures.append(posture)
    hands = [(i, reach) for i, person in enumerate(people) for reach in person.reaches if reach.limb.endswith("arm")]
    # Hands that hold another hand or elbow wait until that one is where it belongs.
    hands.sort(key=lambda item: item[1].anchor.endswith(("wrist", "elbow")))
    for number, reach in hands:
        end = _target(number, reach, postures) + wobble[:, number]
        postures[number], miss, strain = _move_limb(people[number], angles[:, number], postures[number], reach, end)
        misses[:, number] = np.maximum(misses[:, number], miss)
        strains[:, number] = np.maximum(strains[:, number], strain)
    return Scene(
        joints=np.stack([posture.joints for posture in postures], axis=1),
        head=np.stack([posture.head for posture in postures], axis=1),
        head_frame=np.stack([posture.frames["head"] for posture in postures], axis=1),
        thickness=np.stack([posture.length("height") * posture.length("girth") for posture in postures], axis=1),
        head_height=np.stack([posture.length("head") for posture in postures], axis=1),
        misses=misses,
        strains=strains,
    )
