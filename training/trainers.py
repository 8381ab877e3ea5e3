"""The trainers of the command line: for each its configuration, its arguments, and how task and data are built from them.

**To register a trainer** add it to `TRAINERS`. Nodes never come here, so that neither arguments nor puppets are imported when
ComfyUI starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from .anystory_config import AnyStoryEncoderConfig, AnyStoryRouterConfig
from .anystory_encoder import anystory_encoder
from .anystory_router import anystory_router
from .anystory_task import load_checkpoint
from .arguments import add_data_arguments, add_keep_argument, add_model_arguments, load_data, load_keep
from .astra import astra
from .astra_config import ASTRAConfig
from .config import TrainingConfig
from .data import TrainingData
from .flux_base import FluxBaseConfig, flux_base
from .models import load_clip, load_flux, load_sdxl, load_vae, load_vision
from .one_for_all import one_for_all
from .one_for_all_config import OneForAllConfig
from .sdxl_base import SDXLBaseConfig, sdxl_base
from .task import Task
from .vae import VAEConfig, VAETask, load_taesd

Built: TypeAlias = tuple[Task, TrainingData]
AddArguments: TypeAlias = Callable[[argparse.ArgumentParser], None]


@dataclass(frozen=True)
class Trainer:
    """A training that the command line knows.

    Attributes:
        description: one line for --help.
        config: its configuration.
        add_arguments: adds what it needs to a parser: --model, --vae and so on.
        build: the task and the data that those arguments and the configuration ask for; called outside inference mode.
    """

    description: str
    config: type[TrainingConfig]
    add_arguments: AddArguments
    build: Callable[[argparse.Namespace, Any], Built]


def _needs(*models: str, resolution: int, reference_resolution: int) -> AddArguments:
    """Arguments for these models, for a folder of their encodings, and for data of these sizes."""

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_model_arguments(parser, *models)
        add_keep_argument(parser)
        add_data_arguments(parser, resolution, reference_resolution)

    return add_arguments


def _vae_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, resolution=128, reference_resolution=64)
    parser.add_argument(
        "--begin-with", type=Path, metavar="FILE", help="an autoencoder of this architecture, of any latent channels"
    )


def _anystory_arguments(required: bool, help: str) -> AddArguments:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        _needs("model", "vae", "clip", "clip_vision", resolution=1024, reference_resolution=512)(parser)
        parser.add_argument("--anystory", type=Path, required=required, metavar="FILE", help=help)

    return add_arguments


# In each, the data first: what is wrong with it is known before the models are loaded.


def _build_vae(chosen: argparse.Namespace, config: VAEConfig) -> Built:
    data = load_data(chosen, config)
    begin = None if chosen.begin_with is None else load_taesd(chosen.begin_with)
    return VAETask(config, comfy.model_management.get_torch_device(), begin), data


def _build_astra(chosen: argparse.Namespace, config: ASTRAConfig) -> Built:
    data = load_data(chosen, config)
    return astra(*_flux(chosen, config), load_vision(chosen.clip_vision), data, config, load_keep(chosen))


def _build_one_for_all(chosen: argparse.Namespace, config: OneForAllConfig) -> Built:
    data = load_data(chosen, config)
    return one_for_all(*_flux(chosen, config), data, config, load_keep(chosen))


def _build_flux_base(chosen: argparse.Namespace, config: FluxBaseConfig) -> Built:
    data = load_data(chosen, config)
    return flux_base(*_flux(chosen, config), data, config, load_keep(chosen))


def _build_anystory_encoder(chosen: argparse.Namespace, config: AnyStoryEncoderConfig) -> Built:
    data = load_data(chosen, config)
    anystory = None if chosen.anystory is None else load_checkpoint(chosen.anystory)
    return anystory_encoder(*_sdxl_and_vision(chosen, config), data, config, anystory, load_keep(chosen))


def _build_anystory_router(chosen: argparse.Namespace, config: AnyStoryRouterConfig) -> Built:
    data = load_data(chosen, config)
    anystory = load_checkpoint(chosen.anystory)
    return anystory_router(*_sdxl_and_vision(chosen, config), data, config, anystory, load_keep(chosen))


def _build_sdxl_base(chosen: argparse.Namespace, config: SDXLBaseConfig) -> Built:
    data = load_data(chosen, config)
    return sdxl_base(*_sdxl(chosen, config), data, config, load_keep(chosen))


def _flux(chosen: argparse.Namespace, config: TrainingConfig) -> tuple[ModelPatcher, VAE, CLIP]:
    return load_flux(chosen.model), _vae(chosen, config), load_clip(chosen.clip, flux=True)


def _vae(chosen: argparse.Namespace, config: TrainingConfig) -> VAE:
    return load_vae(chosen.vae, torch.bfloat16 if config.precision == "bf16" else None)


def _sdxl(chosen: argparse.Namespace, config: TrainingConfig) -> tuple[ModelPatcher, VAE, CLIP]:
    return load_sdxl(chosen.model), _vae(chosen, config), load_clip(chosen.clip, flux=False)


def _sdxl_and_vision(
    chosen: argparse.Namespace, config: TrainingConfig
) -> tuple[ModelPatcher, VAE, CLIP, ClipVisionModel]:
    return *_sdxl(chosen, config), load_vision(chosen.clip_vision)


TRAINERS: dict[str, Trainer] = {
    "astra": Trainer(
        "ASTRA: LoRA and DSM for FLUX",
        ASTRAConfig,
        _needs("model", "vae", "clip", "clip_vision", resolution=512, reference_resolution=320),
        _build_astra,
    ),
    "one-for-all": Trainer(
        "One-for-All: LoRA and DAM for FLUX",
        OneForAllConfig,
        _needs("model", "vae", "clip", resolution=880, reference_resolution=768),
        _build_one_for_all,
    ),
    "anystory-encoder": Trainer(
        "AnyStory, stage 1: QFormer, ReferenceNet, new keys and values",
        AnyStoryEncoderConfig,
        _anystory_arguments(False, "a checkpoint to begin with; without one, a fresh network"),
        _build_anystory_encoder,
    ),
    "anystory-router": Trainer(
        "AnyStory, stage 2: the router",
        AnyStoryRouterConfig,
        _anystory_arguments(True, "the checkpoint that stage 1 made"),
        _build_anystory_router,
    ),
    "flux-base": Trainer(
        "every weight of a small FLUX-architecture model",
        FluxBaseConfig,
        _needs("model", "vae", "clip", resolution=128, reference_resolution=64),
        _build_flux_base,
    ),
    "sdxl-base": Trainer(
        "a whole SDXL-class U-Net, on captions",
        SDXLBaseConfig,
        _needs("model", "vae", "clip", resolution=1024, reference_resolution=512),
        _build_sdxl_base,
    ),
    "vae": Trainer("an autoencoder of TAESD's architecture, on pictures alone", VAEConfig, _vae_arguments, _build_vae),
}
