"""SDXL's U-Net for training: its residual and transformer blocks under gradient checkpointing.

The host's blocks are right as they are. They are put by class in the place of a model's own, so that every hook inside them
works as it does anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from .checkpointing import recomputed


class TrainedResBlock(ResBlock):
    """A residual block."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x, emb)
        return recomputed(lambda options, *tensors: self._forward(*tensors), {}, x, emb)


class TrainedTransformerBlock(BasicTransformerBlock):
    """A transformer block; what its hooks remember is put back for its second run."""

    def forward(
        self, x: Tensor, context: Tensor | None = None, transformer_options: Mapping[str, Any] | None = None
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        if not torch.is_grad_enabled():
            return super().forward(x, context, options)  # type: ignore[arg-type]
        return recomputed(self._run, options, x, context)

    def _run(self, options: Mapping[str, Any], x: Tensor, context: Tensor | None) -> Tensor:
        return super().forward(x, context, options)  # type: ignore[arg-type]


_TRAINED: dict[type[nn.Module], type[nn.Module]] = {
    ResBlock: TrainedResBlock,
    BasicTransformerBlock: TrainedTransformerBlock,
}


def train_unet_blocks(unet: nn.Module, checkpointing: bool) -> None:
    """Let the blocks of a U-Net, which must be nobody else's, be computed again on the way back, if that is wanted."""
    for block in unet.modules() if checkpointing else ():
        block.__class__ = _TRAINED.get(type(block), type(block))
