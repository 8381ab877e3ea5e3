"""SAMs a ten-thousandth of the published size, of the library's own classes, for tests: their weights are made, not learned."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

WIDTH, OUT = 48, 32
PATCH = 16


def random_sam(grid: int = 8, window: int = 5, seed: int = 0) -> Any:
    """A `segment_anything` Sam with random weights that looks at pictures of 16 grid x 16 grid pixels."""
    from segment_anything.modeling import (  # pyright: ignore[reportMissingImports]
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    side = PATCH * grid
    norm: Any = partial(torch.nn.LayerNorm, eps=1e-6)  # the library types it as a class
    encoder = ImageEncoderViT(
        img_size=side,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
        out_chans=OUT,
        norm_layer=norm,
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=(1,),
    )
    prompts = PromptEncoder(
        embed_dim=OUT, image_embedding_size=(grid, grid), input_image_size=(side, side), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=OUT, num_heads=8, mlp_dim=64)
    decoder = MaskDecoder(transformer_dim=OUT, transformer=transformer, iou_head_hidden_dim=24)
    sam = Sam(encoder, prompts, decoder).eval()
    generator = torch.Generator().manual_seed(seed)
    for value in sam.state_dict().values():
        value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return sam


def brightness_sam(grid: int = 16, quality: float = 0.95) -> Any:
    """A Sam whose every mask is what is brighter than middle grey, in steps of 16 pixels, and which is sure of it.

    Through the whole network runs one feature f and its negative: +f where a patch is bright, -f where it is dark. The
    upscaling keeps max(f, 0) beside a constant, and the mask is their difference.
    """
    sam = random_sam(grid)
    weights = sam.state_dict()
    for name, value in weights.items():
        value.zero_()
        if name.endswith("weight") and value.ndim == 1:  # of norms
            value.fill_(1.0)
    grey = (0.5 - 0.45) / 0.225  # of a normalised pixel
    weights["image_encoder.patch_embed.proj.weight"][0] = 1 / (3 * PATCH**2)
    weights["image_encoder.patch_embed.proj.bias"][0] = -grey
    weights["image_encoder.neck.0.weight"][:2, 0, 0, 0] = torch.tensor([1.0, -1.0])
    weights["image_encoder.neck.2.weight"][range(2), range(2), 1, 1] = 1.0
    weights["mask_decoder.output_upscaling.0.weight"][range(2), range(2)] = 1.0
    weights["mask_decoder.output_upscaling.3.weight"][0, 0] = 1.0
    weights["mask_decoder.output_upscaling.3.bias"][1] = 1.0
    for mask in range(4):
        last = f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.2.bias"
        weights[last][:2] = torch.tensor([8.0, -8.0])
    weights["mask_decoder.iou_prediction_head.layers.2.bias"].fill_(quality)
    return sam
