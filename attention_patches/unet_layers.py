"""The transformer blocks of a U-Net, by the names under which the host's attention hooks know them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, UNetModel, Upsample

Block = tuple[str, int, int]


@dataclass(frozen=True)
class AttentionLayer:
    """One transformer block: a self-attention (`attn1`) and a cross-attention (`attn2`).

    Attributes:
        block: (part, number, index): "input", "middle" or "output", the number of the block in it, and the transformer
            block's index within that; what `patches_replace` is keyed by.
        width: of the hidden state, heads * head_width.
        heads, head_width: of both attentions.
        context_width: of the text it reads; None where the block has no cross-attention.
        factor: how much smaller than the latent its picture is along each side.
    """

    block: Block
    width: int
    heads: int
    head_width: int
    context_width: int | None
    factor: int

    @property
    def name(self) -> str:
        """For files and for people: "output_3_1"."""
        return "_".join(map(str, self.block))


def attention_layers(unet: UNetModel) -> tuple[AttentionLayer, ...]:
    """Every transformer block in the order in which a forward runs through them."""
    return tuple(layer for layer, _ in attention_modules(unet))


def attention_modules(unet: UNetModel) -> Iterator[tuple[AttentionLayer, BasicTransformerBlock]]:
    """As `attention_layers`, each with its module."""
    factor = 1
    for part, number, module in _parts(unet):
        for child in module:
            if isinstance(child, Downsample):
                factor *= 2
            elif isinstance(child, Upsample):
                factor //= 2
            elif isinstance(child, SpatialTransformer):
                blocks: Any = child.transformer_blocks
                for index, block in enumerate(blocks):
                    yield _layer((part, number, index), block, factor), block


def _parts(unet: UNetModel) -> Iterator[tuple[str, int, Any]]:
    yield from (("input", number, module) for number, module in enumerate(unet.input_blocks))
    if unet.middle_block is not None:
        yield ("middle", 0, unet.middle_block)
    yield from (("output", number, module) for number, module in enumerate(unet.output_blocks))


def _layer(block: Block, module: Any, factor: int) -> AttentionLayer:
    cross = module.attn2
    return AttentionLayer(
        block=block,
        width=module.attn1.to_q.in_features,
        heads=module.n_heads,
        head_width=module.d_head,
        context_width=None if cross is None else cross.to_k.in_features,
        factor=factor,
    )
