"""What a training step of the tiny FLUX costs, and how much of it is the network's own work: rows for ``dev.py bench``.

Batches of 16 pictures of 128 x 128 pixels with two references of 64 pixels (One-for-All: one) and a pose map (One-for-All: none)
in bfloat16, with captions of unequal length. The network's own work is its forward pass, the way back, and the optimizer; the rest
is noise, conditionings, adapters beside the network, placing, and the host's way to the network.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import comfy.model_management
import comfy.sd
import torch

from comfyui_ensemble.models_info.minilm import load_minilm_clip
from comfyui_ensemble.models_info.registry import TINY_FLUX, TINY_VAE, TINY_VISION, find_minilm, register_folders
from comfyui_ensemble.models_info.tiny_vision import load_tiny_vision
from comfyui_ensemble.training.astra import astra
from comfyui_ensemble.training.astra_config import ASTRAConfig
from comfyui_ensemble.training.checkpointing import host_in_training
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.flux_base import FluxBaseConfig, flux_base
from comfyui_ensemble.training.flux_task import FluxTask
from comfyui_ensemble.training.models import load_flux, load_vae
from comfyui_ensemble.training.one_for_all import one_for_all
from comfyui_ensemble.training.one_for_all_config import OneForAllConfig
from comfyui_ensemble.training.precision import autocast
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.bench_row import SHARE, Row
from devtools.block_scenes import BlockScenes
from devtools.training_checks import prepared_batch

BATCH = 16
SIZE, REFERENCE = 128, 64
RANK = 16
STEPS = 8
PROMISED_REST = 0.2
PROMISED_MS = 150.0  # a sample, in processor time; about 90 on the machine this was written on
_COMMON: dict[str, Any] = {"batch_size": BATCH, "augment_references": False, "pose_dropout": 0.0}


def rows() -> list[Row]:
    """For each trainer: processor time a sample, and the share of a step that is not the network's own work."""
    register_folders()
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_models(Path(folder))
        for name, task, data in _tasks(Path(folder)):
            step, rest = _measured(task, data)
            about = f"{name}, tiny FLUX, batch {BATCH}"
            id = f"flux_training.{name.lower().replace(' ', '_').replace('-', '_')}"
            where: dict[str, Any] = {"device": str(comfy.model_management.get_torch_device())}
            found += [
                Row(f"{id}.sample", f"a sample of a step: {about}", "ms", 1000 * step / BATCH, PROMISED_MS, **where),
                Row(f"{id}.outside", f"outside the network: {about}", SHARE, rest, PROMISED_REST, **where),
            ]
    return found


def _tasks(models: Path) -> list[tuple[str, FluxTask, TrainingData]]:
    paths = {entry: models / entry.folder / entry.name for entry in (TINY_FLUX, TINY_VAE, TINY_VISION)}
    flux, vae, vision = load_flux(paths[TINY_FLUX]), load_vae(paths[TINY_VAE]), load_tiny_vision(paths[TINY_VISION])
    clip = load_minilm_clip(find_minilm())
    pairs = TrainingData(BlockScenes(count=64, size=(SIZE, SIZE), blocks=(2,)), SIZE, REFERENCE)
    things = BlockScenes(count=64, size=(SIZE, SIZE), categories=("face", "upper garment", "lower garment", "bag"))
    of_astra = ASTRAConfig(**_COMMON, lora_rank=RANK, dsm_width=64, dsm_heads=4)
    of_all = OneForAllConfig(**_COMMON, lora_rank=RANK, dam_width=32)
    of_base = FluxBaseConfig(**_COMMON, condition_dropout=0.0, reference_dropout=0.0)
    return [
        ("ASTRA", *astra(flux, vae, clip, vision, pairs, of_astra)),
        ("One-for-All", *one_for_all(flux, vae, clip, TrainingData(things, SIZE, REFERENCE), of_all)),
        ("FLUX base", *flux_base(flux, vae, clip, pairs, of_base)),
    ]


def _measured(task: FluxTask, data: TrainingData) -> tuple[float, float]:
    """Seconds a step, and the share of it outside the network: medians."""
    batch, positions = prepared_batch(task, data, BATCH)
    parameters = [value for module in task.modules().values() for value in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    network, inside = task.model.network, 0.0
    forward: Callable[..., torch.Tensor] = network._forward  # type: ignore[assignment]

    def timed(call: Callable[[], Any]) -> Any:
        nonlocal inside
        start = time.process_time()
        result = call()
        inside += time.process_time() - start
        return result

    network._forward = lambda *args, **options: timed(lambda: forward(*args, **options))  # type: ignore[assignment]

    def step() -> tuple[float, float]:
        nonlocal inside
        inside, start = 0.0, time.process_time()
        with autocast("bf16", task.model.patcher.load_device):
            loss = task.losses(batch, positions)["loss"].mean()
        timed(loss.backward)
        timed(optimizer.step)
        optimizer.zero_grad()
        whole = time.process_time() - start
        return whole, (whole - inside) / whole

    with host_in_training():
        step()
        wholes, rests = zip(*(step() for _ in range(STEPS)), strict=True)
    return statistics.median(wholes), statistics.median(rests)
