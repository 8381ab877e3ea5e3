"""Random weights for the tiny models: a FLUX, SDXL, ControlNet, VAEs and CLIP vision, each of the host's own classes,
and this pack's adapters for them.

They let every workflow run on a CPU in seconds. Pictures of random weights are noise, and a fresh adapter changes nothing;
the same seed always gives the same files. The stock loaders read FLUX, the VAEs and the ControlNet. Trainings begin with
them; those that are trained come with the pack (models_info/weights).

    python dev.py python -m comfyui_ensemble.training.tiny --models-dir FOLDER [--seed N] [--all]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.clip_model
import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ops
import comfy.taesd.taesd
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..attention_patches.anystory_file import write_anystory
from ..attention_patches.anystory_network import AnyStoryConfig, fresh_anystory
from ..attention_patches.dam_file import write_dam
from ..attention_patches.dam_generator import DAMConfig, fresh_dam
from ..attention_patches.dsm_adapter import DSMConfig, fresh_dsm
from ..attention_patches.dsm_file import write_dsm
from ..attention_patches.reference_net import unet_sizes
from ..models_info.files import whole_file
from ..models_info.registry import (
    TINY_ANYSTORY,
    TINY_CONTROLNET,
    TINY_DAM,
    TINY_DSM,
    TINY_FLUX,
    TINY_SDXL,
    TINY_SDXL_VAE,
    TINY_VAE,
    TINY_VISION,
    ModelFile,
    comes_trained,
)
from ..models_info.tiny_sdxl import UNET_CONFIG as SDXL_CONFIG
from ..models_info.tiny_sdxl import TinySDXL
from ..models_info.tiny_vision import CONFIG as VISION_CONFIG
from .checkpoint import system_reason

HIDDEN = 256  # two heads of FLUX's 128
CONTEXT = 384  # all-MiniLM-L6-v2
LATENT_CHANNELS = 16
SDXL_LATENT_CHANNELS = 4
NEAR_ZERO = 0.02

FLUX_CONFIG = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "vec_in_dim": CONTEXT,
    "context_in_dim": CONTEXT,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": HIDDEN // 128,
    "depth": 2,
    "depth_single_blocks": 6,
    "axes_dim": [16, 56, 56],
    "theta": 10_000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_SDXL: dict[str, Any] = {**SDXL_CONFIG, **TinySDXL.unet_extra_config}
DSM_CONFIG = DSMConfig(
    text_width=CONTEXT,
    width=64,
    heads=4,
    clip_width=VISION_CONFIG["hidden_size"],
    clip_depth=VISION_CONFIG["num_hidden_layers"],
    clip_layers=(1, 3, 5),
    subjects=8,
    model_width=HIDDEN,
    double_blocks=FLUX_CONFIG["depth"],
    single_blocks=FLUX_CONFIG["depth_single_blocks"],
)
DAM_CONFIG = DAMConfig(
    model_width=HIDDEN,
    width=32,
    double_blocks=FLUX_CONFIG["depth"],
    single_blocks=FLUX_CONFIG["depth_single_blocks"],
)
ANYSTORY_CONFIG = AnyStoryConfig(
    text_width=CONTEXT,
    clip_width=VISION_CONFIG["hidden_size"],
    clip_depth=VISION_CONFIG["num_hidden_layers"],
    queries=16,
    qformer_width=64,
    qformer_heads=4,
    qformer_layers=4,
    router_width=64,
    reference_size=256,
    unet=unet_sizes(_SDXL),
)


def tiny_flux(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a 2 + 6 block FLUX of width 256, in the published file's key names."""
    model = comfy.ldm.flux.model.Flux(
        dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **FLUX_CONFIG
    )
    return _random_weights(model, seed)


