"""The two-stage pose check on bodies of the kinematic skeleton: sound ones pass, spoilt ones do not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from comfyui_ensemble.pose_db.anatomy import anatomy_problems, widest_angle
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, MIRRORED, frame_from_people
from comfyui_ensemble.pose_db.people_count import people_in_prompt
from comfyui_ensemble.pose_db.quality import (
    OKS_SIGMAS,
    QualityLimits,
    check_pose,
    keypoint_similarity,
    report,
    visibility_problems,
)
from comfyui_ensemble.pose_db.skeleton import ANGLE_INDEX, ANGLES, BODIES, angle_limits, body_lengths, forward

CANVAS = 1024
LIMITS = QualityLimits()
FACE = {"nose": ((0, 0, 1), 108), "right_eye": ((-0.34, 0, 0.94), 86), "left_eye": ((0.34, 0, 0.94), 86)}
FACE |= {"right_ear": ((-1, 0, 0), 116), "left_ear": ((1, 0, 0), 116)}


def photograph(
    angles: Mapping[str, float] | np.ndarray, bodies=("person",), distance: float = 4.0, tilt: float = 0.0
) -> np.ndarray:
    """Pinhole pictures of upright-standing bodies with these joint angles, (N, 18, 3)."""
    values = angles if isinstance(angles, np.ndarray) else np.zeros((1, len(ANGLES)))
    for name, value in angles.items() if isinstance(angles, Mapping) else ():
        values[:, ANGLE_INDEX[name]] = value
    posture = forward(values, np.stack([body_lengths(bodies[row % len(bodies)]) for row in range(len(values))]))
    turn = math.radians(tilt)
    up = posture.joints[..., 1] * math.cos(turn) - posture.joints[..., 2] * math.sin(turn)
    towards = posture.joints[..., 1] * math.sin(turn) + posture.joints[..., 2] * math.cos(turn)
    people = np.full((len(values), 18, 3), 0.9)
    people[..., 0] = CANVAS / 2 + 1600 * posture.joints[..., 0] / (distance - towards)
    people[..., 1] = CANVAS / 2 - 1600 * up / (distance - towards)
    camera = np.array([0, math.sin(turn), math.cos(turn)])
    for name, (direction, limit) in FACE.items():
        outward = posture.frames["head"] @ (np.array(direction) / np.linalg.norm(direction))  # (N, 3)
        people[np.degrees(np.arccos(np.clip(outward @ camera, -1, 1))) > limit, KEYPOINT_INDEX[name], 2] = 0
    return people


def random_people(count: int, share: float, seed: int = 0) -> np.ndarray:
    """People of all body types with joint angles anywhere within `share` of the limits, turned any way."""
    source = np.random.default_rng(seed)
    low, high = angle_limits()
    angles = share * source.uniform(low, high, (count, len(ANGLES)))
    angles[:, ANGLE_INDEX["root_yaw"]] = source.uniform(-180, 180, count)
    for name in ("root_pitch", "root_roll"):
        angles[:, ANGLE_INDEX[name]] = source.normal(0, 15, count)
    people = photograph(angles, tuple(BODIES), distance=5.0, tilt=10.0)
    people[..., :2] += source.normal(0, 1.5, people[..., :2].shape)
    return people


def frame(*people: np.ndarray):
    return frame_from_people(np.stack(people) if people else np.zeros((0, 18, 3)), CANVAS, CANVAS)


def anatomy(person: np.ndarray) -> list[str]:
    return list(anatomy_problems(person, LIMITS.min_confidence, LIMITS.max_bone_ratio))


def swap(person: np.ndarray, part: str) -> np.ndarray:
    pair = [KEYPOINT_INDEX[f"{side}_{part}"] for side in ("left", "right")]
    swapped = person.copy()
    swapped[pair] = person[pair[::-1]]
    return swapped


def moved(person: np.ndarray, name: str, x: float, y: float) -> np.ndarray:
    changed = person.copy()
    changed[KEYPOINT_INDEX[name], :2] += (x, y)
    return changed


@pytest.mark.parametrize("share, most", [(0.5, 0.005), (1.0, 0.015)])
def test_sound_bodies_are_rarely_rejected(share, most):
    people = random_people(600, share)
    rejected = sum(
        bool(anatomy(person)) for person in people if not list(visibility_problems(person, (CANVAS, CANVAS), LIMITS))
    )
    assert rejected <= most * len(people)


def test_stray_keypoints_are_found():
    source = np.random.default_rng(1)
    spoilt = 0
    for person in random_people(300, 0.5, seed=1):
        person[source.integers(2, 14), :2] = source.uniform(0, CANVAS, 2)
        spoilt += bool(anatomy(person))
    assert spoilt >= 0.9 * 300


ARMS_OUT = {f"{side}_shoulder_abduction": 70.0 for side in ("left", "right")}
PROFILE = {"root_yaw": 90.0}


def test_common_poses_pass_from_all_around():
    for pose in (
        {},
        ARMS_OUT,
        {"left_knee_flexion": 90, "left_hip_flexion": 90},
        {"trunk_flexion": 60, "right_elbow_flexion": 120},
    ):
        for yaw in range(0, 360, 15):
            assert anatomy(photograph(pose | {"root_yaw": yaw})[0]) == []


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (lambda person: swap(person, "wrist"), "left and right wrist seem swapped"),
        (lambda person: swap(person, "elbow"), "left and right elbow seem swapped"),
        (lambda person: swap(person, "shoulder"), "contradict each other"),
        (lambda person: swap(person, "hip"), "contradict each other"),
        (lambda person: person[list(MIRRORED)], "left and right of the face are swapped"),
        (lambda person: moved(person, "left_wrist", 400, 0), "left elbow to left wrist is"),
        (lambda person: moved(person, "right_ankle", 0, 450), "right knee to right ankle is"),
        (lambda person: moved(person, "left_ear", 300, 0), "the left ear is too far from the nose"),
        (lambda person: moved(person, "nose", 0, 190), "the neck is bent further than it can be"),
        (lambda person: np.concatenate([person[:1, :2].repeat(18, 0), person[:, 2:]], 1), "fall together"),
    ],
)
def test_anatomy_finds_what_no_body_can_look_like(spoil, problem):
    person = photograph(ARMS_OUT)[0]
    assert anatomy(person) == []
    assert any(problem in found for found in anatomy(spoil(person)))


def test_a_knee_that_bends_forward_shows_from_the_side():
    for yaw in (90.0, -90.0):
        person = photograph({"root_yaw": yaw, "left_knee_flexion": 60.0})[0]
        assert anatomy(person) == []
        bent = photograph({"root_yaw": yaw, "left_knee_flexion": -60.0})[0]
        assert anatomy(bent) == ["the left knee bends forward"]


def test_an_elbow_folded_flat_in_the_picture_is_impossible():
    person = moved(photograph(ARMS_OUT)[0], "left_elbow", 20, 0)  # a long upper arm, in the plane of the picture
    shoulder, elbow, wrist = (KEYPOINT_INDEX[f"left_{part}"] for part in ("shoulder", "elbow", "wrist"))
    person[wrist, :2] = person[elbow, :2] + 0.95 * (person[shoulder, :2] - person[elbow, :2])
    assert anatomy(person) == ["the left elbow is bent further than it can be (0 degrees between its bones)"]
    # A short forearm there points at the camera or away from it, which is possible.
    person[wrist, :2] = person[elbow, :2] + 0.4 * (person[shoulder, :2] - person[elbow, :2])
    assert anatomy(person) == []


def test_widest_angle_bounds_every_angle_in_space():
    source = np.random.default_rng(2)
    for _ in range(300):
        first, second = source.normal(size=(2, 3))
        true = math.degrees(math.acos(first @ second / (np.linalg.norm(first) * np.linalg.norm(second))))
        lengths = (float(np.linalg.norm(first)), float(np.linalg.norm(second)))
        widest = widest_angle(first[:2], second[:2], lengths)
        assert widest >= true - 1e-6
        mirrored = np.array([*second[:2], -second[2]])
        other = math.degrees(math.acos(np.clip(first @ mirrored / math.prod(lengths), -1, 1)))
        assert widest == pytest.approx(max(true, other), abs=1e-5)


def test_similarity_is_cocos():
    source = np.random.default_rng(3)
    first = np.concatenate([source.uniform(0, 300, (18, 2)), np.ones((18, 1))], 1)
    second = first + np.concatenate([source.normal(0, 10, (18, 2)), np.zeros((18, 1))], 1)
    second[4, 2] = 0
    area = max(np.ptp(first[:, 0]) * np.ptp(first[:, 1]), _box(second))
    terms = []
    for row in range(18):
        if row != 4:
            distance = (first[row, 0] - second[row, 0]) ** 2 + (first[row, 1] - second[row, 1]) ** 2
            terms.append(math.exp(-distance / (2 * area * (2 * OKS_SIGMAS[row]) ** 2)))
    assert keypoint_similarity(first, second) == pytest.approx(sum(terms) / len(terms))


def _box(person: np.ndarray) -> float:
    shown = person[person[:, 2] > 0]
    return float(np.ptp(shown[:, 0]) * np.ptp(shown[:, 1]))


def test_somebody_found_twice():
    person, other = photograph(ARMS_OUT)[0], photograph(ARMS_OUT)[0]
    other[:, 0] += 150
    assert check_pose(frame(person, other), people=2) == []
    for twin in (moved(person, "nose", 1, 1), person[list(MIRRORED)]):
        findings = check_pose(frame(person, twin, other), people=3)
        assert "people 1 and 2 are one person, found twice" in [str(finding) for finding in findings]


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (lambda person: person * [1, 1, 0.2], "only 0 of 18 keypoints are seen"),
        (lambda person: person * [1, 1, 0.4], "the detector is unsure (mean confidence 0.36"),
        (lambda person: person - np.array([0, 500, 0]), "keypoints lie outside the canvas"),
        (lambda person: person * [0.01, 0.01, 1], "the person is smaller than 5% of the picture"),
        (
            lambda person: np.where(np.isin(np.arange(18), [1, 2, 5, 8])[:, None], 0, person),
            "only 1 of neck, shoulders and hips are seen, 3 are needed",
        ),
    ],
)
def test_first_stage(spoil, problem):
    findings = check_pose(frame(spoil(photograph({})[0])))
    assert any(finding.stage == 1 and problem in str(finding) for finding in findings)


def test_people_are_counted_against_the_prompt():
    person = photograph({})[0]
    assert check_pose(frame(person), "a man waving") == []
    assert check_pose(frame(person), "waving") == []
    assert [str(finding) for finding in check_pose(frame(person), "two men waving")] == [
        "the picture has 1 person, the prompt 2"
    ]
    assert check_pose(frame(person), "two men waving", people=1) == []
    assert [str(finding) for finding in check_pose(frame())] == ["nobody is in the picture"]


def test_thirty_people():
    people = photograph({})
    crowd = np.concatenate([people * [0.2, 0.2, 1] + [29 * row - 20, 0, 0] for row in range(30)])
    assert check_pose(frame_from_people(crowd, CANVAS, CANVAS), people=30) == []


def test_broken_numbers_are_refused():
    person = photograph({})[0]
    person[3, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        check_pose(frame(person))


def test_frames_in_shares_of_the_canvas_are_read_too():
    person = photograph({})[0] / [CANVAS, CANVAS, 1]
    assert check_pose(frame(person), "a man") == []


def test_report_is_in_words():
    findings = check_pose(frame(swap(photograph(ARMS_OUT)[0], "wrist")), "two people")
    assert report(findings, 1).splitlines() == [
        "Rejected:",
        "- person 1: left and right wrist seem swapped",
        "- the picture has 1 person, the prompt 2",
    ]
    assert report([], 2) == "Passed: 2 people."


@pytest.mark.parametrize(
    "prompt, count",
    [
        ("two people shaking hands", 2),
        ("a man and a woman dancing", 2),
        ("two people, a man and a woman, hugging", 2),
        ("two men and a woman", 3),
        ("two men, a woman and a child", 4),
        ("three friends: two men and a woman", 3),
        ("a couple of friends walking", 2),
        ("a pair of young dancers", 2),
        ("a trio of musicians", 3),
        ("a child hugs his mother", 2),
        ("an old man reading, the man sits", 1),
        ("a person throws a ball to another person", 2),
        ("two dancers, one lifts the other", 2),
        ("a woman with one arm raised", 1),
        ("a woman holding two balls", 1),
        ("3 tall young athletic women running", 3),
        ("man and woman dancing", 2),
        ("someone waving", 1),
        ("a yoga teacher helps a student", 2),
        ("a crowd cheering", None),
        ("children playing", None),
        ("juggling", None),
        (f"{'9' * 5000} people", None),
        (f"{'x' * 100_000} and two men", 2),  # in no time, where every letter could begin a word
    ],
    ids=lambda value: str(value)[:40],
)
def test_people_in_prompt(prompt, count):
    assert people_in_prompt(prompt) == count
