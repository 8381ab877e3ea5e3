"""The models that a training starts from, out of files, through the host's own loaders. The nodes get theirs by their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open

from ..models_info.minilm import load_minilm_clip
from ..models_info.registry import find_minilm, register_folders
from ..models_info.tiny_sdxl import UNET_CONFIG, load_tiny_sdxl
from ..models_info.tiny_vision import CONFIG as VISION_CONFIG
from ..models_info.tiny_vision import load_tiny_vision
from .errors import TrainingError

MINILM = "minilm"
_CHECKPOINT = "model.diffusion_model."  # how the names of a checkpoint's U-Net begin


def load_flux(path: Path) -> ModelPatcher:
    """A FLUX, tiny or published, as Load Diffusion Model loads it."""
    _shapes(path, "model")
    try:
        return comfy.sd.load_diffusion_model(str(path))
    except RuntimeError:
        raise _unknown(path, "model") from None


def load_sdxl(path: Path) -> ModelPatcher:
    """An SDXL: a checkpoint, its U-Net alone, or this pack's tiny one."""
    shapes = _shapes(path, "model")
    if shapes.get("input_blocks.0.0.weight", (0,))[0] == UNET_CONFIG["model_channels"]:
        return load_tiny_sdxl(path)
    try:
        if any(name.startswith(_CHECKPOINT) for name in shapes):
            return _from_checkpoint(path, model=True)[0]
        return comfy.sd.load_diffusion_model(str(path))
    except RuntimeError:
        raise _unknown(path, "model") from None


def load_vae(path: Path, dtype: torch.dtype | None = None) -> comfy.sd.VAE:
    """A VAE, or the one in a checkpoint.

    Args:
        dtype: what a file of its own computes in; the host's choice by default, which on a CPU is float32.
    """
    if any(name.startswith(_CHECKPOINT) for name in _shapes(path, "vae")):
        return _from_checkpoint(path, vae=True)[2]
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)), dtype=dtype)
    if vae.first_stage_model is None:
        raise _unknown(path, "vae")
    return vae


def load_clip(files: Sequence[str], flux: bool) -> comfy.sd.CLIP:
    """Text encoders: "minilm" alone for all-MiniLM-L6-v2, one checkpoint, or the files of a model's encoders.

    Args:
        flux: two files are FLUX's CLIP-L and T5, rather than SDXL's CLIP-L and CLIP-G.
    """
    embeddings = folder_paths.get_folder_paths("embeddings")
    if list(files) == [MINILM]:
        register_folders()
        return load_minilm_clip(find_minilm(), embeddings)
    paths = [Path(file) for file in files]
    shapes = [_shapes(path, "clip") for path in paths]
    if len(paths) == 1 and any(name.startswith(_CHECKPOINT) for name in shapes[0]):
        return _from_checkpoint(paths[0], clip=True)[1]
    for path, its in zip(paths, shapes, strict=True):
        _require_text_encoder(path, its)
    kind = comfy.sd.CLIPType.FLUX if flux else comfy.sd.CLIPType.STABLE_DIFFUSION
    return comfy.sd.load_clip([str(path) for path in paths], embeddings, kind)


def load_vision(path: Path) -> ClipVisionModel:
    """A CLIP vision encoder, tiny or published."""
    shapes = _shapes(path, "clip_vision")
    tiny = "vision_model.embeddings.class_embedding"
    if shapes.get(tiny) == (VISION_CONFIG["hidden_size"],):
        return load_tiny_vision(path)
    vision = comfy.clip_vision.load(str(path))
    if vision is None:
        raise _unknown(path, "clip_vision")
    return vision


def _require_text_encoder(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `TrainingError` for a file of something else, which the host would load as a CLIP without weights."""
    older_clip = "transformer.resblocks.0.ln_1.weight" in shapes
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if not older_clip and comfy.sd.detect_te_model(empty) is None:
        raise _unknown(path, "clip")


def _from_checkpoint(path: Path, model: bool = False, clip: bool = False, vae: bool = False) -> tuple:
    """One part of a checkpoint: (model, clip, vae, vision), all None but what is asked for."""
    found = comfy.sd.load_checkpoint_guess_config(
        str(path),
        output_vae=vae,
        output_clip=clip,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        output_model=model,
    )
    if all(part is None for part in found):
        raise _unknown(path, "model" if model else "clip" if clip else "vae")
    return found


def _shapes(path: Path, input_name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors by name.

    Raises:
        TrainingError: it is not there, or is no safetensors file.
    """
    if not path.is_file():
        raise TrainingError(f"{input_name}: there is no file {path}; give the path of a safetensors file", input_name)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError):
        raise TrainingError(
            f"{input_name}: {path} is no whole safetensors file; download or copy it again", input_name
        ) from None


def _unknown(path: Path, input_name: str) -> TrainingError:
    return TrainingError(f"{input_name}: ComfyUI does not know what {path} is; choose another file", input_name)
