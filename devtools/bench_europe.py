"""What EURoPE adds to a sampling step, against the host's own reference latents with the same positions ("uxo")."""

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
import comfy.sample
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from comfyui_ensemble.attention_patches.europe import EUROPE, apply_europe
from comfyui_ensemble.attention_patches.layout import Layout, Reference
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.bench_row import SHARE, Row

STEPS = 2
PAIRS = 16
LATENT = 64  # 512 x 512 pixels: 1,024 tokens
REFERENCES = ((16, 16), (16, 12), (12, 16))  # tokens
PROMISED = 0.01


def rows() -> list[Row]:
    """(A step with EURoPE) / (a step with the host's own method) - 1: median of paired runs.

    On a CPU in processor time on one thread, which other work on the machine disturbs far less than the clock on the wall.
    """
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path, *_ = write_tiny_models(Path(folder))
        model = comfy.sd.load_diffusion_model(str(path))
    layout = Layout(tuple(Reference("subject", grid, str(number)) for number, grid in enumerate(REFERENCES)))
    patched = apply_europe(model, layout, EUROPE)
    latents = [torch.randn(1, 16, 2 * height, 2 * width) for height, width in REFERENCES]
    options = {"pooled_output": torch.randn(1, 384), "reference_latents": latents}
    ours = [[torch.randn(1, 32, 384), options]]
    theirs = [[ours[0][0], {**options, "reference_latents_method": "uxo"}]]
    ratios = []
    with torch.inference_mode():
        for pair in range(PAIRS + 1):
            # Who goes first alternates, so that a machine that warms up or slows down favours neither.
            runs = [(patched, ours), (model, theirs)][:: 1 if pair % 2 else -1]
            taken = {id(one): seconds_of_a_run(one, conditioning) for one, conditioning in runs}
            ratios.append(taken[id(patched)] / taken[id(model)])
    added = statistics.median(ratios[1:]) - 1  # the first pair loads the model
    name = f"EURoPE in a step of the tiny FLUX, {len(REFERENCES)} references"
    device = str(comfy.model_management.get_torch_device())
    return [Row("europe.step", name, SHARE, added, PROMISED, device=device)]


def seconds_of_a_run(model: ModelPatcher, positive: Any) -> float:
    """What `STEPS` sampling steps take."""
    latent = torch.zeros(1, 16, LATENT, LATENT)
    noise = comfy.sample.prepare_noise(latent, 0)
    steps = (STEPS, 1.0, "euler", "simple", positive, positive, latent)
    return seconds(lambda: comfy.sample.sample(model, noise, *steps, disable_pbar=True))


def seconds(call: Callable[[], Any]) -> float:
    """What a call takes; on a CPU in processor time on one thread."""
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    clock, threads = (time.process_time if on_cpu else time.perf_counter), torch.get_num_threads()
    torch.set_num_threads(1)
    comfy.model_management.synchronize()
    start = clock()
    call()
    comfy.model_management.synchronize()
    taken = clock() - start
    torch.set_num_threads(threads)
    return taken
