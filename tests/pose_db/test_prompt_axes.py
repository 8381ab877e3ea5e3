"""Systematic prompts: distinct, the same for a seed, every line as often as the others."""

from __future__ import annotations

from collections import Counter

import pytest

from comfyui_ensemble.pose_db.prompt_axes import combinations, distinct_lines, prompt_variations

ATTRIBUTES = ["young", "elderly", "in a red coat"]
PLACES = ["in a park", "busy street"]
CAMERAS = ["seen from the side", "low angle"]


def test_distinct_and_deterministic():
    first = prompt_variations("a man juggling", ATTRIBUTES, PLACES, CAMERAS, 12, 3)
    assert len({variation.prompt for variation in first}) == 12
    assert first == prompt_variations("a man juggling", ATTRIBUTES, PLACES, CAMERAS, 12, 3)
    assert first != prompt_variations("a man juggling", ATTRIBUTES, PLACES, CAMERAS, 12, 4)


def test_a_seed_keeps_its_prompts_for_ever():
    prompts = [item.prompt for item in prompt_variations("a man juggling", ATTRIBUTES, PLACES, CAMERAS, 3, 0)]
    assert prompts == [
        "a young man juggling, busy street, low angle",
        "a man in a red coat juggling in a park, seen from the side",
        "an elderly man juggling in a park, low angle",
    ]


@pytest.mark.parametrize("sizes, count", [((4, 4, 4), 16), ((5, 3, 7), 40), ((20, 20, 25), 500), ((1, 1, 9), 9)])
def test_lines_come_up_equally_often(sizes, count):
    chosen = combinations(sizes, count, 1)
    assert len(set(chosen)) == count
    for axis, size in enumerate(sizes):
        uses = Counter(values[axis] for values in chosen)
        share = count / size
        assert len(uses) == min(size, count)
        assert share - 1.5 <= min(uses.values()) and max(uses.values()) <= share + 1.5


def test_pairs_of_lines_come_up_equally_often():
    chosen = combinations((5, 5, 5), 50, 2)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        uses = Counter((values[first], values[second]) for values in chosen)
        assert len(uses) == 25 and max(uses.values()) <= 3


def test_all_combinations_and_one_more():
    assert len(set(combinations((3, 2, 2), 12, 0))) == 12
    with pytest.raises(ValueError, match="make 12 different prompts, 13 are asked for; lower count or add lines"):
        combinations((3, 2, 2), 13, 0)


def test_very_long_lists():
    chosen = combinations((2000, 2000, 2000), 300, 5)
    assert len(set(chosen)) == 300 and chosen == combinations((2000, 2000, 2000), 300, 5)


@pytest.mark.parametrize(
    "action, attribute, prompt",
    [
        ("two people shaking hands", "elderly", "two elderly people shaking hands"),
        ("a man juggling", "old", "an old man juggling"),
        ("An actor bowing", "tall", "A tall actor bowing"),
        ("a man juggling", "in a red coat", "a man in a red coat juggling"),
        ("a {attribute} sumo wrestler", "enormous", "an enormous sumo wrestler"),
        ("a {attribute} sumo wrestler", "", "a sumo wrestler"),
        ("juggling", "elderly", "juggling, elderly"),
        ("a man juggling", "", "a man juggling"),
    ],
)
def test_where_the_attribute_goes(action, attribute, prompt):
    assert prompt_variations(action, [attribute], [], [], 1, 0)[0].prompt == prompt


def test_place_and_camera_follow():
    variation = prompt_variations("a man juggling", [], ["in a park"], ["low angle"], 1, 0)[0]
    assert variation.prompt == "a man juggling in a park, low angle"
    tags = {"action": "a man juggling", "people": 1, "environment": "in a park", "camera": "low angle"}
    assert variation.tags == tags
    assert prompt_variations("a man", [], ["busy street"], [], 1, 0)[0].prompt == "a man, busy street"


def test_lines_are_cleaned():
    assert distinct_lines([" in  a park ", "", "in a park", "  "]) == ["in a park"]
    with pytest.raises(ValueError, match="the action is empty"):
        prompt_variations(" \n", [], [], [], 1, 0)
