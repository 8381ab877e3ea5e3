"""Who stands in which slot, against the paper's table and its rules for what does not fit in."""

from __future__ import annotations

import random

import pytest

from comfyui_ensemble.attention_patches.condition_slots import CATEGORY_SLOTS, SlotError, assign_slots
from comfyui_ensemble.attention_patches.layout import Reference
from comfyui_ensemble.nodes.cast import CATEGORIES, MAX_SUBJECTS


def cast(*categories: str) -> list[Reference]:
    return [
        Reference("pose", (4, 4)) if category == "pose" else Reference("subject", (4, 4), f"s{number}", category)
        for number, category in enumerate(categories)
    ]


def test_the_papers_slots():
    """Section 3.2, appendix G.5.2 and G.5.3."""
    order = ["face", "upper garment", "lower garment", "bag", "other", "hat", "shoes"]
    assert assign_slots(cast(*order)) == ((1,), (2,), (3,), (4,), (5,), (6,), (7,))
    assert assign_slots(cast(*reversed(order))) == ((7,), (6,), (5,), (4,), (3,), (2,), (1,))


def test_every_category_of_the_cast_has_a_slot():
    assert set(CATEGORY_SLOTS) == set(CATEGORIES)
    for category in CATEGORIES:
        assert assign_slots(cast(category)) == (CATEGORY_SLOTS[category],)


@pytest.mark.parametrize(
    "categories, slots",
    [
        (["face", "dress"], ((1,), (2, 3))),  # G.2: the dress is both garments
        (["upper garment", "upper garment"], ((2,), (3,))),  # G.5.1: the second top in the free garment slot
        (["lower garment", "lower garment"], ((3,), (2,))),
        (["upper garment", "upper garment", "lower garment"], ((2,), (5,), (3,))),  # which is not free here
        (["upper garment", "dress"], ((2,), (3,))),
        (["dress", "upper garment"], ((2, 3), (5,))),
        (["dress", "dress"], ((2, 3), (5,))),
        (["person", "animal"], ((1,), (5,))),
        (["face", "face", "face"], ((1,), (5,), (8,))),
        (["face", "face", "other"], ((1,), (8,), (5,))),
        (["face", "person"], ((1,), (5,))),
        (["bag", "pose"], ((4,), ())),
        (["pose"], ((),)),
        ([], ()),
    ],
)
def test_what_does_not_fit_in(categories, slots):
    assert assign_slots(cast(*categories)) == slots


@pytest.mark.parametrize("seed", range(50))
def test_any_cast_has_distinct_slots(seed):
    draw = random.Random(seed)
    references = cast(*draw.choices(CATEGORIES, k=draw.randint(1, MAX_SUBJECTS)))
    slots = assign_slots(references)
    used = [slot for own in slots for slot in own]
    assert all(slots) and len(set(used)) == len(used)
    claimed: set[int] = set()
    for reference, own in zip(references, slots, strict=True):
        wanted = set(CATEGORY_SLOTS[reference.category])
        assert set(own) & wanted == wanted - claimed or not wanted - claimed
        claimed |= wanted


def test_chosen_slots():
    references = cast("face", "hat", "other", "other")
    assert assign_slots(references, {"s3": (6,)}) == ((1,), (8,), (5,), (6,))
    assert assign_slots(references, {"other": (9, 10)}) == ((1,), (6,), (9, 10), (5,))
    assert assign_slots(references, {"s0": (2, 3), "s2": (1,)}) == ((2, 3), (6,), (1,), (5,))


def test_a_category_without_a_slot_needs_one():
    references = cast("scarf")
    with pytest.raises(
        SlotError, match="'s0' is of category 'scarf', which has no slot; choose one for it or use one of"
    ):
        assign_slots(references)
    assert assign_slots(references, {"scarf": (8,)}) == ((8,),)


def test_one_slot_for_two_names_is_refused():
    with pytest.raises(SlotError, match="slot 4 was chosen for 's0' and for 's1'; give them different ones"):
        assign_slots(cast("bag", "bag"), {"s0": (4,), "s1": (3, 4)})
