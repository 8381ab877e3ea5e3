"""A real ComfyUI in this process, with the tiny models; nothing of the host is faked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import comfyui_ensemble.training  # noqa: F401 (tells the host whether there is an accelerator, before anything of it is imported)

# isort: split
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer
from comfy.text_encoders.flux import FluxTokenizer
from comfy.text_encoders.flux import flux_clip as make_flux_clip

from comfyui_ensemble.attention_patches.anystory_features import SubjectFeatures
from comfyui_ensemble.attention_patches.anystory_file import AnyStory, load_anystory
from comfyui_ensemble.attention_patches.anystory_network import AnyStoryConfig, AnyStoryInjecting, fresh_anystory
from comfyui_ensemble.attention_patches.reference_net import unet_sizes
from comfyui_ensemble.attention_patches.unet_layers import attention_layers
from comfyui_ensemble.models_info.minilm import load_minilm_clip
from comfyui_ensemble.models_info.registry import (
    CLIP_VIT_B_32,
    DINO_VIT_S_16,
    DINOV2_BASE,
    ENCODERS,
    GME_2B,
    TINY_ANYSTORY,
    TINY_FLUX,
    TINY_SDXL,
    TINY_SDXL_VAE,
    TINY_VAE,
    TINY_VISION,
    find_minilm,
    register_folders,
)
from comfyui_ensemble.models_info.sam import load_sam
from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl
from comfyui_ensemble.models_info.tiny_vision import load_tiny_vision
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.server import ComfyServer
from devtools.small_encoders import write_small_clip, write_small_dino, write_small_dinov2, write_small_gme
from devtools.small_sam import brightness_sam

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
def vision(tiny_models: Path) -> ClipVisionModel:
    """The tiny CLIP vision encoder as its node loads it."""
    return load_tiny_vision(tiny_models / TINY_VISION.folder / TINY_VISION.name)


@pytest.fixture(scope="session")
def anystory(tiny_models: Path) -> AnyStory:
    """The tiny AnyStory as its node loads it."""
    return load_anystory(tiny_models / TINY_ANYSTORY.folder / TINY_ANYSTORY.name)


@pytest.fixture(scope="session")
def make_subjects(sdxl) -> Callable[..., SubjectFeatures]:
    """`make_subjects(count, seed=0, dtype=torch.float32)`: made-up subjects for the tiny SDXL, for AnyStory to route and inject."""
    unet = sdxl.model.diffusion_model
    config = AnyStoryConfig(
        text_width=384,
        clip_width=64,
        clip_depth=6,
        queries=5,
        qformer_width=32,
        qformer_heads=2,
        qformer_layers=1,
        router_width=128,
        reference_size=64,
        unet=unet_sizes(sdxl.model.model_config.unet_config),
    )
    fresh = fresh_anystory(config, 0)
    weights = {name: value for name, value in fresh.items() if name.startswith(("injection.", "routers."))}

    def make(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> SubjectFeatures:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        cpu = torch.device("cpu")
        network = AnyStoryInjecting(config, dtype, "cpu", comfy.ops.manual_cast)
        network.load_state_dict(weights)
        layers = attention_layers(unet)
        return SubjectFeatures(
            names=tuple(f"subject {number}" for number in range(1, count + 1)),
            tokens=random(count + 1, config.queries, config.text_width),
            null_tokens=random(config.queries, config.text_width),
            router=random(count + 1, config.router_width),
            hidden=(None, *(random(count, (8 // layer.factor) ** 2, layer.width) for layer in layers[1:])),
            network=CoreModelPatcher(network, load_device=cpu, offload_device=cpu),
        )

    return make


TINY_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
TINY_TEXT_ENCODERS = {
    "t5xxl_model_config": {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "num_layers": 1},
    "clip_l_model_config": {**TINY_CLIP, "projection_dim": 32},
    "clip_g_model_config": {**TINY_CLIP, "projection_dim": 32},
}


def _tiny_text_encoder(tokenizer: Any, network: Any, inversions: Path) -> comfy.sd.CLIP:
    """The host's text encoder class with its real tokenizer, all else small."""
    target = SimpleNamespace(params={}, clip=network, tokenizer=tokenizer)
    clip = comfy.sd.CLIP(target, embedding_directory=[str(inversions)], model_options=TINY_TEXT_ENCODERS)
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return clip


@pytest.fixture(scope="session")
def inversions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Textual inversions for the small text encoders: `cloak` fits all of them, `alien` is of another width."""
    folder = tmp_path_factory.mktemp("embeddings")
    for name, width in (("cloak", 32), ("alien", 48)):
        lanes = {"clip_l": torch.ones(2, width), "clip_g": torch.ones(3, width), "t5xxl": torch.ones(4, width)}
        comfy.utils.save_torch_file(lanes, str(folder / f"{name}.safetensors"))
    return folder


@pytest.fixture(scope="session")
def flux_clip(inversions: Path) -> comfy.sd.CLIP:
    """FLUX's text encoders, small, with their real tokenizers."""
    return _tiny_text_encoder(FluxTokenizer, make_flux_clip(), inversions)


@pytest.fixture(scope="session")
def sdxl_clip(inversions: Path) -> comfy.sd.CLIP:
    """SDXL's text encoders, small, with their real tokenizers."""
    return _tiny_text_encoder(SDXLTokenizer, SDXLClipModel, inversions)


@pytest.fixture(scope="session")
def bright_sam(tmp_path_factory: pytest.TempPathFactory) -> ModelPatcher:
    """A small SAM that masks what is brighter than middle grey, through the pack's own loader."""
    pytest.importorskip("segment_anything")
    path = tmp_path_factory.mktemp("sam") / "bright.pth"
    with torch.no_grad():
        torch.save(brightness_sam().state_dict(), path)
    return load_sam(path)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Encoders of random weights in a models folder, by the published ones' names; one is deeper, as a person may keep it."""
    folder = tmp_path_factory.mktemp("encoders")
    write_small_dino(folder / DINO_VIT_S_16.name)
    write_small_dinov2(folder / DINOV2_BASE.name)
    write_small_clip(folder / "openai" / CLIP_VIT_B_32.name)
    write_small_gme(folder / GME_2B.name)
    paths, _ = folder_paths.folder_names_and_paths[ENCODERS]
    paths.insert(0, str(folder))
    folder_paths.filename_list_cache.pop(ENCODERS, None)
    yield folder
    paths.remove(str(folder))
    folder_paths.filename_list_cache.pop(ENCODERS, None)


@pytest.fixture(scope="session")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Has the tiny models, the sample pictures, and nothing in its output folder."""
    arguments = [] if torch.accelerator.is_available() else ["--cpu"]
    folder = tmp_path_factory.mktemp("server")
    models = shutil.copytree(tiny_models, folder / "models")  # workflows may save models of their own
    with ComfyServer(folder, models, arguments=arguments) as running:
        yield running
