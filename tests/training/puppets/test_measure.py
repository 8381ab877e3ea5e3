"""Measures behave: perfect on the truth, worse in proportion to damage, patient with blur."""

from __future__ import annotations

from dataclasses import astuple, replace

import cv2
import numpy as np
import pytest

from comfyui_ensemble.training.puppets import PuppetSource, Scene, draw_scene, measure, puppet, routing_iou
from comfyui_ensemble.training.puppets.likeness import identity, leakage, part_scores
from comfyui_ensemble.training.puppets.limbs import REACH, limb_errors

COUNT = 4


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    source = PuppetSource(5, people=(2, 2))
    return [source.scene(index) for index in range(COUNT)]


def mean(function, pictures: list[np.ndarray], scenes: list[Scene]) -> float:
    """Of a measure over all puppets of all scenes."""
    return float(
        np.mean(
            [
                function(picture, scene, number)
                for picture, scene in zip(pictures, scenes, strict=True)
                for number in range(len(scene.puppets))
            ]
        )
    )


def pose_error(picture: np.ndarray, scene: Scene, number: int) -> float:
    return float(np.mean(list(limb_errors(picture, scene, number).values())))


def redrawn(scene: Scene, people: np.ndarray, puppets=None) -> np.ndarray:
    ground = np.full_like(scene.picture, 225)
    return draw_scene(puppets or scene.puppets, people, ground, scene.sizes).picture


def shifted(scene: Scene, share: float, seed: int) -> np.ndarray:
    """The scene with everybody moved by a share of his stature, each in a direction of his own."""
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(scene.people))
    way = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    people = scene.people.copy()
    people[..., :2] += (share * np.array(scene.sizes)[:, None] * way)[:, None]
    return redrawn(scene, people)


def noise(scene: Scene, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, scene.picture.shape, dtype=np.uint8)


def test_the_true_picture_is_perfect(scenes: list[Scene]) -> None:
    truth = [scene.picture for scene in scenes]
    assert mean(pose_error, truth, scenes) < 0.01
    assert mean(identity, truth, scenes) == pytest.approx(1)
    assert mean(leakage, truth, scenes) == 0


def test_pictures_of_floats_and_of_bytes_are_alike(scenes: list[Scene]) -> None:
    floats = scenes[0].picture.astype(np.float32) / 255
    bytes_ = measure(scenes[0].picture, scenes[0], [puppet(7)])
    for one, other in zip(measure(floats, scenes[0], [puppet(7)]), bytes_, strict=True):
        assert astuple(one) == pytest.approx(astuple(other), abs=1e-4)


def test_the_pose_error_is_the_shift(scenes: list[Scene]) -> None:
    for share in (0.05, 0.1, 0.2):
        pictures = [shifted(scene, share, seed) for seed, scene in enumerate(scenes)]
        assert mean(pose_error, pictures, scenes) == pytest.approx(share, rel=0.15)


def test_a_limb_that_is_moved_is_found_out(scenes: list[Scene]) -> None:
    """Both arms straight up: their errors are large, the legs' are not."""
    arms, legs = [], []
    for scene in scenes:
        people = scene.people.copy()
        for shoulder, elbow, wrist in ((2, 3, 4), (5, 6, 7)):
            size = np.array(scene.sizes)
            people[:, elbow, 0] = people[:, wrist, 0] = people[:, shoulder, 0]
            people[:, elbow, 1] = people[:, shoulder, 1] - 0.18 * size
            people[:, wrist, 1] = people[:, shoulder, 1] - 0.33 * size
        picture = redrawn(scene, people)
        for number in range(2):
            errors = limb_errors(picture, scene, number)
            arms += [error for limb, error in errors.items() if "arm" in limb]
            legs += [error for limb, error in errors.items() if "leg" in limb]
    assert np.mean(arms) > 0.12
    assert np.mean(legs) < 0.05


def test_noise_and_empty_pictures_are_as_bad_as_can_be(scenes: list[Scene]) -> None:
    for pictures in (
        [noise(scene, seed) for seed, scene in enumerate(scenes)],
        [np.full_like(scene.picture, 120) for scene in scenes],
    ):
        assert mean(pose_error, pictures, scenes) > 0.9 * REACH
        assert mean(identity, pictures, scenes) < 0.15


