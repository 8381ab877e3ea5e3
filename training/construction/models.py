"""The models of a construction, each with an identity by which its step's results are told from another model's."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

from ...batch.queue_client import QueueClient, Workflow
from ...models_info.vision_input import cut_out, square
from ...pose_db.openpose import body_network, find_people
from ..errors import TrainingError
from .captioners import Captioner
from .steps import digest, file_identity, module_identity


class PoseFinder:
    """OpenPose's body network in a file, read when the first picture needs it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def identity(self) -> str:
        return file_identity(self.path)

    @cached_property
    def _network(self) -> torch.nn.Module:
        if importlib.util.find_spec("controlnet_aux") is None:
            raise TrainingError(
                "the Python package controlnet-aux is not installed; run `pip install controlnet-aux`, or set poses to false",
                "poses",
            )
        try:
            weights = cast("dict[str, torch.Tensor]", comfy.utils.load_torch_file(str(self.path), safe_load=True))
            network = body_network(weights)
        except ValueError as error:
            raise TrainingError(f"{self.path.name} will not do: {error}", "poses") from None
        patcher = CoreModelPatcher(
            network,
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )
        comfy.model_management.load_models_gpu([patcher])
        return network

    def people(self, picture: torch.Tensor) -> np.ndarray:
        """Everybody in a picture (H, W, 3) in [0, 1]: (P, 18, 3) in its pixels and confidence."""
        pixels = (picture.cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)
        people = find_people(self._network, pixels)["people"]
        return np.array([person["pose_keypoints_2d"] for person in people], dtype=np.float64).reshape(-1, 18, 3)


class Vision:
    """A host CLIP_VISION model as a measure of likeness."""

    def __init__(self, model: ClipVisionModel) -> None:
        self._model = model

    @cached_property
    def identity(self) -> str:
        return module_identity(self._model.model)

    def embedding(self, picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What the model makes of a subject (H, W, 3) with its mask (H, W), on white and whole: (d,) of length 1, float32."""
        seen = square(cut_out(picture[None], mask[None]))
        output = self._model.encode_image(seen)
        values = output["image_embeds"]
        if values is None:  # encoders without a projection, such as DINO
            values = output["last_hidden_state"][:, 0]
        return torch.nn.functional.normalize(values[0].flatten().float().cpu(), dim=0)


@dataclass(frozen=True)
class Remote:
    """A workflow and where it runs.

    Attributes:
        nodes: titles of two of its nodes; see `edit` and `judge`.
    """

    client: QueueClient
    workflow: Workflow
    nodes: tuple[str, str]

    @property
    def identity(self) -> str:
        return digest([self.workflow, self.nodes])


@dataclass(frozen=True)
class Models:
    """What a construction sees with.

    Attributes:
        poses: None looks for none.
        faces: judges faces; None leaves them to CLIP and their colours.
        editor: a workflow that makes references; None takes the crops themselves.
        judge: a workflow that looks at pairs; None leaves them to the measures.
    """

    captioner: Captioner
    sam: ModelPatcher
    vision: Vision
    poses: PoseFinder | None = None
    faces: Vision | None = None
    editor: Remote | None = None
    judge: Remote | None = None

    @cached_property
    def sam_identity(self) -> str:
        return module_identity(cast(Any, self.sam.model))
