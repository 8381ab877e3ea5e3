"""Which models the nodes for SDXL take."""

from __future__ import annotations

import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.unet import require_unet

BARE = {  # a U-Net without attention
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [0],
    "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -1,
    "context_dim": 32,
    "num_heads": 1,
    "use_spatial_transformer": True,
}


def test_sdxl_is_taken(sdxl):
    assert require_unet("A Node", sdxl) is sdxl.model.diffusion_model


def test_others_are_refused(flux):
    with pytest.raises(InputError, match=r"^A Node, model: it is a Flux model; connect an SDXL model\.$"):
        require_unet("A Node", flux)
    cpu = torch.device("cpu")
    bare = ModelPatcher(comfy.supported_models.SD15(BARE).get_model({}), cpu, cpu)
    with pytest.raises(InputError, match=r"model: it is a BaseModel model; connect an SDXL model"):
        require_unet("A Node", bare)
