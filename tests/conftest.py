"""A real ComfyUI in this process, with the tiny models; nothing of the host is faked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import comfyui_ensemble.training  # noqa: F401 (tells the host whether there is an accelerator, before anything of it is imported)

# isort: split
import comfy.sd
import comfy.utils
import torch

from comfyui_ensemble.models_info.minilm import load_minilm_clip
from comfyui_ensemble.models_info.registry import (
    TINY_FLUX,
    TINY_SDXL,
    TINY_SDXL_VAE,
    TINY_VAE,
    find_minilm,
    register_folders,
)
from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.server import ComfyServer

register_folders()


@pytest.fixture(autouse=True)
def _no_gradients():
    """As the host runs its nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the embedded default weights."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_models(folder)
    return folder


@pytest.fixture(scope="session")
def flux(tiny_models: Path):
    """The tiny FLUX through the host's own loader."""
    return comfy.sd.load_diffusion_model(str(tiny_models / TINY_FLUX.folder / TINY_FLUX.name))


@pytest.fixture(scope="session")
def vae(tiny_models: Path) -> comfy.sd.VAE:
    """The tiny VAE through the host's own loader."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tiny_models / TINY_VAE.folder / TINY_VAE.name)))


@pytest.fixture(scope="session")
def sdxl(tiny_models: Path):
    """The tiny SDXL as its node loads it."""
    return load_tiny_sdxl(tiny_models / TINY_SDXL.folder / TINY_SDXL.name)


@pytest.fixture(scope="session")
def sdxl_vae(tiny_models: Path) -> comfy.sd.VAE:
    """The tiny SDXL's VAE through the host's own loader."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(tiny_models / TINY_SDXL_VAE.folder / TINY_SDXL_VAE.name)))


@pytest.fixture(scope="session")
def clip() -> comfy.sd.CLIP:
    """all-MiniLM-L6-v2 as a host CLIP object."""
    return load_minilm_clip(find_minilm())


@pytest.fixture(scope="session")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Has the tiny models, the sample pictures, and nothing in its output folder."""
    arguments = [] if torch.accelerator.is_available() else ["--cpu"]
    folder = tmp_path_factory.mktemp("server")
    models = shutil.copytree(tiny_models, folder / "models")  # workflows may save models of their own
    with ComfyServer(folder, models, arguments=arguments) as running:
        yield running
