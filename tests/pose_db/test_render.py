"""Drawn poses: equal to controlnet-aux pixel for pixel, and to the ellipse's own equation where it is not installed."""

from __future__ import annotations

import copy
import importlib.util
import math
import random

import numpy as np
import pytest

from comfyui_ensemble.devtools.bench_pose import controlnet_drawing, controlnet_poses
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, LIMBS, frame_from_people
from comfyui_ensemble.pose_db.render import COLOURS, HAND_JOINT_COLOUR, STICK_COLOURS, render_frame

CONTROLNET = controlnet_drawing() if importlib.util.find_spec("matplotlib") else None  # its hands need both
needs_controlnet_aux = pytest.mark.skipif(CONTROLNET is None, reason="controlnet-aux or matplotlib is not installed")


def random_list(rng: random.Random, count: int, width: int, height: int, spread: float, whole: bool) -> list[float]:
    """x, y, confidence of `count` keypoints, some missing, up to `spread` canvases outside."""
    values: list[float] = []
    for _ in range(count):
        if rng.random() < 0.15:
            values += [0.0, 0.0, 0.0]
            continue
        x, y = (rng.uniform(-spread, 1 + spread) * side for side in (width, height))
        values += [float(round(x)), float(round(y)), 1.0] if whole else [x, y, 1.0]
    return values


def random_frame(seed: int, spread: float = 0.0) -> dict:
    rng = random.Random(seed)
    width, height = rng.randint(40, 700), rng.randint(40, 700)
    people = []
    for _ in range(rng.randint(0, 6)):
        whole = rng.random() < 0.5
        person: dict = {"pose_keypoints_2d": random_list(rng, 18, width, height, spread, whole)}
        for part, count in (
            ("hand_left_keypoints_2d", 21),
            ("hand_right_keypoints_2d", 21),
            ("face_keypoints_2d", rng.choice([68, 70])),
        ):
            if rng.random() < 0.5:
                person[part] = random_list(rng, count, width, height, spread, whole)
            elif rng.random() < 0.5:
                person[part] = None
        people.append(person)
    return {"people": people, "canvas_width": width, "canvas_height": height}


def in_shares(frame: dict) -> dict:
    """The frame in the dialect of the ControlNet preprocessors: shares of the canvas, hands and faces always sure."""
    width, height = frame["canvas_width"], frame["canvas_height"]
    shares = copy.deepcopy(frame)
    for person in shares["people"]:
        for part, values in person.items():
            for start in range(0, len(values or []), 3):
                x, y, sure = values[start : start + 3]
                missing = [0.0, 0.0, 0.0] if part == "pose_keypoints_2d" else [-1 / width, -1 / height, 1.0]
                values[start : start + 3] = [x / width, y / height, 1.0] if sure else missing
    return shares


def standing(width: int = 200, height: int = 300, confidence: float = 1.0) -> np.ndarray:
    """One upright person, (1, 18, 3)."""
    rows = {
        "nose": (0.5, 0.14),
        "neck": (0.5, 0.22),
        "right_shoulder": (0.4, 0.22),
        "right_elbow": (0.35, 0.38),
        "right_wrist": (0.33, 0.5),
        "left_shoulder": (0.6, 0.22),
        "left_elbow": (0.65, 0.38),
        "left_wrist": (0.67, 0.5),
        "right_hip": (0.44, 0.5),
        "right_knee": (0.44, 0.7),
        "right_ankle": (0.44, 0.9),
        "left_hip": (0.56, 0.5),
        "left_knee": (0.56, 0.7),
        "left_ankle": (0.56, 0.9),
        "right_eye": (0.48, 0.12),
        "left_eye": (0.52, 0.12),
        "right_ear": (0.45, 0.13),
        "left_ear": (0.55, 0.13),
    }
    person = np.zeros((1, 18, 3))
    for name, (x, y) in rows.items():
        person[0, KEYPOINT_INDEX[name]] = x * width, y * height, confidence
    return person


def controlnet_picture(frame: dict, width: int, height: int) -> np.ndarray:
    assert CONTROLNET is not None
    return CONTROLNET.draw_poses(controlnet_poses(CONTROLNET, frame), height, width)


@needs_controlnet_aux
@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_equals_controlnet_aux(spread):
    for seed in range(150):
        frame = random_frame(seed, spread)
        size = frame["canvas_width"], frame["canvas_height"]
        assert np.array_equal(render_frame(frame, *size), controlnet_picture(frame, *size)), seed