def test_swapped_puppets_leak_and_are_not_themselves(scenes: list[Scene]) -> None:
    pictures = [redrawn(scene, scene.people, scene.puppets[::-1]) for scene in scenes]
    assert mean(leakage, pictures, scenes) > 0.85
    assert mean(identity, pictures, scenes) < 0.35


def test_leakage_grows_with_what_leaks(scenes: list[Scene]) -> None:
    """The other puppet's shirt on both, then both clothes, then all of it."""
    levels = []
    for worn in ((), ("upper",), ("upper", "lower", "shoes")):
        pictures = []
        for scene in scenes:
            first, second = scene.puppets
            dressed = replace(first, **{part: getattr(second, part) for part in worn})
            pictures.append(redrawn(scene, scene.people, [dressed, second]))
        levels.append(np.mean([leakage(picture, scene, 0) for picture, scene in zip(pictures, scenes, strict=True)]))
    assert levels[0] < 0.03
    assert levels[0] < levels[1] < levels[2]


def test_the_wrong_colour_or_pattern_of_one_part_is_found_out(scenes: list[Scene]) -> None:
    for scene in scenes:
        one, other = scene.puppets
        wrong = "blue" if one.upper.colour not in ("blue", "purple") else "yellow"
        coloured = replace(one, upper=replace(one.upper, colour=wrong))
        kind = "striped" if one.upper.pattern == "plain" else "plain"
        patterned = replace(one, upper=replace(one.upper, pattern=kind))
        truth, first, second = (
            part_scores(redrawn(scene, scene.people, [who, other]), scene, 0) for who in (one, coloured, patterned)
        )
        assert truth["upper"] > 0.9
        assert first["upper"] < 0.4
        assert second["upper"] < 0.85
        assert first["face"] == pytest.approx(truth["face"], abs=0.1)


def test_blur_is_forgiven(scenes: list[Scene]) -> None:
    for blur in (1.0, 1.6):
        pictures = [cv2.GaussianBlur(scene.picture, (0, 0), blur) for scene in scenes]
        assert mean(pose_error, pictures, scenes) < 0.03
        assert mean(identity, pictures, scenes) > 0.95
        assert mean(leakage, pictures, scenes) < 0.06


def test_damage_is_monotone(scenes: list[Scene]) -> None:
    random = np.random.default_rng(0)
    static = [random.normal(0, 1, scene.picture.shape) for scene in scenes]
    scores = []
    for strength in (0, 30, 80, 160):
        pictures = [
            np.clip(scene.picture + strength * grain, 0, 255).astype(np.uint8)
            for scene, grain in zip(scenes, static, strict=True)
        ]
        scores.append((mean(identity, pictures, scenes), mean(pose_error, pictures, scenes)))
    identities, errors = zip(*scores, strict=True)
    assert list(identities) == sorted(identities, reverse=True)
    assert list(errors) == sorted(errors)


def test_a_puppet_is_told_from_others(scenes: list[Scene]) -> None:
    strangers = [puppet(3_000_000 + number) for number in range(4)]
    right = measure(cv2.GaussianBlur(scenes[0].picture, (0, 0), 1.0), scenes[0], strangers)
    assert [one.recognised for one in right] == [1.0, 1.0]
    as_strangers = redrawn(scenes[0], scenes[0].people, strangers[:2])
    wrong = measure(as_strangers, scenes[0], strangers)
    assert max(one.recognised for one in wrong) < 1.0


def test_another_size_is_refused(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        measure(np.zeros((64, 64, 3), np.uint8), scenes[0])


def test_routing_is_held_against_the_masks(scenes: list[Scene]) -> None:
    scene = scenes[0]
    masks = np.stack([scene.mask(number) for number in range(2)]).astype(np.float32)
    small = np.stack([cv2.resize(mask, (32, 32), interpolation=cv2.INTER_AREA) for mask in masks])
    assert routing_iou(masks, scene) == [1.0, 1.0]
    assert routing_iou(small, scene) == [1.0, 1.0]
    assert max(routing_iou(masks[::-1].copy(), scene)) < 0.1
    assert routing_iou(np.zeros_like(small), scene) == [0.0, 0.0]
    everywhere = routing_iou(np.ones_like(masks), scene)
    assert everywhere == pytest.approx([float(mask.mean()) for mask in masks], abs=0.02)
