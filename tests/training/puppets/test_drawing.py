"""Puppets, drawn: the truth about a picture fits the picture."""

from __future__ import annotations

import numpy as np
import pytest

from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, MIRRORED
from comfyui_ensemble.training.puppets import (
    PARTS,
    background,
    draw_item,
    draw_reference,
    draw_scene,
    neutral,
    people_in,
    puppet,
)
from comfyui_ensemble.training.puppets.backgrounds import plain
from comfyui_ensemble.training.puppets.colours import lab_of
from comfyui_ensemble.training.puppets.identity import COLOURS, Puppet
from comfyui_ensemble.training.puppets.posing import bundled, entries, pose
from comfyui_ensemble.training.puppets.references import categories
from comfyui_ensemble.training.puppets.scene import far_to_near

WRISTS = [KEYPOINT_INDEX["right_wrist"], KEYPOINT_INDEX["left_wrist"]]
HEAD = [KEYPOINT_INDEX[name] for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear")]


def one(wanted) -> Puppet:
    """The first puppet that is as wanted."""
    return next(found for found in map(puppet, range(2000)) if wanted(found))


def test_puppets_are_many_and_stay_who_they_are() -> None:
    looks = {repr(puppet(seed)).partition(",")[2] for seed in range(1000)}
    assert len(looks) == 1000
    assert puppet(17) is puppet(17)
    kinds = [{getattr(puppet(seed), name) for seed in range(400)} for name in ("kind", "skin", "hair", "hair_style")]
    assert [len(kind) for kind in kinds] == [4, 6, 9, 11]


def test_clothes_of_different_colours_look_different() -> None:
    labs = [lab_of(colour) for colour in COLOURS.values()]
    gaps = [np.linalg.norm(first - second) for index, first in enumerate(labs) for second in labs[:index]]
    assert min(gaps) > 40


def test_the_background_is_left_alone() -> None:
    for variant in range(60):
        ground, words = background(variant, 96, 80)
        assert ground.shape == (80, 96, 3)
        assert len(words.split()) <= 5
    before = ground.copy()
    scene = draw_scene([puppet(1)], neutral(96, 80)[None], ground)
    assert np.array_equal(ground, before)
    import cv2

    away = cv2.dilate((scene.labels > 0).view(np.uint8), np.ones((3, 3), np.uint8)) == 0
    assert np.array_equal(scene.picture[away], before[away])
    assert (scene.picture[~away] != before[~away]).any(axis=-1).mean() > 0.8


@pytest.mark.parametrize("size", [96, 128, 257])
def test_parts_have_their_colours(size: int) -> None:
    """Many pixels of a part are exactly of the identity's colours; the others are edges and what is between."""
    for seed in range(16):
        who = puppet(seed)
        scene = draw_scene([who], neutral(size, size)[None], plain((200, 224, 246), size, size))
        items = {"upper": who.upper, "lower": who.lower, "shoes": who.shoes}
        expected = {part: {item.rgb, item.second_rgb} for part, item in items.items() if item is not None}
        for part, colours in ({"face": {who.skin}} | expected).items():
            own = scene.picture[scene.mask(0, (part,))]
            exact = sum((own == colour).all(axis=1).mean() for colour in colours)
            assert exact > 0.2, (seed, part)


def test_masks_share_out_the_picture() -> None:
    people = np.stack([neutral(128, 128), neutral(128, 128)])
    people[1, :, 0] += 14
    scene = draw_scene([puppet(1), puppet(2)], people, plain((255, 255, 255), 128, 128))
    first, second = scene.mask(0), scene.mask(1)
    assert not (first & second).any()
    assert np.array_equal(first | second, scene.labels > 0)
    assert set(np.unique(scene.owners)) == {0, 1, 2}
    assert scene.parts.max() < len(PARTS)
    parts = [scene.mask(0, (part,)) for part in PARTS[1:]]
    assert np.array_equal(np.sum(parts, axis=0) > 0, first)


def test_whoever_is_hidden_is_behind() -> None:
    people = np.stack([neutral(128, 128), neutral(128, 128)])
    people[1, :, 0] += 10
    assert far_to_near(people) == [0, 1]
    people[1, :, 2] = 0.3
    assert far_to_near(people) == [1, 0]
    people[:, :, 2] = 1
    people[0, :, 1] += 6  # nearer
    assert far_to_near(people) == [1, 0]


def test_an_arm_behind_the_back_is_hidden() -> None:
    who = one(lambda found: found.upper.kind == "shirt" and found.bag is None)
    body = neutral(128, 128)
    body[WRISTS, :2] = (64, 60)
    hands = np.s_[52:68, 56:72]
    before = draw_scene([who], body[None], plain((255, 255, 255), 128, 128)).mask(0, ("skin",))[hands]
    body[WRISTS, 2] = 0.25
    behind = draw_scene([who], body[None], plain((255, 255, 255), 128, 128)).mask(0, ("skin",))[hands]
    assert before.sum() > 20
    assert behind.sum() == 0


def test_a_head_from_behind_has_no_face() -> None:
    who = one(lambda found: found.hair_style == "bob" and found.hat is None)
    body = neutral(128, 128)
    front = draw_scene([who], body[None], plain((255, 255, 255), 128, 128))
    body[HEAD[:3], 2] = 0.0
    back = draw_scene([who], body[None], plain((255, 255, 255), 128, 128))
    assert back.mask(0, ("face",)).sum() < 0.15 * front.mask(0, ("face",)).sum()
    assert back.mask(0, ("hair",)).sum() > front.mask(0, ("hair",)).sum()


@pytest.mark.parametrize("entry", range(0, 10_000, 997))
def test_every_pose_can_be_drawn_in_every_state(entry: int) -> None:
    """With any keypoints missing there is still a puppet, or at least no error."""
    people = pose(entries(1, 9.0)[entry]).people
    body = people[0].copy()
    body[:, :2] *= 100 / np.ptp(body[:, 1])
    random = np.random.default_rng(entry)
    for missing in (0, 3, 9, 16):
        partial = body.copy()
        partial[random.permutation(18)[:missing]] = 0
        scene = draw_scene([puppet(entry)], partial[None], plain((0, 0, 0), 128, 128))
        assert np.isfinite(scene.sizes).all()


def test_a_mirrored_pose_is_a_mirrored_pose() -> None:
    for entry in entries(2, 1.0)[:40]:
        straight, mirrored = pose(entry), pose(entry, True)
        flipped = straight.people[:, MIRRORED].copy()
        flipped[..., 0] = -flipped[..., 0]
        order = range(len(flipped)) if "{0}" in straight.action else np.argsort(flipped[:, 1, 0], kind="stable")
        for one_body, index in zip(mirrored.people, order, strict=True):
            moved = flipped[index] - flipped[index][1] - (one_body - one_body[1])
            assert np.abs(moved[:, :2]).max() < 1e-6
        assert mirrored.action.replace("left", "*").replace("right", "left").replace("*", "right") == straight.action


def test_references_show_the_puppet_elsewhere() -> None:
    who = puppet(5)
    stands = [draw_reference(who, 96, variant) for variant in range(6)]
    assert len({picture.tobytes() for picture, _ in stands}) == 6
    for picture, mask in stands:
        assert picture.shape == (96, 96, 3)
        assert 0.08 < mask.mean() < 0.6
        rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not rim.any()
    assert (stands[0][0][~stands[0][1]] > 250).mean() > 0.9


def test_items_fill_their_reference() -> None:
    for seed in range(20):
        for category in categories(puppet(seed)):
            picture, mask = draw_item(puppet(seed), category, 64)
            rows, columns = np.nonzero(mask)
            assert 52 <= max(np.ptp(rows), np.ptp(columns)) <= 63, (seed, category)
            assert (picture[0] == 255).all()
    bare = one(lambda found: found.bag is None)
    with pytest.raises(ValueError, match="has no bag"):
        draw_item(bare, "bag", 64)


def test_a_retrieved_pose_is_fitted_into_the_picture() -> None:
    entry = entries(2, 1.0)[0]
    frame = bundled().frame(entry)
    people = people_in(frame, 128, 96)
    assert people.shape == (2, 18, 3)
    assert (people[..., :2] >= 0).all() and (people[..., 0] <= 128).all() and (people[..., 1] <= 96).all()
    scale = min(128 / frame["canvas_width"], 96 / frame["canvas_height"])
    spread = np.ptp(bundled().people(entry)[..., :2], axis=(0, 1))
    assert np.ptp(people[..., :2], axis=(0, 1)) == pytest.approx(scale * spread)
    assert len(draw_scene([puppet(1), puppet(2)], people, plain((9, 9, 9), 128, 96)).puppets) == 2


def test_a_pose_map_shows_the_people() -> None:
    scene = draw_scene([puppet(3)], neutral(128, 128)[None], plain((255, 255, 255), 128, 128))
    drawn = scene.pose_map().any(axis=-1)
    assert 0.01 < drawn.mean() < 0.2
    assert scene.mask(0)[drawn].mean() > 0.9
