"""Placement against the rules written out in plain float64 loops, and what must hold for every placement."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Set

import numpy as np
import pytest

from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, KEYPOINTS
from comfyui_ensemble.pose_db.layout import group_of, lay_out, stature

BODY = "pose_keypoints_2d"
HEAD = ("nose", "right_eye", "left_eye", "right_ear", "left_ear")

# A person in the upright stand with the arms hanging, in statures from the soles up; x to the right of the picture.
STANDING = {
    "nose": (0.0, 0.91),
    "neck": (0.0, 0.818),
    "right_shoulder": (-0.1295, 0.818),
    "right_elbow": (-0.1295, 0.632),
    "right_wrist": (-0.1295, 0.486),
    "left_shoulder": (0.1295, 0.818),
    "left_elbow": (0.1295, 0.632),
    "left_wrist": (0.1295, 0.486),
    "right_hip": (-0.1295, 0.53),
    "right_knee": (-0.1295, 0.285),
    "right_ankle": (-0.1295, 0.039),
    "left_hip": (0.1295, 0.53),
    "left_knee": (0.1295, 0.285),
    "left_ankle": (0.1295, 0.039),
    "right_eye": (-0.02, 0.936),
    "left_eye": (0.02, 0.936),
    "right_ear": (-0.04, 0.93),
    "left_ear": (0.04, 0.93),
}
LEGS = {f"{side}_{joint}" for side in ("right", "left") for joint in ("knee", "ankle")}


def person(x: float, soles: float, height: float, without: Set[str] = frozenset()) -> dict:
    values: list[float] = []
    for name in KEYPOINTS:
        right, up = STANDING[name]
        values += [0.0, 0.0, 0.0] if name in without else [x + right * height, soles - up * height, 1.0]
    return {BODY: values}


def frame(*people: dict, width: int = 512, height: int = 768) -> dict:
    return {"people": list(people), "canvas_width": width, "canvas_height": height}


EMPTY = frame()


def random_frame(rng: random.Random) -> dict:
    """One to four people thrown at random, some keypoints missing or doubtful, some with a hand."""
    width, height = rng.randint(200, 1500), rng.randint(200, 1500)
    people = []
    for _ in range(rng.randint(1, 4)):
        values: list[float] = []
        for _ in range(18):
            sure = rng.choice([0.0, 0.1, 0.2, 0.9, 1.0, 1.0, 1.0])
            values += [rng.uniform(0, width), rng.uniform(0, height), sure]
        people.append({BODY: values})
        if rng.random() < 0.3:
            hand = [(rng.uniform(1, width), rng.uniform(1, height), 0.8) for _ in range(21)]
            people[-1]["hand_left_keypoints_2d"] = [number for point in hand for number in point]
    return {"people": people, "canvas_width": width, "canvas_height": height}


def points(values: list[float]) -> np.ndarray:
    return np.array(values).reshape(-1, 3)


def shown_points(one: dict) -> np.ndarray:
    """(N, 2) of every keypoint of a person that is drawn."""
    found = []
    for part, values in one.items():
        if part.endswith("_2d"):
            for index, (x, y, sure) in enumerate(points(values)):
                limb = part == BODY and KEYPOINTS[index] not in HEAD
                if sure >= (0.15 if limb else 0.3):
                    found.append((x, y))
    return np.array(found).reshape(-1, 2)


def by_subject(laid_out: dict) -> dict[int, np.ndarray]:
    found: dict[int, list[np.ndarray]] = {}
    for one in laid_out["people"]:
        found.setdefault(one["subject"], []).append(shown_points(one))
    return {subject: np.concatenate(parts) for subject, parts in found.items()}


def test_stature_of_somebody_standing_sitting_and_headless():
    body = points(person(100, 700, 650)[BODY])
    assert stature(body) == pytest.approx(650)
    sitting = body.copy()  # thighs point at the camera
    for side in ("right", "left"):
        sitting[KEYPOINT_INDEX[f"{side}_knee"], 1] -= 0.245 * 650
        sitting[KEYPOINT_INDEX[f"{side}_ankle"], 1] -= 0.245 * 650
    assert stature(sitting) == pytest.approx(650)
    portrait = points(person(100, 700, 650, LEGS | {"right_hip", "left_hip"})[BODY])
    assert stature(portrait) == pytest.approx(650)


def side_by_side_oracle(heights: list[float], width: int, height: int) -> list[tuple[float, float, float]]:
    """Scale and offset of standing people, drawn `heights` pixels tall at x = 200, soles at y = 700, by the rules."""
    margin = 0.04 * min(width, height)
    wide = 2 * (0.1295 + 0.108)  # wrist to wrist, and the hands beyond
    tall = max(0.91 + 0.09, 0.936 + 0.064)
    fitting = (width - 2 * margin) / (len(heights) * wide + 0.06 * (len(heights) - 1))
    size = min(fitting, (height - 2 * margin) / tall, height - 2 * margin)
    space = (width - 2 * margin - len(heights) * wide * size) / (len(heights) + 1)
    places = []
    for number, drawn in enumerate(heights):
        scale = size / drawn
        middle = margin + space * (number + 1) + wide * size * (number + 0.5)
        ground = height - margin - (height - 2 * margin - tall * size) / 3
        places.append((scale, middle - scale * 200, ground - scale * 700))
    return places


@pytest.mark.parametrize("size", [(1024, 1024), (1216, 832), (333, 901)])
@pytest.mark.parametrize("heights", [[600.0], [600.0, 300.0], [650.0, 200.0, 431.0, 90.0, 512.0]])
def test_side_by_side_equals_the_rules(size, heights):
    laid_out = lay_out([frame(person(200, 700, drawn)) for drawn in heights], *size)
    assert (laid_out["canvas_width"], laid_out["canvas_height"]) == size
    for one, drawn, (scale, right, down) in zip(
        laid_out["people"], heights, side_by_side_oracle(heights, *size), strict=True
    ):
        before = points(person(200, 700, drawn)[BODY])
        expected = [(scale * x + right, scale * y + down, sure) for x, y, sure in before.tolist()]
        np.testing.assert_allclose(points(one[BODY]), expected, rtol=0, atol=1e-9 * max(size))


@pytest.mark.parametrize("box", [(0, 0, 1024, 768), (100.5, 20, 300, 700), (600, 500, 400, 90)])
def test_in_a_box_equals_the_rules(box):
    one = lay_out([frame(person(200, 700, 400))], 1024, 768, [box])["people"][0]
    wide, tall = 400 * 2 * (0.1295 + 0.108), 400.0
    scale = min(box[2] / wide, box[3] / tall)
    for (x, y, _), (x0, y0, _) in zip(points(one[BODY]), points(person(200, 700, 400)[BODY]), strict=True):
        assert x == pytest.approx(box[0] + box[2] / 2 + scale * (x0 - 200), abs=1e-9)
        assert y == pytest.approx(box[1] + box[3] + scale * (y0 - 700), abs=1e-9)


def check_unstretched(before: dict, after: list[dict]) -> None:
    """One scale and one offset map every person of a subject."""
    old = np.concatenate(
        [points(one[BODY])[points(one[BODY])[:, 2] > 0] for one in before["people"] if len(shown_points(one))]
    )
    new = np.concatenate([points(one[BODY])[points(one[BODY])[:, 2] > 0] for one in after])
    old, new = old[:, :2], new[:, :2]
    spans = [(a - a.mean(axis=0)) for a in (old, new)]
    scale = float((spans[0] * spans[1]).sum() / (spans[0] ** 2).sum())
    assert scale > 0
    np.testing.assert_allclose(spans[1], scale * spans[0], atol=1e-6)


def test_no_two_overlap_all_inside_nobody_stretched():
    rng = random.Random(5)
    for _ in range(200):
        frames = [random_frame(rng) for _ in range(rng.randint(1, 8))]
        width, height = rng.randint(64, 2000), rng.randint(64, 2000)
        laid_out = lay_out(frames, width, height)
        spans = by_subject(laid_out)
        previous = 0.0
        for subject in sorted(spans):
            left, top = spans[subject].min(axis=0)
            right, bottom = spans[subject].max(axis=0)
            assert left >= previous and right <= width and top >= 0 and bottom <= height
            previous = right
            after = [one for one in laid_out["people"] if one["subject"] == subject and len(shown_points(one))]
            check_unstretched(frames[subject], after)
        assert [one["subject"] for one in laid_out["people"]] == sorted(one["subject"] for one in laid_out["people"])


def test_boxes_hold_their_poses():
    rng = random.Random(6)
    for _ in range(100):
        frames = [random_frame(rng) for _ in range(rng.randint(1, 5))]
        boxes = [(rng.uniform(0, 400), rng.uniform(0, 400), rng.uniform(1, 600), rng.uniform(1, 600)) for _ in frames]
        laid_out = lay_out(frames, 1000, 1000, boxes)
        for subject, spot in by_subject(laid_out).items():
            x, y, width, height = boxes[subject]
            assert (spot.min(axis=0) >= [x - 1e-6, y - 1e-6]).all()
            assert (spot.max(axis=0) <= [x + width + 1e-6, y + height + 1e-6]).all()
            check_unstretched(frames[subject], [one for one in laid_out["people"] if one["subject"] == subject])


def test_in_boxes_the_nearer_comes_last_and_equals_keep_their_order():
    poses = [frame(person(200, 700, 400))] * 4
    boxes = [(0, 0, 400, 800), (100, 0, 300, 400), (500, 0, 400, 800), (300, 0, 300, 400)]
    laid_out = lay_out(poses, 1000, 1000, boxes)
    assert [one["subject"] for one in laid_out["people"]] == [1, 3, 0, 2]


def test_a_sitting_person_is_as_near_as_her_stature_not_her_box_says():
    sitting = person(200, 700, 400)
    values = points(sitting[BODY])
    for side in ("right", "left"):
        values[[KEYPOINT_INDEX[f"{side}_knee"], KEYPOINT_INDEX[f"{side}_ankle"]], 1] -= 0.245 * 400
    boxes = [(0, 0, 500, 600), (400, 0, 500, 600)]
    laid_out = lay_out([frame({BODY: values.reshape(-1).tolist()}), frame(person(200, 700, 400))], 1000, 1000, boxes)
    assert [one["subject"] for one in laid_out["people"]] == [1, 0]


def test_a_pose_without_people_keeps_its_place_free():
    standing = frame(person(200, 700, 400))
    one, three = lay_out([standing], 1600, 1000), lay_out([EMPTY, standing, EMPTY], 1600, 1000)
    assert [one["subject"] for one in three["people"]] == [1]
    np.testing.assert_allclose(points(three["people"][0][BODY]), points(one["people"][0][BODY]), atol=1e-9)
    left = by_subject(lay_out([standing, EMPTY], 1600, 1000))[0]
    assert left.max(axis=0)[0] < 800
    assert lay_out([EMPTY, EMPTY], 640, 480) == {"people": [], "canvas_width": 640, "canvas_height": 480}
    assert lay_out([EMPTY], 640, 480, [(0, 0, 10, 10)])["people"] == []


def test_people_nobody_can_see_count_as_none():
    nobody = frame({BODY: [10.0, 10.0, 0.05] * 18})
    assert lay_out([nobody, frame(person(200, 700, 400))], 800, 800)["people"][0]["subject"] == 1


def test_legs_cut_off_get_room_beside_a_standing_person_and_are_cut_again_alone():
    portrait = frame(person(200, 900, 600, LEGS), width=400, height=600)
    whole = frame(person(200, 700, 600))
    both = by_subject(lay_out([portrait, whole], 1000, 1000))
    assert both[0][:, 1].min() == pytest.approx(both[1][:, 1].min(), abs=1e-6)  # one height, one ground
    groups = [group_of(portrait), group_of(whole)]
    assert [group is not None and group.cut_off for group in groups] == [True, False]
    alone = by_subject(lay_out([portrait], 1000, 1000))[0]
    assert np.ptp(alone[:, 1]) > 1.5 * np.ptp(both[0][:, 1])
    tall = stature(points(lay_out([portrait], 1000, 1000)["people"][0][BODY]))
    assert alone[:, 1].max() + 0.108 * tall == pytest.approx(1000)  # down to the finger tips


def test_canvases_of_every_size_and_both_dialects_come_out_alike():
    pixels = frame(person(200, 700, 400))
    larger = frame(person(600, 2100, 1200), width=1536, height=2304)
    shares = copy.deepcopy(pixels)
    values = points(shares["people"][0][BODY]) / [512, 768, 1]
    shares["people"][0][BODY] = values.reshape(-1).tolist()
    expected = by_subject(lay_out([pixels, pixels], 900, 700))
    for other in (larger, shares):
        found = by_subject(lay_out([pixels, other], 900, 700))
        for subject in (0, 1):
            np.testing.assert_allclose(found[subject], expected[subject], atol=1e-9 * 900)


def test_hands_and_feet_come_along_and_missing_keypoints_stay_missing():
    one = person(200, 700, 400, {"nose"})
    x, y, _ = points(one[BODY])[KEYPOINT_INDEX["left_wrist"]]
    one["hand_left_keypoints_2d"] = [x, y, 1.0] * 20 + [-1.0, -1.0, 1.0]
    one["foot_keypoints_2d"] = [x, y, 1.0] * 6
    one["face_keypoints_2d"] = None
    after = lay_out([frame(one)], 1024, 1024)["people"][0]
    wrist = points(after[BODY])[KEYPOINT_INDEX["left_wrist"]]
    hand = points(after["hand_left_keypoints_2d"])
    np.testing.assert_allclose(hand[:20], [wrist] * 20)
    assert hand[20].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(points(after["foot_keypoints_2d"]), [wrist] * 6)
    assert points(after[BODY])[0].tolist() == [0.0, 0.0, 0.0]
    assert "face_keypoints_2d" not in after


def test_thirty_people_in_one_pose_and_thirty_poses():
    crowd = frame(*(person(20 + 16 * index, 700, 400) for index in range(30)))
    assert len(lay_out([crowd], 640, 640)["people"]) == 30
    spans = by_subject(lay_out([frame(person(200, 700, 400))] * 30, 640, 640))
    assert all(spans[index][:, 0].max() < spans[index + 1][:, 0].min() for index in range(29))


def test_a_single_keypoint_is_placed():
    lonely = frame({BODY: [0.0] * 3 * 4 + [100.0, 100.0, 1.0] + [0.0] * 3 * 13})
    spot = by_subject(lay_out([lonely, frame(person(200, 700, 400))], 640, 640))[0]
    assert np.isfinite(spot).all() and (spot >= 0).all() and (spot <= 640).all()


def test_errors_name_the_pose():
    with pytest.raises(ValueError, match=r"in pose 2, person 1 has 25 body keypoints, expected 18 \(BODY-18\)"):
        lay_out([frame(person(200, 700, 400)), frame({BODY: [1.0, 1.0, 1.0] * 25})], 512, 512)
    with pytest.raises(ValueError, match=r"in pose 1, person 1: .* not finite"):
        lay_out([frame({BODY: [math.inf, 1.0, 1.0] * 18})], 512, 512)


def test_inputs_are_left_alone():
    frames = [random_frame(random.Random(seed)) for seed in range(3)]
    before = copy.deepcopy(frames)
    lay_out(frames, 512, 512)
    lay_out(frames, 512, 512, [(0, 0, 100, 100)] * 3)
    assert frames == before
