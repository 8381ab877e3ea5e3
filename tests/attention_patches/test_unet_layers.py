"""Names, widths and order of a U-Net's attention layers, against what its forward really does."""

from __future__ import annotations

from collections import Counter

import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from comfyui_ensemble.attention_patches.unet_layers import attention_layers

SDXL = {
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
    **{key: value for key, value in comfy.supported_models.SDXL.unet_config.items() if key != "use_temporal_attention"},
    **comfy.supported_models.SDXL.unet_extra_config,
}


def test_real_sdxl_has_seventy_layers():
    unet = UNetModel(device="meta", operations=comfy.ops.disable_weight_init, **SDXL)
    assert sum(value.numel() for value in unet.parameters()) == 2_567_463_684
    layers = attention_layers(unet)
    assert len(layers) == len({layer.block for layer in layers}) == 70
    assert Counter(layer.block[0] for layer in layers) == {"input": 24, "middle": 10, "output": 36}
    assert Counter((layer.width, layer.heads, layer.factor) for layer in layers) == {
        (640, 10, 2): 10,
        (1280, 20, 4): 60,
    }
    assert {(layer.context_width, layer.head_width) for layer in layers} == {(2048, 64)}


def test_order_and_sizes_are_those_of_a_forward(sdxl):
    unet = sdxl.model.diffusion_model
    seen = []

    def record(q, k, v, extra):
        height, width = extra["activations_shape"][2:]
        seen.append(((*extra["block"], extra["block_index"]), q.shape[-1], extra["n_heads"], 32 // height, 48 // width))
        return v

    layers = attention_layers(unet)
    options = {"patches_replace": {"attn1": {layer.block: record for layer in layers}}}
    unet(
        torch.zeros(1, 4, 32, 48),
        torch.zeros(1),
        torch.zeros(1, 5, 384),
        torch.zeros(1, 384 + 1536),
        transformer_options=options,
    )
    assert seen == [(layer.block, layer.width, layer.heads, layer.factor, layer.factor) for layer in layers]


def test_names_are_unique_and_readable(sdxl):
    names = [layer.name for layer in attention_layers(sdxl.model.diffusion_model)]
    assert len(set(names)) == len(names)
    assert names[0] == "input_4_0" and "middle_0_1" in names
