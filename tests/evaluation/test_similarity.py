"""Metrics by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from comfyui_ensemble.evaluation.encoders import load_encoder
from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.similarity import METRICS, Kind, find_weights, load_measure
from comfyui_ensemble.models_info.registry import (
    CLIP_VIT_B_32,
    DINO_VIT_S_16,
    FASHION_CLIP,
    GME_2B,
    MissingModelError,
)
from devtools.small_encoders import write_small_clip, write_small_face_network


def pictures(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(40, 60, 3, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", ["CLIP-I", "DINO", "DINOv2", "GME-I"])
def test_scores_are_cosines_of_pairs(encoders, name):
    measure = load_measure(name)
    first, second = pictures(0), pictures(1)
    (encoder,) = measure.encoders
    expected = [float(encoder.pictures([a])[0] @ encoder.pictures([b])[0]) for a, b in zip(first, second, strict=True)]
    assert measure.scores(first, second) == pytest.approx(expected, abs=1e-5)
    assert measure.scores(first, first) == pytest.approx([1, 1, 1], abs=1e-5)
    assert measure.scores([], []) == []


@pytest.mark.parametrize("name", ["CLIP-T", "GME-T"])
def test_scores_of_texts(encoders, name):
    measure = load_measure(name)
    (encoder,) = measure.encoders
    first, texts = pictures(0), ["a cat", "a dog", "a cat"]
    expected = [
        float(encoder.pictures([a])[0] @ encoder.texts([text])[0]) for a, text in zip(first, texts, strict=True)
    ]
    assert measure.scores(first, texts) == pytest.approx(expected, abs=1e-5)


def test_what_comes_several_times_is_encoded_once(encoders):
    measure = load_measure("DINO")
    seen = []
    (encoder,) = measure.encoders
    plain = encoder.pictures
    encoder.pictures = lambda some: (seen.append(len(some)), plain(some))[1]
    (one, other), references = pictures(0, 2), pictures(1, 2)
    scores = measure.scores([one, one, other, one], [*references, *references])
    assert seen == [2, 2]
    assert scores == pytest.approx(
        [measure.scores([a], [b])[0] for a, b in zip([one, one, other, one], references * 2, strict=True)], abs=1e-6
    )


def test_structure_takes_both_encoders_and_shares_them(encoders):
    known = {}
    structure, dino, text = (load_measure(name, known=known) for name in ("Structure", "DINO", "CLIP-T"))
    assert len(known) == 2
    assert structure.encoders[0] is dino.encoders[0] and structure.encoders[1] is text.encoders[0]
    assert structure.scores(pictures(0), pictures(0)) == pytest.approx([1, 1, 1], abs=1e-5)


def test_a_metric_with_another_model(encoders, tmp_path):
    folder = write_small_clip(tmp_path / "mine")
    encoder: Any = load_encoder(folder)
    expected = encoder.pictures(pictures(0, 1))[0] @ encoder.texts(["a cat"])[0]
    assert load_measure("FashionCLIP-T", folder).scores(pictures(0, 1), ["a cat"]) == pytest.approx([float(expected)])


def test_long_texts_are_noted(encoders):
    assert load_measure("CLIP-T").note("a red coat " * 60) and not load_measure("CLIP-T").note("a coat")


def test_models_are_found_however_deep_they_lie(encoders):
    assert find_weights(CLIP_VIT_B_32) == encoders / "openai" / CLIP_VIT_B_32.name
    with pytest.raises(MissingModelError, match=f"{FASHION_CLIP.name} is missing.*models/{FASHION_CLIP.folder} folder"):
        load_measure("FashionCLIP-I")


def test_every_metric_has_weights_and_says_what_it_compares():
    assert {metric.kind for metric in METRICS.values()} == set(Kind)
    assert all(metric.weights for metric in METRICS.values())


def test_models_that_do_not_fit_are_told(encoders, tmp_path):
    with pytest.raises(EvaluationError, match="there is no metric 'CLIP'; choose one of: CLIP-I"):
        load_measure("CLIP")
    with pytest.raises(EvaluationError, match="dino-vits16 reads no texts"):
        load_measure("CLIP-T", encoders / DINO_VIT_S_16.name)
    with pytest.raises(EvaluationError, match="looks at no places"):
        load_measure("Structure", encoders / GME_2B.name)
    with pytest.raises(EvaluationError, match="FaceSim is not measured with dino-vits16; choose an ONNX file"):
        load_measure("FaceSim", encoders / DINO_VIT_S_16.name)
    with pytest.raises(EvaluationError, match=r"DINO is not measured with face.onnx"):
        load_measure("DINO", tmp_path / "face.onnx")


def test_faces_by_a_network(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    measure = load_measure("FaceSim", write_small_face_network(tmp_path / "face.onnx"))
    faces = [torch.rand(112, 112, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    same, other = measure.scores([faces[0], faces[0]], faces)
    assert same == pytest.approx(1) and abs(other) < 0.99
