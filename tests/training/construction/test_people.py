"""Whose pose is whose, and which subject is in front, against plain loops."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from comfyui_ensemble.training.construction.boxes import area, box_of_mask, clipped, grown, inside, overlap
from comfyui_ensemble.training.construction.instances import in_front_first, without_overlap
from comfyui_ensemble.training.construction.people import owners, score


def person(left: float, top: float, width: float, height: float, seed: int = 0) -> np.ndarray:
    """18 keypoints spread over a box, its corners among them."""
    random = np.random.default_rng(seed)
    points = random.random((18, 2))
    points[:2] = (0, 0), (1, 1)
    return np.column_stack([left + width * points[:, 0], top + height * points[:, 1], np.full(18, 0.8)])


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_all_assignments(seed):
    random = np.random.default_rng(seed)
    people = np.stack(
        [
            person(x, y, width, height, seed + number)
            for number, (x, y, width, height) in enumerate(random.uniform((0, 0, 20, 20), 60, (4, 4)))
        ]
    )
    boxes = [
        (x, y, x + w, y + h)
        for x, y, w, h in np.column_stack([random.uniform(0, 60, (3, 2)), random.uniform(20, 80, (3, 2))])
    ]
    found = owners(boxes, people)
    given = [owner for owner in found if owner is not None]
    assert len(set(given)) == len(given)
    total = sum(score(box, people[owner]) for box, owner in zip(boxes, found, strict=True) if owner is not None)
    best = max(
        sum(score(box, people[n]) for box, n in zip(boxes, order, strict=True)) for order in permutations(range(4), 3)
    )
    assert total == pytest.approx(best)
    assert all(owner is None or score(box, people[owner]) > 0 for box, owner in zip(boxes, found, strict=True))


def test_two_people_whose_boxes_overlap_keep_their_own():
    tall, small = person(100, 50, 80, 300), person(130, 200, 60, 150, 1)
    boxes = [(125.0, 190.0, 195.0, 355.0), (95.0, 40.0, 190.0, 355.0)]
    assert owners(boxes, np.stack([tall, small])) == [1, 0]


def test_poses_that_are_nobodys():
    boxes = [(0.0, 0.0, 50.0, 50.0)]
    assert owners(boxes, np.stack([person(200, 200, 50, 50)])) == [None]
    assert owners(boxes, np.zeros((0, 18, 3))) == [None]
    assert owners([], np.stack([person(0, 0, 50, 50)])) == []
    unseen = person(5, 5, 40, 40)
    unseen[3:, 2] = 0.05  # three keypoints are no person
    assert owners(boxes, unseen[None]) == [None]


# Masks


def random_masks(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    masks = np.zeros((4, 24, 30), bool)
    for mask in masks:
        left, top, width, height = random.integers(0, 18, 4)
        mask[top : top + height + 1, left : left + width + 1] = True
    return masks


@pytest.mark.parametrize("order", ["area", "depth"])
@pytest.mark.parametrize("seed", range(5))
def test_every_pixel_goes_to_the_subject_in_front(seed, order):
    masks = random_masks(seed)
    result = without_overlap(masks, order)
    for y in range(masks.shape[1]):
        for x in range(masks.shape[2]):
            claim = [n for n in range(len(masks)) if masks[n, y, x]]

            def rank(n: int):
                lowest = max((row for row in range(masks.shape[1]) if masks[n, row].any()), default=-1)
                size = int(masks[n].sum())
                return (size, n) if order == "area" else (-lowest, size, n)

            owner = min(claim, key=rank) if claim else None
            assert [n for n in range(len(masks)) if result[n, y, x]] == ([] if owner is None else [owner])


def test_a_bag_is_before_its_bearer_and_the_nearer_person_before_the_farther():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, 2:18, 2:12], masks[1, 8:12, 4:8] = True, True
    assert in_front_first(masks, "area") == [1, 0]
    assert in_front_first(masks, "depth") == [0, 1]
    assert in_front_first(np.zeros((2, 4, 4), bool), "depth") == [0, 1]


# Boxes


def test_boxes():
    assert clipped((-5, 2, 8, 30), 10, 20) == (0, 2, 8, 20)
    assert clipped((12, 0, 20, 5), 10, 20) is None and clipped((5, 5, 4, 9), 10, 20) is None
    assert overlap((0, 0, 4, 4), (2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert inside((0, 0, 4, 4), (2, 0, 6, 4)) == 0.5 and area((3, 3, 1, 1)) == 0
    mask = np.zeros((9, 12), bool)
    assert box_of_mask(mask) is None
    mask[2:5, 3:11] = True
    assert box_of_mask(mask) == (3, 2, 11, 5)
    assert grown((3, 2, 11, 5), 0.25, 12, 9) == (1, 0, 12, 7)
