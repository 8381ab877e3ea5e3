"""What phrases speak of, and where they stand in captions."""

from __future__ import annotations

import numpy as np
import pytest

from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX
from comfyui_ensemble.training.categories import CATEGORIES
from comfyui_ensemble.training.construction import phrases
from comfyui_ensemble.training.construction.described import Described
from comfyui_ensemble.training.construction.items import Item, face_box, find_items, with_faces, words_in
from comfyui_ensemble.training.construction.phrases import category_of, is_several, noun_of


@pytest.mark.parametrize(
    "phrase, category",
    [
        ("A woman in a red coat", "person"),
        ("a red winter coat", "upper garment"),
        ("her white T-shirt", "upper garment"),
        ("a pair of blue jeans", "lower garment"),
        ("two pairs of shoes", "shoes"),
        ("a light blue dress", "dress"),
        ("a dress shirt", "upper garment"),
        ("a black tank top", "upper garment"),
        ("white sneakers on her feet", "shoes"),
        ("high heels", "shoes"),
        ("a brown leather handbag with a gold chain", "bag"),
        ("a bag of oranges", "other"),
        ("the top of the hill", "other"),
        ("a baseball cap", "hat"),
        ("the man's face", "face"),
        ("human face", "face"),
        ("two puppies", "animal"),
        ("a teddy bear", "other"),
        ("a vintage typewriter", "other"),
        ("a police officer", "person"),
        ("three children playing football", "person"),
        ("the background", None),
        ("her long dark hair", None),
        ("the image", None),
        ("a crowd of people", None),
        ("he", None),
        ("The left side of the picture", None),
        ("", None),
        ("...", None),
        ("with a hat", "hat"),
    ],
)
def test_categories(phrase, category):
    assert category_of(phrase) == category


def test_all_categories_are_ones_of_a_cast():
    assert {category for category in phrases._CATEGORY.values() if category is not None} <= set(CATEGORIES)
    assert {category for category in phrases._COMPOUNDS.values() if category is not None} <= set(CATEGORIES)


def test_nouns():
    assert noun_of("A young woman, smiling") == ("young woman", ", smiling")
    assert noun_of("a pair of red shoes on ice") == ("red shoes", "on ice")


@pytest.mark.parametrize(
    "phrase, several",
    [
        ("two women", True),
        ("three dogs", True),
        ("the man's", False),
        ("a woman", False),
        ("red shoes", False),
        ("", False),
    ],
)
def test_several(phrase, several):
    assert is_several(phrase) is several


@pytest.mark.parametrize(
    "phrase, caption, words",
    [
        ("a red coat", "A woman in A Red  Coat.", "A Red  Coat"),
        ("a caf table", "At a café table sits a man.", "a café table"),
        ("a hat", "a hatter has a hat", "a hat"),
        ("a cat", "a caterpillar", None),
        ("", "a cat", None),
        ("ein straße", "EIN STRASSE", None),
    ],
)
def test_words_as_they_stand(phrase, caption, words):
    assert words_in(phrase, caption) == words
    if words is not None and phrase == "a hat":
        assert caption.endswith(words)


def test_phrases_and_objects_become_items():
    described = Described(
        "A woman in a red coat with two dogs on a street near a lamp.",
        (
            ("A woman", (10, 0, 50, 100)),
            ("a red coat", (12, 20, 48, 60)),
            ("A woman in a red coat", (10, 0, 51, 100)),
            ("two dogs", (60, 60, 70, 80)),
            ("two dogs", (75, 60, 90, 80)),
            ("a street", (0, 0, 100, 100)),
            ("a cat", (0, 0, 20, 20)),
            ("a lamp", (0, 0, 1, 1)),
        ),
        (("woman", (11, 0, 50, 99)), ("human face", (20, 2, 35, 18)), ("human face", (80, 2, 95, 18))),
    )
    items, refused = find_items(described, 100, 100, 0.005)
    assert items == [
        Item("a red coat", "upper garment", (12, 20, 48, 60)),
        Item("A woman in a red coat", "person", (10, 0, 51, 100)),
        Item("two dogs", "animal", (60, 60, 70, 80), shared=True),
        Item("two dogs", "animal", (75, 60, 90, 80), shared=True),
        Item("A woman in a red coat", "face", (20, 2, 35, 18)),
    ]
    assert refused == [
        "'a cat' does not stand in the caption",
        "'a lamp' is too small",
        "'human face' does not stand in the caption",
    ]


def test_a_crowd_in_one_box_is_nobody():
    items, refused = find_items(Described("two women", (("two women", (0, 0, 90, 90)),)), 100, 100, 0.0)
    assert items == [] and refused == ["'two women' are several in one box"]


# Faces


def head(turn: float = 1.0, scale: float = 1.0) -> np.ndarray:
    """An adult's head, 150 mm from ear to ear at scale 1, its nose at (200, 200)."""
    places = {
        "nose": (0, 0),
        "right_eye": (-31.5, -35),
        "left_eye": (31.5, -35),
        "right_ear": (-75, -15),
        "left_ear": (75, -15),
        "neck": (0, 195),
    }
    person = np.zeros((18, 3))
    for name, (x, y) in places.items():
        person[KEYPOINT_INDEX[name]] = 200 + turn * scale * x, 200 + scale * y, 0.9
    return person


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_a_face_from_the_front_and_from_the_side(scale):
    left, top, right, bottom = 200 - 85 * scale, 200 - 150 * scale, 200 + 85 * scale, 200 + 85 * scale
    for turn in (1.0, 0.6):
        assert face_box(head(turn, scale), 800, 800) == pytest.approx((left, top, right, bottom))


def test_no_face_where_none_is_seen():
    back = head()
    back[KEYPOINT_INDEX["nose"], 2] = 0
    assert face_box(back, 800, 800) is None
    blind = head()
    blind[[KEYPOINT_INDEX["right_eye"], KEYPOINT_INDEX["left_eye"]], 2] = 0.1
    assert face_box(blind, 800, 800) is None
    assert face_box(np.zeros((18, 3)), 800, 800) is None
    outside = head()
    outside[:, 0] -= 900
    assert face_box(outside, 800, 800) is None


def test_a_person_with_a_pose_gets_a_face_once():
    person = Item("a man", "person", (0, 0, 400, 800))
    (found,) = with_faces([person], head()[None], [0], 800, 800, 0.0)[1:]
    assert found.category == "face" and found.words == "a man"
    given = Item("a man", "face", (120, 60, 280, 290))
    assert with_faces([person, given], head()[None], [0, None], 800, 800, 0.0) == [person, given]
    assert with_faces([person], head()[None], [None], 800, 800, 0.0) == [person]
    assert with_faces([person], head()[None], [0], 800, 800, 0.5) == [person]
