"""The embedded default's SDXL: the host's own U-Net and model classes, a six-hundredth of the published size.

The host recognises SDXL by its exact shape, so its stock loaders refuse a smaller one; this builds it from the configuration
below. Text comes from all-MiniLM-L6-v2, whose embeddings are 384 wide; the pooled one is what SDXL calls its vector.
"""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils

from .minilm import WIDTH

SIZE_CONDITIONS = 6 * 256  # SDXL's original size, crop and target size, as sinusoids

UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 1, 1],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1],
    "context_dim": WIDTH,
    "adm_in_channels": WIDTH + SIZE_CONDITIONS,
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}


HEADS = {"num_heads": -1, "num_head_channels": 32}


class TinySDXL(comfy.supported_models.SDXL):
    """SDXL's entry in the host's list of models, for a U-Net of width 64."""

    unet_config = UNET_CONFIG
    unet_extra_config = HEADS


def load_tiny_sdxl(path: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The model of `path`, in the hands of the host's memory management.

    Args:
        disable_dynamic: whole weights instead of streamed ones, as the host asks for when it reloads the model.
    """
    weights = comfy.utils.load_torch_file(str(path), safe_load=True)
    config = TinySDXL(UNET_CONFIG)
    device = comfy.model_management.get_torch_device()
    supported = list(config.supported_inference_dtypes)
    dtype = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported), device=device)
    model = config.get_model(weights)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_tiny_sdxl, (path,))
    return patcher
