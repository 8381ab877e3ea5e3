"""Detectors in folders: the box Transformers is surest of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.evaluation.detector import Detector
from comfyui_ensemble.evaluation.errors import EvaluationError
from devtools.small_encoders import write_small_dino, write_small_grounding_dino, write_small_owl

PICTURE = (torch.rand(50, 77, 3, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
TEXTS = {"owl": [["A man"]], "dino": "a man."}


@pytest.fixture(scope="module", params=["owl", "dino"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write = {"owl": write_small_owl, "dino": write_small_grounding_dino}[request.param]
    return write(tmp_path_factory.mktemp("detectors") / request.param)


def test_it_is_the_box_transformers_is_surest_of(folder):
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    image = Image.fromarray((PICTURE.numpy() * 255).astype(np.uint8))
    inputs = processor(images=image, text=TEXTS[folder.name], return_tensors="pt")
    options = {"input_ids": inputs["input_ids"]} if folder.name == "dino" else {}
    found = processor.post_process_grounded_object_detection(
        model(**inputs), threshold=0.1, target_sizes=[(50, 77)], **options
    )[0]
    visible = [
        (float(score), np.clip(box.numpy(), 0, (77, 50, 77, 50)))
        for box, score in zip(found["boxes"], found["scores"], strict=True)
    ]
    visible = [(score, box) for score, box in visible if (box[2:] - box[:2] >= 1).all()]
    _, expected = max(visible, key=lambda entry: entry[0])
    given = Detector(folder).find(PICTURE, " A man", 0.1)
    assert given is not None
    np.testing.assert_allclose(given, expected, atol=1e-3)


def test_nothing_is_found_where_it_is_not_sure(folder):
    assert Detector(folder).find(PICTURE, "a man", 1.0) is None


def test_very_many_words_are_cut(folder):
    """What is beyond the longest text that the network takes makes no difference."""
    detector = Detector(folder)
    found = detector.find(PICTURE, "a red coat " * 200, 0.1)
    assert found is not None and found == detector.find(PICTURE, "a red coat " * 200 + "a blue hat " * 100, 0.1)


def test_another_model_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="is a vit model; choose a GroundingDINO"):
        Detector(write_small_dino(tmp_path / "dino"))