def tiny_vae(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a TAEF1-shaped autoencoder: 16 latent channels, eight times smaller than the picture."""
    return _random_weights(comfy.taesd.taesd.TAESD(latent_channels=LATENT_CHANNELS), seed)


def tiny_sdxl(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of SDXL's U-Net at width 64, in the published file's key names."""
    unet = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
    return _random_weights(unet(operations=comfy.ops.disable_weight_init, **_SDXL), seed)


def tiny_sdxl_vae(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a TAESD-shaped autoencoder: 4 latent channels, eight times smaller than the picture."""
    return _random_weights(comfy.taesd.taesd.TAESD(latent_channels=SDXL_LATENT_CHANNELS), seed)


def tiny_controlnet(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a ControlNet for the tiny SDXL, in the published file's key names.

    A ControlNet's training begins with outputs of zero (Zhang et al. 2023, "zero convolutions"). These are near it, so that the
    trained U-Net's picture stays whole, and not at it, so that it can be seen to be there.
    """
    config = {name: value for name, value in _SDXL.items() if name not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.disable_weight_init, **config)
    weights = _random_weights(network, seed)
    return {
        name: value * NEAR_ZERO if name.startswith(("zero_convs", "middle_block_out")) else value
        for name, value in weights.items()
    }


def tiny_vision(seed: int) -> dict[str, torch.Tensor]:
    """Random weights of a CLIP vision encoder of width 64."""
    model = comfy.clip_model.CLIPVisionModelProjection(
        VISION_CONFIG, torch.float32, "cpu", comfy.ops.disable_weight_init
    )
    return _random_weights(model, seed)


def tiny_anystory(seed: int) -> dict[str, torch.Tensor]:
    """Fresh weights of an AnyStory network for the tiny SDXL of the same seed."""
    return fresh_anystory(ANYSTORY_CONFIG, seed, tiny_sdxl(seed))


def _random_weights(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Normal with variance 1 / fan-in for matrices and kernels, 1 for scales, 0 for biases; the given scalars stay."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in sorted(model.state_dict().items()):
        if value.ndim >= 2:
            fan_in = math.prod(value.shape[1:])
            weights[name] = torch.randn(value.shape, generator=generator) / math.sqrt(fan_in)
        elif value.ndim == 1:
            weights[name] = torch.zeros(value.shape) if name.endswith("bias") else torch.ones(value.shape)
        else:
            weights[name] = value.clone()
    return weights


def write_tiny_models(models_dir: Path, seed: int = 0, only_untrained: bool = False) -> list[Path]:
    """Write the files below `models_dir`, as ComfyUI lays its models folder out; returns their paths.

    Args:
        only_untrained: leave out the models that come with the pack, trained.
    """
    written = []
    for entry, write in _WRITERS.items():
        if only_untrained and comes_trained(entry):
            continue
        path = models_dir / entry.folder / entry.name
        write(path, seed)
        written.append(path)
    return written


def _write_model(make: Callable[[int], dict[str, torch.Tensor]]) -> Callable[[Path, int], None]:
    def write(path: Path, seed: int) -> None:
        with whole_file(path) as temporary:
            save_file(_halves(make(seed)), temporary, metadata={"ensemble_seed": str(seed)})

    return write


def _halves(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(torch.bfloat16) for name, value in weights.items()}


_WRITERS: dict[ModelFile, Callable[[Path, int], None]] = {
    TINY_FLUX: _write_model(tiny_flux),
    TINY_VAE: _write_model(tiny_vae),
    TINY_VISION: _write_model(tiny_vision),
    TINY_SDXL: _write_model(tiny_sdxl),
    TINY_SDXL_VAE: _write_model(tiny_sdxl_vae),
    TINY_CONTROLNET: _write_model(tiny_controlnet),
    TINY_DSM: lambda path, seed: write_dsm(path, fresh_dsm(DSM_CONFIG, seed), DSM_CONFIG),
    TINY_DAM: lambda path, seed: write_dam(path, fresh_dam(DAM_CONFIG, seed), DAM_CONFIG),
    TINY_ANYSTORY: lambda path, seed: write_anystory(path, _halves(tiny_anystory(seed)), ANYSTORY_CONFIG),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the files are written, 2 when they cannot be."""
    parser = argparse.ArgumentParser(
        description="Write random weights into a models folder for those tiny models that do not come trained with the pack."
    )
    parser.add_argument("--models-dir", type=Path, required=True, help="ComfyUI's models folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="random weights for all of them")
    chosen = parser.parse_args(arguments)
    try:
        written = write_tiny_models(chosen.models_dir, chosen.seed, only_untrained=not chosen.all)
    except (OSError, SafetensorError) as error:
        print(
            f"--models-dir {chosen.models_dir}: it cannot be written to ({system_reason(error)}); give another folder, or make"
            " this one a folder that can be written to and has room.",
            file=sys.stderr,
        )
        return 2
    print(*written, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