@needs_controlnet_aux
def test_equals_controlnet_aux_on_a_larger_canvas_of_the_same_shape():
    for seed in range(50):
        frame = random_frame(seed)
        size = frame["canvas_width"] * 2, frame["canvas_height"] * 2
        assert np.array_equal(render_frame(frame, *size), controlnet_picture(frame, *size)), seed


def test_both_dialects_of_openpose_frames_draw_the_same():
    for seed in range(50):
        frame = random_frame(seed)
        size = frame["canvas_width"], frame["canvas_height"]
        assert np.array_equal(render_frame(frame, *size), render_frame(in_shares(frame), *size)), seed


@pytest.mark.parametrize("line_width", [2, 4, 9])
def test_a_stick_is_the_ellipse_of_its_limb(line_width):
    rng = np.random.default_rng(3)
    for limb, (start, end) in enumerate(LIMBS):
        people = np.zeros((1, 18, 3))
        people[0, [start, end], :2] = rng.uniform(25, 175, (2, 2))
        people[0, [start, end], 2] = 1.0
        picture = render_frame(frame_from_people(people, 200, 200), 200, 200, line_width)
        (x0, y0), (x1, y1) = people[0, start, :2], people[0, end, :2]
        half, angle = math.hypot(x1 - x0, y1 - y0) / 2, math.atan2(y1 - y0, x1 - x0)
        for y in range(200):
            for x in range(0, 200, 3):
                # Two pixels off at the ends for an angle cut to whole degrees, one and a half across.
                dx, dy = x - (x0 + x1) / 2, y - (y0 + y1) / 2
                along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
                inner = (along / max(half - 2, 1)) ** 2 + (across / max(line_width - 1.5, 0.1)) ** 2 < 0.6
                outer = (along / (half + 2)) ** 2 + (across / (line_width + 2.5)) ** 2 > 1
                near_joint = min(math.hypot(x - x0, y - y0), math.hypot(x - x1, y - y1)) < line_width + 2
                if inner and not near_joint:
                    assert tuple(picture[y, x]) == STICK_COLOURS[limb], (limb, x, y)
                if outer and not near_joint:
                    assert not picture[y, x].any(), (limb, x, y)
        assert tuple(picture[int(y0), int(x0)]) == COLOURS[start]


def test_a_smaller_canvas_is_centred_unstretched():
    frame = frame_from_people(standing(100, 200), 100, 200)
    picture = render_frame(frame, 400, 400)
    assert np.array_equal(picture[:, 100:300], render_frame(frame_from_people(standing(200, 400), 200, 400), 200, 400))
    assert not picture[:, :100].any() and not picture[:, 300:].any()


def test_later_people_cover_earlier_ones():
    first, second = standing(), standing(confidence=0.0)
    second[0, 0] = first[0, 10]  # a nose alone, on the other's right ankle
    both = np.concatenate([first, second])
    x, y = (int(value) for value in first[0, 10, :2])
    assert tuple(render_frame(frame_from_people(both, 200, 300), 200, 300)[y, x]) == COLOURS[0]
    assert tuple(render_frame(frame_from_people(both[::-1], 200, 300), 200, 300)[y, x]) == COLOURS[10]


def drawn(people: np.ndarray, min_confidence: float = 0.3) -> set[str]:
    """Names of the keypoints whose joint is drawn."""
    picture = render_frame(frame_from_people(people, 200, 300), 200, 300, 1, min_confidence)
    return {
        name
        for name, index in KEYPOINT_INDEX.items()
        if tuple(picture[int(people[0, index, 1]), int(people[0, index, 0])]) == COLOURS[index]
    }


def test_hidden_limbs_are_drawn_and_hidden_faces_are_not():
    head = {"nose", "right_eye", "left_eye", "right_ear", "left_ear"}
    everything = set(KEYPOINT_INDEX)
    assert drawn(standing(confidence=1.0)) == everything
    assert drawn(standing(confidence=0.3)) == everything
    assert drawn(standing(confidence=0.29)) == everything - head
    assert drawn(standing(confidence=0.15)) == everything - head
    assert drawn(standing(confidence=0.14)) == set()
    assert drawn(standing(confidence=0.01), min_confidence=0.0) == everything
    assert drawn(standing(confidence=0.0), min_confidence=0.0) == set()


