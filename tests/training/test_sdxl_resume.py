"""Runs of SDXL's trainings go on with the models they began with, and with no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_file import make_anystory
from comfyui_ensemble.models_info.minilm import load_minilm_clip
from comfyui_ensemble.models_info.registry import TINY_VISION, find_minilm
from comfyui_ensemble.models_info.tiny_vision import load_tiny_vision
from comfyui_ensemble.training.anystory_config import AnyStoryEncoderConfig, AnyStoryRouterConfig
from comfyui_ensemble.training.anystory_encoder import anystory_encoder, fresh_network
from comfyui_ensemble.training.anystory_router import anystory_router
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.loop import train
from comfyui_ensemble.training.sdxl_base import SDXLBaseConfig, sdxl_base
from comfyui_ensemble.training.task import Task
from comfyui_ensemble.training.vae import fresh_taesd
from devtools.coloured_scenes import NETWORK, QUICK, coloured_data, small_sdxl

BRIEF: dict[str, Any] = {**QUICK, "batch_size": 2, "workers": 0}
BASE = SDXLBaseConfig(**BRIEF)
ENCODER = AnyStoryEncoderConfig(**BRIEF, **NETWORK)
ROUTER = AnyStoryRouterConfig(**BRIEF)
Models = dict[str, Any]
Built = tuple[Task, TrainingData]


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture
def load(tiny_models: Path) -> Callable[[], Models]:
    """load(): the models as every start loads them anew."""

    def models() -> Models:
        with torch.inference_mode():
            return {
                "model": small_sdxl(False),
                "vae": comfy.sd.VAE(sd=fresh_taesd(4, 0).state_dict()),
                "clip": load_minilm_clip(find_minilm()),
                "clip_vision": load_tiny_vision(tiny_models / TINY_VISION.folder / TINY_VISION.name),
            }

    return models


def base(models: Models) -> Built:
    return sdxl_base(models["model"], models["vae"], models["clip"], coloured_data(), BASE)


def encoder(models: Models) -> Built:
    return anystory_encoder(**models, data=coloured_data(), config=ENCODER)


def router(models: Models) -> Built:
    network = make_anystory(*fresh_network(models["model"], models["clip_vision"], ENCODER))
    return anystory_router(**models, data=coloured_data(), config=ROUTER, anystory=network)


def changed(network: torch.nn.Module) -> None:
    """Let it be another network of the same architecture."""
    with torch.inference_mode():
        for value in network.parameters():
            value.add_(0.01)


NETWORKS: dict[str, Callable[[Any], torch.nn.Module]] = {
    "model": lambda patcher: patcher.model.diffusion_model,
    "vae": lambda vae: vae.first_stage_model,
    "clip": lambda clip: clip.cond_stage_model,
    "clip_vision": lambda vision: vision.model,
}
PARTS = {"clip": "text encoder", "clip_vision": "CLIP vision"}  # what an input is called in an identity


@pytest.mark.parametrize(
    ("build", "config", "inputs"),
    [
        (base, BASE, ("model", "vae", "clip")),
        (encoder, ENCODER, ("model", "vae", "clip", "clip_vision")),
        (router, ROUTER, ("model", "vae", "clip", "clip_vision")),
    ],
)
def test_a_run_goes_on_with_its_own_models_alone(load, build, config, inputs, tmp_path: Path) -> None:
    def run(models: Models, steps: int) -> int:
        task, data = build(models)
        return train(task, data, replace(config, steps=steps), tmp_path).step

    assert run(load(), 1) == 1
    for name in inputs:
        others = load()
        changed(NETWORKS[name](others[name]))
        sentence = (
            rf"there is a run 'training' already, with {PARTS.get(name, name)} \w.*, not .*; give this one another"
        )
        with pytest.raises(TrainingError, match=sentence) as caught:
            run(others, 2)
        assert caught.value.input_name == name
    assert run(load(), 2) == 2
