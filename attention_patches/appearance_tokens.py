"""What is kept of an appearance: keys and values of self-attention layers, in the hands of the host's memory manager.

The tensors are the weights of a network of their own. The host loads it beside the U-Net where there is room; otherwise it
leaves them in main memory, pinned where it pins, and brings each layer's over on its own streams while the U-Net computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher

from .unet_layers import AttentionLayer, Block


class AppearanceError(ValueError):
    """An appearance that cannot be cached or infused; the message is one sentence fit for an artist."""


@dataclass(frozen=True)
class Tokens:
    """What one layer keeps of the appearance.

    Attributes:
        keys: (M, C) of unit length, heads concatenated; all that cosines need.
        values: (M, C).
        lengths: (M,) float32, of the keys as they were.
    """

    keys: torch.Tensor
    values: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> Tokens:
        """From projected keys and values, (M, C)."""
        lengths = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
        unit = keys.float() / lengths[:, None].clamp(min=torch.finfo(torch.float32).tiny)
        return cls(unit.to(keys.dtype), values, lengths)

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.keys.to(device), self.values.to(device), self.lengths.to(device))


class LayerTokens(torch.nn.Module, comfy.ops.CastWeightBiasOp):
    """`Tokens` of one layer as the host's memory manager knows weights: keys are the weight, values the bias."""

    comfy_cast_weights = True

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(tokens.keys, requires_grad=False)
        self.bias = torch.nn.Parameter(tokens.values, requires_grad=False)
        self.lengths = torch.nn.Parameter(tokens.lengths, requires_grad=False)

    @contextmanager
    def beside(self, like: torch.Tensor) -> Iterator[Tokens]:
        """The tokens on the device and in the type of `like`, until the block ends."""
        keys, values, stream = comfy.ops.cast_bias_weight(self, like, offloadable=True)
        try:
            yield Tokens(keys, values, self.lengths.to(like.device))
        finally:
            comfy.ops.uncast_bias_weight(self, keys, values, stream)


class AppearanceTokens(torch.nn.Module):
    """The whole cache.

    Attributes:
        moments: progress of the run at each cached timestep, ascending.
        layers: of the U-Net it was made with, those that are cached.
        base: the class of the model it was made with.
    """

    def __init__(
        self,
        base: str,
        layers: Sequence[AttentionLayer],
        moments: Sequence[float],
        tokens: Sequence[dict[Block, Tokens]],
    ) -> None:
        super().__init__()
        self.base = base
        self.layers = tuple(layers)
        self.moments = tuple(moments)
        self.kept = torch.nn.ModuleList(
            torch.nn.ModuleDict({layer.name: LayerTokens(found[layer.block]) for layer in layers}) for found in tokens
        )

    def nearest_moment(self, progress: float) -> int:
        """The cached timestep nearest to `progress`, by number."""
        return min(range(len(self.moments)), key=lambda number: abs(self.moments[number] - progress))

    def tokens(self, moment: int, layer: AttentionLayer) -> LayerTokens:
        kept: Any = self.kept[moment]
        return kept[layer.name]


@dataclass(frozen=True)
class Appearance:
    """A cached appearance; `patcher` puts it into the hands of the host's memory manager."""

    patcher: ModelPatcher

    @property
    def network(self) -> AppearanceTokens:
        return self.patcher.model

    def nbytes(self) -> int:
        """Memory it takes, once."""
        return sum(value.nbytes for value in self.network.parameters())
