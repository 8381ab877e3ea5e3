"""The structure score, by loops; and that it is about places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfyui_ensemble.evaluation.encoders import load_encoder
from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.structure import structure_scores
from comfyui_ensemble.models_info.registry import CLIP_VIT_B_32, DINO_VIT_S_16


@pytest.fixture(scope="module")
def both(encoders):
    return [load_encoder(encoders / name) for name in (DINO_VIT_S_16.name, f"openai/{CLIP_VIT_B_32.name}")]


def pictures(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(40, 60, 3, generator=generator) for _ in range(count)]


def test_it_is_the_mean_over_encoders_of_the_mean_over_places(both):
    first, second = pictures(0), pictures(1)
    expected = []
    for one, other in zip(first, second, strict=True):
        encoders = []
        for encoder in both:
            patches = [encoder.places([picture])[0].double().numpy() for picture in (one, other)]
            cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*patches, strict=True)]
            encoders.append(sum(cosines) / len(cosines))
        expected.append(sum(encoders) / 2)
    assert structure_scores(both, first, second) == pytest.approx(expected, abs=1e-6)


def test_a_picture_has_its_own_structure_and_not_that_of_its_mirror_image(both):
    whole = pictures(2)
    assert structure_scores(both, whole, whole) == pytest.approx([1, 1, 1], abs=1e-5)
    mirrored = [picture.flip(1) for picture in whole]
    assert max(structure_scores(both, whole, mirrored)) < 0.99


def test_many_pictures_are_the_same_as_few(both):
    first, second = pictures(0), pictures(1)
    few = structure_scores(both, first, second)
    assert structure_scores(both, first * 7, second * 7) == pytest.approx(few * 7, abs=1e-6)


def test_pictures_of_other_proportions_are_refused(both):
    structure_scores(both, pictures(0, 1), [torch.rand(41, 60, 3)])
    with pytest.raises(EvaluationError, match="60 x 40, the reference 60 x 60"):
        structure_scores(both, pictures(0, 1), [torch.rand(60, 60, 3)])
