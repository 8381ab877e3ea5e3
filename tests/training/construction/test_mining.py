"""Pair mining against loops in float64, and what counts as one picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.training.construction.colours import histogram, in_common
from comfyui_ensemble.training.construction.mining import Pair, same_subject_pairs, thumbnail


def mine_in_loops(embeddings, pictures, thumbnails, threshold, neighbours, duplicate) -> set[tuple[int, int]]:
    """Mutual nearest neighbours as they are defined, one number at a time, in float64."""
    features = embeddings.double().numpy()
    count = len(features)

    def same_picture(one: int, other: int) -> bool:
        if pictures[one] == pictures[other]:
            return True
        first = thumbnails[pictures[one]].double().numpy().reshape(3, 16, 16)
        second = thumbnails[pictures[other]].double().numpy().reshape(3, 16, 16)
        return max((first * second).sum(), (first[:, :, ::-1] * second).sum()) >= duplicate

    nearest = []
    for one in range(count):
        found = []
        for other in range(count):
            similarity = sum(float(a) * float(b) for a, b in zip(features[one], features[other], strict=True))
            if not same_picture(one, other) and similarity >= threshold:
                found.append((-similarity, other))
        nearest.append({other for _, other in sorted(found)[:neighbours]})
    return {(one, other) for one in range(count) for other in nearest[one] if one < other and one in nearest[other]}


def crowd(seed: int, subjects: int = 14, most: int = 4, spread: float = 0.35):
    """Crops of subjects that are seen up to `most` times, some twice in a picture, some in copies of a picture."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(subjects, 24, generator=random)
    whose = torch.cat([torch.full((1 + number % most,), number) for number in range(subjects)])
    embeddings = centres[whose] + spread * torch.randn(len(whose), 24, generator=random)
    pictures = torch.randint(0, len(whose) // 2, (len(whose),), generator=random)
    thumbnails = torch.randn(len(whose) // 2, 768, generator=random)
    thumbnails[1] = thumbnails[0] + 0.05 * thumbnails[2]
    thumbnails[3] = thumbnails[4].reshape(3, 16, 16).flip(-1).flatten()
    thumbnails[5] = 0
    normal = torch.nn.functional.normalize
    return normal(embeddings, dim=1), pictures, normal(thumbnails, dim=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("neighbours, threshold", [(1, 0.6), (3, 0.6), (2, -1.0), (50, 0.3)])
@pytest.mark.parametrize("block", [1, 7, 1024])
def test_pairs_are_those_of_the_definition(seed, neighbours, threshold, block):
    embeddings, pictures, thumbnails = crowd(seed)
    pairs = same_subject_pairs(embeddings, pictures, thumbnails, threshold, neighbours, 0.985, block)
    found = [(pair.first, pair.second) for pair in pairs]
    assert found == sorted(mine_in_loops(embeddings, pictures, thumbnails, threshold, neighbours, 0.985))
    for pair in pairs:
        assert pair.similarity == pytest.approx(float(embeddings[pair.first] @ embeddings[pair.second]), abs=1e-5)


def test_the_subjects_of_a_clear_case_are_found():
    """Far apart and always seen in different pictures: the pairs are all those of one subject, and no others."""
    subjects, times = 9, 3
    embeddings = torch.eye(16)[torch.arange(subjects).repeat_interleave(times)]
    pictures = torch.arange(subjects * times)
    thumbnails = torch.nn.functional.normalize(torch.randn(len(pictures), 768), dim=1)
    pairs = same_subject_pairs(embeddings, pictures, thumbnails, 0.9, neighbours=times - 1)
    assert [(pair.first, pair.second) for pair in pairs] == [
        (one, other)
        for one in range(len(pictures))
        for other in range(one + 1, len(pictures))
        if one // times == other // times
    ]


def test_nothing_to_pair():
    none = torch.zeros(0, 4)
    assert same_subject_pairs(none, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 768), 0.5) == []
    one = torch.eye(4)[:1]
    assert same_subject_pairs(one, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 768), 0.5) == []


def test_of_equally_similar_ones_the_first_is_nearer():
    embeddings = torch.eye(4)[[0, 0, 0]]
    pairs = same_subject_pairs(embeddings, torch.arange(3), torch.zeros(3, 768), 0.5, neighbours=1)
    assert pairs == [Pair(0, 1, 1.0)]


def test_copies_are_pairs_where_that_is_asked_for():
    copies = torch.nn.functional.normalize(torch.randn(1, 768), dim=1).expand(2, 768)
    embeddings, pictures = torch.eye(4)[[0, 0]], torch.arange(2)
    assert same_subject_pairs(embeddings, pictures, copies, 0.5, duplicate=0.999) == []
    assert same_subject_pairs(embeddings, pictures, copies, 0.5, duplicate=1.0) == [Pair(0, 1, 1.0)]


def photo(seed: int = 0, side: int = 200) -> torch.Tensor:
    """Something like a photograph: coarse shapes and fine grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (7, 7, 3)).astype(np.uint8)).resize((side, side))
    grain = random.normal(0, 8, (side, side, 3))
    return torch.from_numpy((np.asarray(coarse) + grain).clip(0, 255).astype(np.float32) / 255)


def test_copies_have_alike_thumbnails_and_others_do_not(tmp_path):
    first = photo()
    pixels = Image.fromarray((first.numpy() * 255).astype(np.uint8))
    pixels.resize((123, 131)).save(tmp_path / "copy.jpg", quality=40)
    with Image.open(tmp_path / "copy.jpg") as image:
        compressed = torch.from_numpy(np.asarray(image).astype(np.float32) / 255)
    brighter = first * 0.6 + 0.3
    for copy in (compressed, brighter):
        assert float(thumbnail(first) @ thumbnail(copy)) > 0.985
    others = [float(thumbnail(first) @ thumbnail(photo(seed))) for seed in range(1, 20)]
    assert max(others) < 0.9
    assert float(thumbnail(torch.full((40, 50, 3), 0.3)).abs().max()) == 0
    assert float(thumbnail(first).norm()) == pytest.approx(1, abs=1e-5)


# Colours


def test_colours_in_common():
    random = np.random.default_rng(0)
    everywhere = np.ones((32, 32), bool)
    red, green = np.zeros((2, 32, 32, 3), np.float32)
    red[..., 0], green[..., 1] = 0.9, 0.9
    half = red.copy()
    half[:16] = green[:16]
    of = {name: histogram(picture, everywhere) for name, picture in (("red", red), ("green", green), ("half", half))}
    for values in of.values():
        assert values.sum() == pytest.approx(1, abs=1e-5) and (values >= 0).all()
    assert in_common(of["red"], of["red"]) == pytest.approx(1, abs=1e-5)
    assert in_common(of["red"], of["green"]) == pytest.approx(0, abs=1e-6)
    assert in_common(of["red"], of["half"]) == pytest.approx(0.5, abs=1e-5)
    dimmer = histogram(red * 0.95 + random.normal(0, 0.005, red.shape).astype(np.float32), everywhere)
    assert in_common(of["red"], dimmer) > 0.75


def test_colours_of_the_mask_alone():
    picture = np.random.default_rng(1).random((20, 20, 3)).astype(np.float32)
    mask = np.zeros((20, 20), bool)
    mask[3:9, 4:15] = True
    changed = picture.copy()
    changed[~mask] = 0.5
    np.testing.assert_array_equal(histogram(picture, mask), histogram(changed, mask))
    assert histogram(picture, np.zeros((20, 20), bool)).sum() == 0
