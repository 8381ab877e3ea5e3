"""Subjects found by words: boxes from a GroundingDINO, OWL-ViT or OWLv2 in a local folder.

Sources: Liu et al., "Grounding DINO", ECCV 2024; Minderer et al., "Scaling Open-Vocabulary Object Detection", NeurIPS 2023.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .crops import Box
from .encoders import as_image
from .errors import EvaluationError
from .model_folder import HeldModel, model_type, read_network, read_part

DETECTORS = ("grounding-dino", "owlvit", "owlv2")
SURE = 0.25  # how sure a box must be, GroundingDINO's own


class Detector:
    """A model that finds what words say."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.name = folder.name
        self._kind = model_type(folder)
        if self._kind not in DETECTORS:
            raise EvaluationError(
                f"{self.name} is a {self._kind} model; choose a GroundingDINO, OWL-ViT or OWLv2 as a detector"
            )
        self._model = HeldModel(read_network(folder, AutoModelForZeroShotObjectDetection))
        config = self._model.network.config
        self._longest = (
            config.max_text_len if self._kind == "grounding-dino" else config.text_config.max_position_embeddings
        )
        self._processor: Any = read_part(
            folder, lambda: AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )

    def find(self, picture: torch.Tensor, words: str, threshold: float = SURE) -> Box | None:
        """The box it is surest of in a picture (H, W, 3) for some words; None where it is not sure enough of any."""
        image = as_image(picture)
        phrase = f"{words.strip().rstrip('.').lower()}." if self._kind == "grounding-dino" else words.strip()
        text = phrase if self._kind == "grounding-dino" else [[phrase]]
        inputs = self._processor(
            images=image, text=text, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        boxes = self._model.run(
            lambda network, device: self._boxes(network(**inputs.to(device)), inputs, image, threshold)
        )
        if not len(boxes):
            return None
        left, top, right, bottom = boxes[boxes[:, 4].argmax(), :4].tolist()
        return left, top, right, bottom

    def _boxes(self, outputs: Any, inputs: Any, image: Any, threshold: float) -> torch.Tensor:
        """(N, 5): corners in pixels, within the picture, and how sure."""
        options: dict[str, Any] = {"threshold": threshold, "target_sizes": [(image.height, image.width)]}
        if self._kind == "grounding-dino":
            options |= {"input_ids": inputs["input_ids"], "text_threshold": threshold}
        found = self._processor.post_process_grounded_object_detection(outputs, **options)[0]
        corners = found["boxes"].clamp(min=0).minimum(found["boxes"].new_tensor([image.width, image.height] * 2))
        there = (corners[:, 2:] - corners[:, :2] >= 1).all(dim=1)
        return torch.cat([corners, found["scores"][:, None]], dim=1)[there]
