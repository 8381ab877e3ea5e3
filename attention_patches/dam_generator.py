"""DAM's temperature generators, the network (One-for-All, section 3.4, "Dynamic Attention Modulation").

Every block of the DiT has a generator of its own: an MLP that reads a token's query, its heads side by side, and gives
one number, the token's logit of the temperature (Eq. 4, computed in `dam`). The paper says "a simple Multi-Layer
Perceptron" and prints no sizes: here it has one hidden layer with SiLU, whose width is the checkpoint's.

The last layer's bias is kept as an offset from softplus^-1(1 - t_min), the point at which the temperature is 1. So a
last layer of zeros, with which training starts, is neutral in every precision a file may be stored in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .outline import Outline

T_MIN = 0.01
DOUBLE, SINGLE = "double_blocks", "single_blocks"


@dataclass(frozen=True)
class DAMConfig:
    """The sizes of a set of generators.

    Attributes:
        model_width: d_model, of the DiT's queries with all heads.
        width: of the hidden layer.
        double_blocks, single_blocks: of the DiT.
        t_min: the smallest temperature, in (0, 1).
        base: family of the model it is made for.
    """

    model_width: int
    width: int
    double_blocks: int
    single_blocks: int
    t_min: float = T_MIN
    base: str = "flux"


# Wide enough for one number a token, and light: 22 million numbers beside FLUX.1's 12 billion.
FLUX_DAM = DAMConfig(model_width=3072, width=128, double_blocks=19, single_blocks=38)


class TemperatureGenerator(torch.nn.Module):
    """The MLP of one block; the host's `operations` cast and offload its weights."""

    def __init__(self, config: DAMConfig, dtype: torch.dtype, device: torch.device | str, operations: Any) -> None:
        super().__init__()
        self.mlp_in = operations.Linear(config.model_width, config.width, dtype=dtype, device=device)
        self.mlp_out = operations.Linear(config.width, 1, dtype=dtype, device=device)

    def forward(self, q: torch.Tensor) -> torch.Tensor:
        """Offsets of Eq. 4's logits from the neutral point, for the queries of one block.

        Args:
            q: (B, heads, L, d), before RoPE.

        Returns:
            (B, L), float32 or wider.
        """
        tokens = q.transpose(1, 2).flatten(2)  # (B, L, heads * d)
        hidden = torch.nn.functional.silu(self.mlp_in(tokens))  # (B, L, width)
        # A temperature scales a whole row of scores, so its rounding is not averaged out as that of a query's numbers.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return self.mlp_out(hidden.to(wide)).squeeze(-1)


class DAMGenerators(torch.nn.Module):
    """The generators of all blocks."""

    def __init__(self, config: DAMConfig, dtype: torch.dtype, device: torch.device | str, operations: Any) -> None:
        super().__init__()
        self.config = config

        def per(count: int) -> torch.nn.ModuleList:
            return torch.nn.ModuleList([TemperatureGenerator(config, dtype, device, operations) for _ in range(count)])

        self.double_blocks = per(config.double_blocks)
        self.single_blocks = per(config.single_blocks)

    def of(self, block_type: str, index: int) -> torch.nn.Module:
        """The generator of block `index` of the double or single blocks, as the host names them."""
        return (self.double_blocks if block_type == "double" else self.single_blocks)[index]


def fresh_dam(config: DAMConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights of untrained generators, float32: first layers of variance 1 / fan-in, last layers and biases zero."""
    generator = torch.Generator().manual_seed(seed)
    shapes = DAMGenerators(config, torch.float32, "meta", Outline).state_dict()
    weights = {}
    for name, shape in sorted((name, value.shape) for name, value in shapes.items()):
        weights[name] = torch.zeros(shape)
        if name.endswith("mlp_in.weight"):
            weights[name] = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
    return weights
