"""The test's puppets and poses are in no training picture; SeAl's structures stand where they are said to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.anchor_align import mask_box
from comfyui_ensemble.pose_db.keypoints import MIRRORED
from comfyui_ensemble.training.ablations.one_for_all import CATEGORIES, FEWEST
from comfyui_ensemble.training.ablations.sdxl_drawing import flat_puppets
from comfyui_ensemble.training.ablations.seal_study import STAY, alignment, given_of, moved
from comfyui_ensemble.training.ablations.worlds import HELD_OUT, KeptSamples, Sizes, World, same_poses
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.fitting import as_floats
from comfyui_ensemble.training.puppets import PuppetSource

SIZES = Sizes(64, 32, 6, 3, 2)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SIZES, "people", (1, 2), (2, 2))


def test_test_puppets_are_new_and_the_cases_never_change(world: World) -> None:
    again = World(SIZES, "people", (1, 2), (2, 2)).cases
    for case, same in zip(world.cases, again, strict=True):
        assert np.array_equal(case.scene.picture, same.scene.picture) and case.sample.key == same.sample.key
        assert all(HELD_OUT[0] <= puppet.seed < HELD_OUT[1] for puppet in case.scene.puppets)
        assert np.array_equal(np.rint(case.sample.target.numpy() * 255), case.scene.picture)


def test_more_scenes_begin_with_the_same(world: World) -> None:
    more = World(Sizes(64, 32, 6, 5, 2), "people", (1, 2), (2, 2)).cases
    assert [case.sample.key for case in more[:3]] == [case.sample.key for case in world.cases]


def test_a_pose_is_found_at_any_place_size_and_side(world: World) -> None:
    people = world.cases[0].scene.people
    moved_ = people.copy()
    moved_[..., :2] = 0.37 * moved_[..., :2] + (11, -4)
    mirrored = people[:, MIRRORED].copy()
    mirrored[..., 0] = 64 - mirrored[..., 0]
    assert same_poses(moved_[1:], people) and same_poses(mirrored, people)
    bent = people.copy()
    bent[:, 4, :2] += 3
    assert not same_poses(bent, people)


def test_training_pictures_with_a_tested_pose_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test show what training would learn from: then none of it is left."""
    from comfyui_ensemble.training.ablations import worlds

    monkeypatch.setattr(worlds, "TEST_SEED", worlds.TRAINING_SEED)
    world = World(Sizes(64, 32, 4, 3, 2), "people", (2, 2), (2, 2))
    chosen = world.training()
    source = PuppetSource(worlds.TRAINING_SEED, (64, 64), 32, people=(2, 2))
    tested = np.concatenate([case.scene.people for case in world.cases])
    firsts = [source.stored(index).key for index in range(3)]
    kept = [chosen.stored(index).key for index in range(len(chosen))]
    assert len(chosen) == 4 and not set(firsts) & set(kept)
    assert not any(same_poses(source.scene(int(key.rsplit("/", 1)[1])).people, tested) for key in kept)


def test_kept_samples_are_the_sources() -> None:
    source = PuppetSource(3, (64, 48), 32, kind="items")
    kept = KeptSamples(source, [4, 1])
    for number, index in enumerate((4, 1)):
        sample = source.sample(index)
        assert torch.equal(kept.sample(number).target, sample.target)
        assert torch.equal(as_floats(kept.stored(number)).target, sample.target)
        assert kept.target_size(number) == (64, 48)
        assert kept.categories(number) == [subject.category for subject in sample.subjects]
    assert kept.identity != KeptSamples(source, [1, 4]).identity


def test_several_things_are_tested_at_once() -> None:
    world = World(SIZES, "items", (1, 1), (1, 1), CATEGORIES, FEWEST)
    for case in world.cases:
        assert len(case.sample.subjects) >= FEWEST
        assert {subject.category for subject in case.sample.subjects} <= set(CATEGORIES)


def test_a_start_picture_says_where_and_not_who(world: World) -> None:
    scene = world.cases[0].scene
    start = flat_puppets(scene).numpy()
    for number in range(2):
        mask = scene.mask(number)
        assert np.ptp(start[mask], axis=0).max() == 0
        assert start[mask][0] == pytest.approx(scene.picture[mask].mean(axis=0) / 255, abs=1e-5)
    outside = scene.owners == 0
    assert np.allclose(start[outside], scene.picture[outside] / 255)


def test_the_aligned_structure_has_the_height_and_feet_of_the_appearance() -> None:
    scene = World(Sizes(128, 64, 4, 1, 2), "people", (1, 1), (1, 1)).cases[0].scene
    given = given_of(scene, 128)
    own, target = mask_box(torch.from_numpy(given.shape.mask(0).astype(np.float32))), mask_box(given.mask)
    assert own is not None and target is not None and own.height < 0.7 * target.height
    aligned = mask_box(torch.from_numpy(moved(given.shape, alignment(given)).mask(0).astype(np.float32)))
    assert aligned is not None
    assert aligned.height == pytest.approx(target.height, abs=4) and aligned.anchor == pytest.approx(
        target.anchor, abs=4
    )
    assert np.array_equal(moved(given.shape, STAY).labels, given.shape.labels)
    assert given.words != given.wanted and given.shape.puppets[0].upper.colour in given.wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"resolution": 100}, "resolution is 100"), ({"scenes": 0}, "scenes is 0"), ({"pictures": 1}, "pictures is 1")],
)
def test_sizes_that_make_no_sense(settings, message) -> None:
    with pytest.raises(TrainingError, match=message):
        Sizes(**settings)
