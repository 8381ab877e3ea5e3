"""What a step of ASTRA's and One-for-All's trainings costs at FLUX.1's block sizes: rows for ``dev.py bench``.

The blocks of `bench_training`, the adapters at the sizes that the trainers have by default, one picture:
for ASTRA with two references and a pose map, for One-for-All with one reference. Base weights and computation in bfloat16, what is
trained in float32. Peak memory is that of the tensors a step makes, without those that are there before it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from comfyui_ensemble.attention_patches.dam_file import make_dam
from comfyui_ensemble.attention_patches.dam_generator import FLUX_DAM, fresh_dam
from comfyui_ensemble.attention_patches.dsm_adapter import FLUX_DSM, fresh_dsm
from comfyui_ensemble.attention_patches.dsm_file import make_dsm
from comfyui_ensemble.attention_patches.layout import Layout, Reference
from comfyui_ensemble.training.adapters import resident
from comfyui_ensemble.training.astra import ASTRA
from comfyui_ensemble.training.astra_config import ASTRAConfig
from comfyui_ensemble.training.flux_task import FluxTask
from comfyui_ensemble.training.model import TrainableModel
from comfyui_ensemble.training.one_for_all import OneForAll
from comfyui_ensemble.training.one_for_all_config import OneForAllConfig
from comfyui_ensemble.training.task import Prepared
from devtools.bench_row import Row
from devtools.bench_training import FLUX, Case, cases, random_model, task_rows

BLOCKS = {"double_blocks": FLUX["depth"], "single_blocks": FLUX["depth_single_blocks"]}
PATCHES = 257  # of CLIP ViT-L/14
NO_ENCODERS: Any = None  # samples are made up here


def rows() -> list[Row]:
    """Step time and peak memory of both, with and without gradient checkpointing."""
    device = comfy.model_management.get_torch_device()
    case = cases(device.type == "cpu")[0]
    model = random_model(case, device)
    found: list[Row] = []
    for name, task, make, sample in (
        ("astra", ASTRA.name, _astra, _astra_sample(case)),
        ("one_for_all", OneForAll.name, _one_for_all, _one_for_all_sample(case)),
    ):
        title = f"{task}, FLUX.1 blocks, latent {case.size[0]} x {case.size[1]}"
        found += task_rows(f"flux_block_training.{name}", title, partial(make, model), sample, device)
    return found


def _astra(model: ModelPatcher, checkpointing: bool) -> FluxTask:
    config = ASTRAConfig(gradient_checkpointing=checkpointing)
    sizes = replace(FLUX_DSM, **BLOCKS)
    return ASTRA(_trainable(model, config), NO_ENCODERS, config, resident(make_dsm(fresh_dsm(sizes, 0), sizes)))


def _one_for_all(model: ModelPatcher, checkpointing: bool) -> FluxTask:
    config = OneForAllConfig(gradient_checkpointing=checkpointing)
    sizes = replace(FLUX_DAM, **BLOCKS)
    return OneForAll(_trainable(model, config), NO_ENCODERS, config, resident(make_dam(fresh_dam(sizes, 0), sizes)))


def _trainable(model: ModelPatcher, config: ASTRAConfig | OneForAllConfig) -> TrainableModel:
    return TrainableModel(model, "lora", config.lora_rank, None, config.gradient_checkpointing, config.seed)


def _astra_sample(case: Case) -> Prepared:
    side = case.size[0] // 2  # of references, in latent pixels
    subjects = [Reference("subject", (side // 2, side // 2), f"subject {number}") for number in (1, 2)]
    pose = Reference("pose", (case.size[0] // 2, case.size[1] // 2))
    latents = [torch.randn(1, case.channels, side, side) for _ in subjects]
    return {
        **_conditions(case, [*latents, torch.randn(1, case.channels, *case.size)], (*subjects, pose)),
        "names": [subject.name for subject in subjects],
        "vision": torch.randn(2, len(FLUX_DSM.clip_layers), PATCHES, FLUX_DSM.clip_width),
        "modulated": True,
    }


def _one_for_all_sample(case: Case) -> Prepared:
    side = case.size[0] // 2
    garment = Reference("subject", (side // 2, side // 2), "subject 1", "upper garment")
    return _conditions(case, [torch.randn(1, case.channels, side, side)], (garment,))


def _conditions(case: Case, latents: list[torch.Tensor], references: tuple[Reference, ...]) -> Prepared:
    names = [reference.name for reference in references if reference.role == "subject"]
    return {
        "latent": torch.randn(1, case.channels, *case.size),
        "text": torch.randn(1, case.text, case.context),
        "pooled": torch.randn(1, case.pooled),
        "spans": {name: [(4 * number, 4 * number + 3)] for number, name in enumerate(names)},
        "references": latents,
        "layout": Layout(references),
    }
