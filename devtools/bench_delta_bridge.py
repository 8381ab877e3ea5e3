"""What Delta-Bridge costs: rows for ``dev.py bench``.

Against plain guidance with the same model, prompts and sampler, in paired runs: a whole sampling with the node's defaults, and
a step in which the third prompt is computed. Then what it does besides the model's call, at the latent of a 1024 x 1024
picture. On a CPU in processor time on one thread, which other work on the machine disturbs far less than the clock on the wall.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import comfy.model_management
import comfy.samplers
import torch

from comfyui_ensemble.attention_patches.delta_bridge import apply_delta_bridge, bridge
from comfyui_ensemble.models_info.registry import TINY_SDXL
from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.bench_row import AT_MOST, Row

STRENGTH, END, ROUNDS = 3.0, 0.6, 4  # the node's defaults
STEPS, PAIRS = 10, 5
LATENT = 16  # what the tiny SDXL samples in the workflows
PICTURE = 128  # 1024 x 1024 pixels
PROMISED = 1.5
PROMISED_MS = 5.0


def rows() -> list[Row]:
    """Medians of paired runs."""
    device = comfy.model_management.get_torch_device()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_tiny_models(Path(folder))
        model = load_tiny_sdxl(Path(folder) / TINY_SDXL.folder / TINY_SDXL.name)
    prompts = [[[torch.randn(1, 16, 384), {"pooled_output": torch.randn(1, 384)}]] for _ in range(3)]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    patched = apply_delta_bridge(model, prompts[2], STRENGTH, END, ROUNDS)
    with torch.inference_mode():
        ratios = {
            ("run", "sampling with the defaults"): _ratio(model, patched, prompts, sigmas),
            ("step", "step while it pulls"): _ratio(model, patched, prompts, sigmas[:3]),
        }
        milliseconds = 1000 * _besides(device)
    where: dict[str, Any] = {"device": str(device)}
    found = [
        Row(
            f"delta_bridge.{id}",
            f"Delta-Bridge, tiny SDXL, {what}, over plain guidance",
            "x",
            ratio,
            PROMISED,
            AT_MOST,
            **where,
        )
        for (id, what), ratio in ratios.items()
    ]
    name = f"Delta-Bridge besides the model, a step, latent of {PICTURE} x {PICTURE}"
    return [*found, Row("delta_bridge.besides", name, "ms", milliseconds, PROMISED_MS, **where)]


def _ratio(model: Any, patched: Any, prompts: Any, sigmas: torch.Tensor) -> float:
    ratios = []
    for pair in range(PAIRS + 1):
        # Who goes first alternates, so that a machine that warms up or slows down favours neither.
        taken = {id(each): _sample(each, prompts, sigmas) for each in (model, patched)[:: 1 if pair % 2 else -1]}
        ratios.append(taken[id(patched)] / taken[id(model)])
    return statistics.median(ratios[1:])  # the first pair loads the model


def _sample(model: Any, prompts: Any, sigmas: torch.Tensor) -> float:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompts[0], prompts[1])
    guider.set_cfg(7.0)
    noise = torch.randn(1, 4, LATENT, LATENT)
    sampler = comfy.samplers.sampler_object("euler")
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    clock, threads = (time.process_time if on_cpu else time.perf_counter), torch.get_num_threads()
    torch.set_num_threads(1)
    start = clock()
    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)
    taken = clock() - start
    torch.set_num_threads(threads)
    return taken


def _besides(device: torch.device) -> float:
    """Seconds of the difference, the smoothing and the sum, for one picture."""
    positive, appearance, guided = torch.randn(3, 1, 4, PICTURE, PICTURE, device=device)
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        bridge(guided, positive - appearance, STRENGTH, ROUNDS).sum().item()  # waits for the accelerator
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
