"""The subjects of a pose: found, moved, and told apart in a picture."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from comfyui_ensemble.pose_db.keypoints import LIMBS, frame_from_people
from comfyui_ensemble.pose_db.layout import group_of, lay_out
from comfyui_ensemble.pose_db.people import BODY, read_people
from comfyui_ensemble.pose_db.render import render_frame
from comfyui_ensemble.pose_db.subjects import moved_frame, nearest_subject, subjects_of

STANDING = np.array(
    [
        (0.50, 0.10), (0.50, 0.20), (0.42, 0.20), (0.38, 0.35), (0.36, 0.48), (0.58, 0.20), (0.62, 0.35), (0.64, 0.48),
        (0.45, 0.50), (0.45, 0.70), (0.45, 0.92), (0.55, 0.50), (0.55, 0.70), (0.55, 0.92),
        (0.48, 0.08), (0.52, 0.08), (0.46, 0.09), (0.54, 0.09),
    ]
)  # fmt: skip


def person(left: float, top: float, size: float, confidence: float = 1.0) -> np.ndarray:
    return np.concatenate([STANDING * size + [left, top], np.full((18, 1), confidence)], axis=1)


def frame(*people: np.ndarray, width: int = 400, height: int = 300) -> dict:
    return frame_from_people(np.stack(people) if people else np.zeros((0, 18, 3)), width, height)


def test_everybody_is_a_subject_in_order():
    pair = frame(person(200, 20, 250), person(20, 60, 200))
    subjects = subjects_of(pair, 400, 300)
    assert [subject.box[0] for subject in subjects] == sorted((s.box[0] for s in subjects), reverse=True)
    for number, subject in enumerate(subjects):
        alone = group_of(frame(np.array(pair["people"][number][BODY]).reshape(-1, 3)))
        assert alone is not None
        np.testing.assert_allclose(subject.box, alone.box)


def test_numbers_of_the_layout_put_people_together_in_cast_order():
    two, one = frame(person(10, 10, 200), person(180, 10, 220)), frame(person(30, 0, 290))
    laid = lay_out([one, two], 800, 600, [(0, 0, 300, 300), (300, 0, 500, 600)])
    laid["people"] = laid["people"][::-1]  # near to far
    assert [entry["subject"] for entry in laid["people"]] == [1, 1, 0]
    subjects = subjects_of(laid, 800, 600)
    assert [len(subject.people) for subject in subjects] == [1, 2]
    assert subjects[0].box[2] <= 300.01 and subjects[1].box[0] >= 299.99


def test_a_frame_of_another_size_is_fitted_as_it_is_drawn():
    pose = frame(person(100, 20, 250))
    (subject,) = subjects_of(pose, 1000, 600)
    drawn = render_frame(pose, 1000, 600, line_width=1).max(axis=-1)
    rows, columns = np.flatnonzero(drawn.max(axis=1)), np.flatnonzero(drawn.max(axis=0))
    left, top, right, bottom = subject.box
    assert left < columns[0] and columns[-1] < right and top < rows[0] and rows[-1] < bottom
    body = subject.people[0][BODY]
    assert abs(body[:, 0].min() - columns[0]) < 4 and abs(body[:, 1].max() - rows[-1]) < 4


def test_nobody_and_the_unsure_are_no_subjects():
    assert subjects_of(frame(), 400, 300) == []
    assert len(subjects_of(frame(person(10, 10, 200, confidence=0.01), person(180, 10, 220)), 400, 300)) == 1


def test_people_of_other_keypoints_are_refused():
    with pytest.raises(ValueError, match="person 1 has 25 body keypoints"):
        subjects_of({**frame(), "people": [{BODY: [1.0] * 75}]}, 400, 300)


def test_keypoints_move_by_the_formula():
    pose = frame(person(200, 20, 250), person(20, 60, 200))
    pose["people"][0][BODY][3 * 4 + 2] = 0.0  # a wrist not found
    pose["people"][1]["hand_left_keypoints_2d"] = np.random.default_rng(0).uniform(40, 90, 63).tolist()
    subjects = subjects_of(pose, 400, 300)
    moves = [(0.5, 10.25, -3.5), (1.5, -20.0, 30.0)]
    moved = moved_frame(subjects, moves, 640, 480)
    assert (moved["canvas_width"], moved["canvas_height"]) == (640, 480)
    assert [entry["subject"] for entry in moved["people"]] == [0, 1]
    for entry, original, (scale, x, y) in zip(moved["people"], pose["people"], moves, strict=True):
        for part in original:
            before, after = (np.array(values[part]).reshape(-1, 3) for values in (original, entry))
            there = before[:, 2] > 0
            np.testing.assert_allclose(after[there, :2], before[there, :2] * scale + [x, y], atol=1e-9)
            np.testing.assert_allclose(after[:, 2], before[:, 2])
            assert not after[~there].any()
    assert read_people(moved)


def test_keypoints_far_outside_are_dropped_so_that_others_can_read_the_frame():
    subjects = subjects_of(frame(person(100, 20, 250)), 400, 300)
    moved = moved_frame(subjects, [(20.0, -4300.0, -1000.0)], 400, 300)
    body = np.array(moved["people"][0][BODY]).reshape(-1, 3)
    assert 0 < (body[:, 2] > 0).sum() < 18
    assert read_people(moved)  # raises where a keypoint is too far outside


def test_every_pixel_belongs_to_the_nearest_limb():
    pose = frame(person(140, 10, 260), person(20, 60, 200))
    subjects = subjects_of(pose, 400, 300)
    nearest = nearest_subject(subjects, 400, 300)
    assert nearest.shape == (300, 400)
    rng = np.random.default_rng(1)
    for x, y in rng.integers(0, (400, 300), (300, 2)):
        distances = [
            min(
                to_segment((x, y), entry[BODY][start, :2], entry[BODY][end, :2])
                for entry in subject.people
                for start, end in LIMBS
            )
            for subject in subjects
        ]
        if abs(distances[0] - distances[1]) > 3:  # the library's distances are a few per cent off
            assert nearest[y, x] == int(np.argmin(distances))


def to_segment(point, start, end) -> float:
    (px, py), (ax, ay), (bx, by) = point, start, end
    length = math.hypot(bx - ax, by - ay)
    along = 0.0 if length == 0 else ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length**2
    along = min(1.0, max(0.0, along))
    return math.hypot(px - ax - along * (bx - ax), py - ay - along * (by - ay))


def test_drawn_people_are_cut_apart_cleanly():
    pose = frame(person(140, 10, 260), person(10, 60, 200))
    nearest = nearest_subject(subjects_of(pose, 400, 300), 400, 300)
    for number, other in itertools.permutations(range(2)):
        alone = dict(pose, people=[pose["people"][number]])
        drawn = render_frame(alone, 400, 300, line_width=2).any(axis=-1)
        assert (nearest[drawn] == other).mean() < 0.01
