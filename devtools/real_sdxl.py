"""SDXL's U-Net at its published size, for measurements and for counting on the meta device."""

from __future__ import annotations

from typing import Any

import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

_TOLD_BY_WEIGHTS = {  # what the host reads from a checkpoint's shapes
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "legacy": False,
}


def real_sdxl_unet(device: Any, dtype: torch.dtype = torch.float16) -> UNetModel:
    """The network without weights: 2,567,463,684 parameters."""
    config = comfy.supported_models.SDXL
    known = {name: value for name, value in config.unet_config.items() if name != "use_temporal_attention"}
    sizes: dict[str, Any] = {**_TOLD_BY_WEIGHTS, **known, **config.unet_extra_config}
    return UNetModel(device=device, dtype=dtype, operations=comfy.ops.disable_weight_init, **sizes)
