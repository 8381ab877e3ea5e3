"""The smallest world for trainings of SDXL: pictures of one or two colours, and a model and a VAE that learn them in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host whether there is an accelerator, before anything of it is imported)

# isort: split
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

from comfyui_ensemble.models_info.tiny_sdxl import HEADS, UNET_CONFIG
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.loop import train
from comfyui_ensemble.training.sample import TrainingSample, TrainingSubject
from comfyui_ensemble.training.sdxl_base import SDXLBaseConfig, sdxl_base
from comfyui_ensemble.training.task import Prepared
from comfyui_ensemble.training.vae import fresh_taesd

UNET: dict[str, Any] = {
    **UNET_CONFIG,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
}
ZERO_AT_FIRST = ("out.2.weight", "out_layers.3.weight", "proj_out.weight")  # as in a fresh SDXL
# Settings for a training of a few seconds, and sizes of an AnyStory network for it.
QUICK: dict[str, Any] = {
    "batch_size": 16,
    "learning_rate": 6e-3,
    "precision": "fp32",
    "augment_references": False,
    "condition_dropout": 0.0,
    "schedule": "cosine",
}
NETWORK: dict[str, Any] = {
    "queries": 4,
    "qformer_width": 32,
    "qformer_heads": 2,
    "qformer_layers": 2,
    "router_width": 32,
    "reference_size": 32,
}
BASE_STEPS = 80


class SmallSDXL(comfy.supported_models.SDXL):
    """SDXL's entry in the host's list of models, for a U-Net of width 32 with two levels."""

    unet_config = UNET
    unet_extra_config = HEADS


class ColouredScenes:
    """A `Source`: pictures of one subject, and of two beside each other, by turns; a subject is a colour."""

    def __init__(self, count: int = 4, seed: int = 2, subjects: tuple[int, ...] = (1, 2), masks: bool = True) -> None:
        self.count, self.seed, self.subjects, self.masks = count, seed, subjects, masks
        self.identity = f"colours {count} {seed} {subjects} {masks}"

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> TrainingSample:
        random = torch.Generator().manual_seed(1000 * self.seed + index)
        number = self.subjects[index % len(self.subjects)]
        target, subjects = torch.zeros(64, 64, 3), []
        for place in range(number):
            colour = torch.rand(3, generator=random).round() * 0.8 + 0.1
            mask = torch.zeros(64, 64)
            mask[:, 64 * place // number : 64 * (place + 1) // number] = 1
            target[mask > 0] = colour
            words = f"colour {place + 1}"
            reference = colour.expand(32, 32, 3).clone()
            own = mask if self.masks else None
            subjects.append(TrainingSubject(words, words, "other", reference, torch.ones(32, 32), own))
        caption = " beside ".join(subject.description for subject in subjects)
        return TrainingSample(f"{self.identity}/{index}", target, caption, tuple(subjects))


def coloured_data(size: int = 64, **settings: Any) -> TrainingData:
    """Four pictures, or what `settings` of `ColouredScenes` say."""
    return TrainingData(ColouredScenes(**settings), size, 32)


def lively_vae() -> comfy.sd.VAE:
    """An untrained VAE in whose latents colours differ."""
    return comfy.sd.VAE(sd=fresh_taesd(4, 0).state_dict())


def small_sdxl(fresh: bool = True) -> comfy.model_patcher.ModelPatcher:
    """Untrained; it predicts velocity, so that what it makes of the strongest noise counts as much as the rest.

    Args:
        fresh: as a training begins, with zeros where blocks end; otherwise all weights are random.
    """
    config = SmallSDXL(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    model.load_model_weights(_weights(model.diffusion_model, fresh), "")
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return ModelSamplingDiscrete().patch(patcher, "v_prediction", False)[0]


def brief_base(vae: comfy.sd.VAE, clip: comfy.sd.CLIP, out: Path) -> comfy.model_patcher.ModelPatcher:
    """A small model that has learned to draw two colours, and not which."""
    config = replace(
        SDXLBaseConfig(**QUICK),
        batch_size=8,
        learning_rate=3e-3,
        condition_dropout=1.0,
        steps=BASE_STEPS,
        schedule="constant",
    )
    task, data = sdxl_base(small_sdxl(), vae, clip, coloured_data(count=64, seed=1), config)
    train(task, data, replace(config, workers=0), out)
    return task.model.patcher


def _weights(network: torch.nn.Module, fresh: bool) -> dict[str, torch.Tensor]:
    weights = {}
    for seed, (name, value) in enumerate(sorted(network.state_dict().items())):
        random = torch.Generator().manual_seed(seed)
        if (fresh and name.endswith(ZERO_AT_FIRST)) or value.ndim < 2:
            weights[name] = torch.full(value.shape, float(value.ndim < 2 and not name.endswith("bias")))
        else:
            weights[name] = torch.randn(value.shape, generator=random) / math.sqrt(math.prod(value.shape[1:]))
    return weights


def in_double(task: Any, batch: Sequence[Prepared]) -> list[Prepared]:
    """Have an AnyStory training compute in float64, so that differences of its losses are exact to many digits.

    Returns:
        The samples in float64.
    """
    network = task.model.network.double()
    network.dtype = torch.float64
    for half in (task.anystory.encoding, task.anystory.injecting):
        half.model.double()
    task.zero = task.zero.double()
    return [
        {name: value.double() if value.is_floating_point() else value for name, value in each.items()} for each in batch
    ]
