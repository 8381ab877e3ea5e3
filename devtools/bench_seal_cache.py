"""How often SeAl's appearance cache runs the model, counted on the tiny SDXL: rows for ``dev.py bench``.

Once a cached timestep when a picture is new; never when only the seed changed, which ComfyUI's own caching sees to: for that a
bundled workflow is queued twice on a server.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from comfyui_ensemble.attention_patches.appearance_cache import cache_appearance, spread_sigmas
from comfyui_ensemble.models_info.registry import PACK_FOLDER, TINY_SDXL
from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.bench_row import AT_MOST, Row
from devtools.server import ComfyServer

TIMESTEPS = 4
LATENT, TEXT = 16, 384
NODES = "EnsembleAppearanceCache", "KSampler"
WORKFLOW = PACK_FOLDER / "workflows" / "api" / "seal_identity_and_pose.json"


def rows() -> list[Row]:
    """Passes through the model for every cached timestep: for a new picture, and for one that was there before."""
    device = str(comfy.model_management.get_torch_device())
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_tiny_models(models)
        with torch.inference_mode():
            new = _passes(load_tiny_sdxl(models / TINY_SDXL.folder / TINY_SDXL.name)) / TIMESTEPS
        again = new if _is_run_again(Path(folder) / "server", models) else 0.0
    about = "passes of the model a cached timestep"
    return [
        Row("seal_cache.new", f"SeAl, {about}, a new picture", "passes", new, 1.0, AT_MOST, device),
        Row("seal_cache.again", f"SeAl, {about}, another seed alone", "passes", again, 0.0, AT_MOST, device),
    ]


def _passes(model: ModelPatcher) -> int:
    counted = 0

    def count(call: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        counted += 1
        return call(*args, **kwargs)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", count)
    sigmas = spread_sigmas(model.get_model_object("model_sampling"), TIMESTEPS)
    prompt = [[torch.randn(1, 16, TEXT), {"pooled_output": torch.randn(1, TEXT)}]]
    cache_appearance(watched, prompt, torch.randn(1, 4, LATENT, LATENT), None, sigmas)
    return counted


def _is_run_again(folder: Path, models: Path) -> bool:
    """Whether the node runs again when the workflow is queued with another seed."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    cache, sampler = (next(key for key, node in workflow.items() if node["class_type"] == name) for name in NODES)
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    with ComfyServer(folder, models, arguments=["--cpu"] if on_cpu else []) as server:
        server.run(workflow)
        workflow[sampler]["inputs"]["seed"] += 1
        messages = server.run(workflow)["status"]["messages"]
    return all(cache not in details["nodes"] for kind, details in messages if kind == "execution_cached")
