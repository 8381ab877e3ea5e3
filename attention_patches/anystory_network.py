"""AnyStory's network: everything it adds to SDXL, and its sizes (AnyStory, section 3; the papers' "encode, then route").

- encoding, once a subject: a QFormer with 64 queries for E_i, one with a single query for R_i, the ReferenceNet for G_i^l
- injecting, at every step: new key and value matrices for every attention, and a router in every cross-attention

The two halves are two modules, because the host's memory manager loads and frees them apart: the encoding half is five
gigabytes that nobody needs while a picture is sampled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .anystory_injection import AnyStoryInjection, fresh_injection
from .anystory_router import AnyStoryRouters, fresh_routers
from .outline import Outline
from .qformer import QFormer
from .reference_net import ReferenceNet, reference_weights
from .unet_layers import AttentionLayer, attention_layers

SDXL = "sdxl"


@dataclass(frozen=True)
class AnyStoryConfig:
    """The sizes of a network.

    Attributes:
        text_width: d_c, of the U-Net's text and so of E_i.
        clip_width, clip_depth: of the CLIP vision model: its hidden states' width, its layers.
        queries: m, tokens of E_i.
        qformer_width, qformer_heads, qformer_layers: of both QFormers.
        router_width: d_r, of R_i.
        reference_size: side of the square picture that the ReferenceNet reads, in pixels; a multiple of 8.
        unet: sizes of the base model's U-Net, as `reference_net.unet_sizes` gives them.
        base: family of the base model.
    """

    text_width: int
    clip_width: int
    clip_depth: int
    queries: int
    qformer_width: int
    qformer_heads: int
    qformer_layers: int
    router_width: int
    reference_size: int
    unet: Mapping[str, Any]
    base: str = SDXL


# The paper's CLIP ViT-H/14, m, layers and reference size. It prints no widths: the QFormers have CLIP's own, and R_i, one token
# for where something is, is narrower, because it is as wide as the routers' matrices in 70 layers.
SDXL_ANYSTORY = AnyStoryConfig(
    text_width=2048,
    clip_width=1280,
    clip_depth=32,
    queries=64,
    qformer_width=1280,
    qformer_heads=20,
    qformer_layers=4,
    router_width=512,
    reference_size=512,
    unet={
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "context_dim": 2048,
        "adm_in_channels": 2816,
        "num_heads": -1,
        "num_head_channels": 64,
    },
)


class AnyStoryEncoding(torch.nn.Module):
    """What looks at the subjects.

    Attributes:
        encoder: CLIP features (B, P, d_clip) -> E_i, (B, m, d_c).
        router_encoder: CLIP features (B, P, d_clip) -> R_i, (B, 1, d_r).
        reference_net: latent (B, channels, h, w) and mask (B, 1, h, w) -> {G_i^l}.
        dtype: of the weights.
    """

    def __init__(self, config: AnyStoryConfig, dtype: torch.dtype, device: Any, operations: Any) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        layers = (config.qformer_width, config.qformer_heads, config.qformer_layers, config.clip_width)
        self.encoder = QFormer(config.queries, *layers, config.text_width, dtype, device, operations)
        self.router_encoder = QFormer(1, *layers, config.router_width, dtype, device, operations)
        self.reference_net = ReferenceNet(config.unet, dtype, device, operations)


class AnyStoryInjecting(torch.nn.Module):
    """What brings the subjects into the U-Net.

    Attributes:
        injection: the new key and value matrices of every attention.
        routers: one router for every cross-attention.
    """

    def __init__(self, config: AnyStoryConfig, dtype: torch.dtype, device: Any, operations: Any) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        layers = base_layers(config)
        self.injection = AnyStoryInjection(layers, config.text_width, dtype, device, operations)
        self.routers = AnyStoryRouters(layers, config.router_width, dtype, device, operations)


class AnyStoryNetwork(torch.nn.Module):
    """Both halves as one module, as a checkpoint holds them."""

    def __init__(self, config: AnyStoryConfig, dtype: torch.dtype, device: Any, operations: Any) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        encoding = AnyStoryEncoding(config, dtype, device, operations)
        injecting = AnyStoryInjecting(config, dtype, device, operations)
        self.encoder, self.router_encoder = encoding.encoder, encoding.router_encoder
        self.reference_net = encoding.reference_net
        self.injection, self.routers = injecting.injection, injecting.routers


def base_layers(config: AnyStoryConfig) -> tuple[AttentionLayer, ...]:
    """The transformer blocks of the base model's U-Net, in the order in which a forward runs through them."""
    unet = ReferenceNet(config.unet, torch.float32, "meta", Outline)
    # The ReferenceNet's are the same, but for the cross-attention it leaves out.
    return tuple(dataclasses.replace(layer, context_width=config.text_width) for layer in attention_layers(unet))


def fresh_anystory(
    config: AnyStoryConfig, seed: int, unet: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Weights of an untrained network, float32.

    Args:
        config: its sizes.
        seed: the same seed gives the same weights.
        unet: weights of the base model's U-Net in the host's names, for the ReferenceNet to start from; with None it starts
            at random like everything else.
    """
    layers = base_layers(config)
    encoding = _fresh_encoding(config, seed, {} if unet is None else reference_weights(unet))
    parts = {
        "injection": fresh_injection(layers, config.text_width, seed),
        "routers": fresh_routers(layers, config.router_width, seed),
    }
    named = {f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()}
    return {**encoding, **named}


def _fresh_encoding(
    config: AnyStoryConfig, seed: int, reference: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Matrices and kernels of variance 1 / fan-in, norms that change nothing, and what of the ReferenceNet is given."""
    generator = torch.Generator().manual_seed(seed)
    given = {f"reference_net.{name}": value for name, value in reference.items()}
    shapes = AnyStoryEncoding(config, torch.float32, "meta", Outline).state_dict()
    weights = {}
    for name, shape in sorted((name, value.shape) for name, value in shapes.items()):
        if name in given:
            weights[name] = given[name].float()
        elif len(shape) >= 2:
            weights[name] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        else:
            weights[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return weights