def test_hands_and_faces_below_the_threshold_or_at_the_edge_are_left_out():
    hand = [[20.0 + 5 * index, 20.0 + 10 * index, 1.0] for index in range(21)]
    hand[3] = [-1.0, -1.0, 1.0]
    hand[20][2] = 0.1
    face = [[50.0, 100.0, 1.0], [90.0, 100.0, 0.2]] + [[0.0, 0.0, 0.0]] * 66
    frame = frame_from_people(standing(confidence=0.0), 200, 300)
    for part, points in (("hand_right_keypoints_2d", hand), ("face_keypoints_2d", face)):
        frame["people"][0][part] = [number for point in points for number in point]
    picture = render_frame(frame, 200, 300)
    assert tuple(picture[20, 20]) == HAND_JOINT_COLOUR and not picture[220, 120].any()
    assert not picture[:5, :5].any()
    assert tuple(picture[100, 50]) == (255, 255, 255) and not picture[100, 90].any()


def test_nobody_is_black_and_thirty_people_fit():
    assert not render_frame(frame_from_people(np.zeros((0, 18, 3)), 64, 48), 64, 48).any()
    crowd = np.concatenate([standing() + np.array([6.0 * index, 0, 0]) for index in range(30)])
    assert render_frame(frame_from_people(crowd, 400, 300), 400, 300).any()


def test_one_pixel_canvas_and_odd_sizes():
    frame = frame_from_people(standing(), 200, 300)
    for size in ((1, 1), (17, 301), (1023, 3)):
        assert render_frame(frame, *size).shape == (size[1], size[0], 3)


def with_body(values) -> dict:
    return {"people": [{"pose_keypoints_2d": values}], "canvas_width": 200, "canvas_height": 300}


@pytest.mark.parametrize(
    "frame, message",
    [
        (with_body([1.0, 2.0, math.nan] * 18), "person 1: pose_keypoints_2d holds a number that is not finite; "),
        (with_body([1.0, 2.0, 1.0] * 25), r"person 1 has 25 body keypoints, expected 18 \(BODY-18\); set the detector"),
        (with_body([1.0, 2.0, 1.0] * 17), r"person 1 has 17 body keypoints, expected 18 \(BODY-18\); set the detector"),
        (with_body(None), "person 1 has 0 body keypoints"),
        (with_body([1.0, 2.0]), "person 1: pose_keypoints_2d has 2 numbers"),
        (with_body(["a", "b", "c"] * 18), "person 1: .*; detect the pose again"),
        (with_body({"x": 1}), "person 1: .*; detect the pose again"),
        (
            with_body([5000.0, 30.0, 1.0] * 18),
            r"person 1 has a keypoint at \(5000, 30\), far outside the 200 x 300 canvas",
        ),
        (with_body([30.0, -400.0, 1.0] * 18), r"at \(30, -400\), far outside the 200 x 300 canvas; give the frame"),
        ({"people": None, "canvas_width": 8, "canvas_height": 8}, "people are not a list of OpenPose people; take"),
        ({"people": [[1, 2, 3]], "canvas_width": 8, "canvas_height": 8}, "people are not a list of OpenPose people"),
    ],
)
def test_bad_frames_are_one_sentence(frame, message):
    with pytest.raises(ValueError, match=message) as caught:
        render_frame(frame, 200, 300)
    assert "\n" not in str(caught.value)


def test_a_hand_of_twenty_points_is_refused():
    frame = frame_from_people(standing(), 200, 300)
    frame["people"][0]["hand_left_keypoints_2d"] = [1.0, 2.0, 1.0] * 20
    with pytest.raises(ValueError, match="person 1's hand_left_keypoints_2d has 20 keypoints, a hand has 21; "):
        render_frame(frame, 200, 300)


def test_a_doubtful_keypoint_far_away_does_not_matter():
    people = standing()
    people[0, 4] = 1e6, 1e6, 0.05
    without = standing()
    without[0, 4] = 0.0
    with_it, without_it = (render_frame(frame_from_people(one, 200, 300), 200, 300) for one in (people, without))
    assert np.array_equal(with_it, without_it)


def test_the_frame_is_left_alone():
    frame = random_frame(7)
    before = copy.deepcopy(frame)
    render_frame(frame, 333, 222)
    assert frame == before
