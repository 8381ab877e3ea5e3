"""What a step of AnyStory's two trainings costs at SDXL's block sizes: rows for ``dev.py bench``.

The U-Net and the ReferenceNet have SDXL's levels with one residual and one transformer block each, and the network AnyStory's
own sizes; one picture with two subjects. Base weights and computation in bfloat16, what is trained in float32. Peak memory is
that of the tensors a step makes, without those that are there before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from comfyui_ensemble.attention_patches.anystory_file import AnyStory, make_anystory
from comfyui_ensemble.attention_patches.anystory_network import SDXL_ANYSTORY, AnyStoryConfig, fresh_anystory
from comfyui_ensemble.attention_patches.reference_net import unet_sizes
from comfyui_ensemble.training.anystory_config import AnyStoryEncoderConfig, AnyStoryRouterConfig
from comfyui_ensemble.training.anystory_encoder import AnyStoryEncoderTask
from comfyui_ensemble.training.anystory_router import AnyStoryRouterTask
from comfyui_ensemble.training.task import Prepared, Task
from devtools.bench_row import Row
from devtools.bench_training import SDXLPart, cases, random_model, task_rows

SUBJECTS, PATCHES = 2, 257  # of CLIP ViT-H/14


@dataclass
class RandomEncoders:
    """In the place of encoders of gigabytes: what they would give is made up."""

    device: torch.device

    def zero(self) -> torch.Tensor:
        """As `SDXLEncoders.zero`."""
        return torch.randn(1, PATCHES, SDXL_ANYSTORY.clip_width)


def rows() -> list[Row]:
    """Step time and peak memory of both stages, with and without gradient checkpointing."""
    device = comfy.model_management.get_torch_device()
    case = cases(device.type == "cpu")[1]
    model = random_model(case, device)
    sizes = replace(
        SDXL_ANYSTORY,
        unet=unet_sizes(SDXLPart.unet_config | {"num_heads": -1, "num_head_channels": 64}),
        reference_size=8 * min(64, case.size[0]),
    )
    anystory = make_anystory({name: value.bfloat16() for name, value in fresh_anystory(sizes, 0).items()}, sizes)
    found: list[Row] = []
    for stage in ("encoder", "router"):
        title = f"AnyStory {stage}, SDXL blocks, latent {case.size[0]} x {case.size[1]}, {SUBJECTS} subjects"
        make = partial(_task, stage, model, anystory)
        found += task_rows(f"anystory_training.{stage}", title, make, _sample(sizes, case.size), device)
    return found


def _task(stage: str, model: ModelPatcher, anystory: AnyStory, checkpointing: bool) -> Task:
    encoders: Any = RandomEncoders(model.load_device)
    if stage == "router":
        return AnyStoryRouterTask(model, encoders, anystory, AnyStoryRouterConfig(gradient_checkpointing=checkpointing))
    settings = AnyStoryEncoderConfig(gradient_checkpointing=checkpointing, regions="masks")
    return AnyStoryEncoderTask(model, encoders, anystory, settings)


def _sample(sizes: AnyStoryConfig, size: tuple[int, int]) -> Prepared:
    reference = sizes.reference_size // 8
    masks = torch.zeros(SUBJECTS, *size)
    masks[0, :, : size[1] // 3], masks[1, :, size[1] // 2 :] = 1, 1
    return {
        "latent": comfy.latent_formats.SDXL().process_in(torch.randn(4, *size)),
        "text": torch.randn(77, sizes.text_width),
        "pooled": torch.randn(1280),
        "size": torch.tensor([8 * side for side in size]),
        "clip": torch.randn(SUBJECTS, PATCHES, sizes.clip_width),
        "reference": torch.randn(SUBJECTS, 4, reference, reference),
        "reference_mask": torch.ones(SUBJECTS, 1, reference, reference),
        "masks": masks,
    }
