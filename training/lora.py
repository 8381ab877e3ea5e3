"""LoRA: low-rank changes of a frozen model's layers (Hu et al., 2021).

Eq. 3: h = W x + (alpha / r) B A x, with A (r, columns) random and B (rows, r) zero at the start, so that a fresh LoRA changes
nothing. A convolution's A has the layer's own kernel and B is one pixel wide.

A and B are float32 whatever the model's precision. The product is computed beside the layer, never as a matrix of the
layer's size. Files have the host's key names, so the stock LoRA loader reads them: ``lora_unet_<layer>.lora_down.weight`` (A),
``.lora_up.weight`` (B) and ``.alpha``, where dots in a layer's name are underscores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.ldm.flux.model
import torch
from torch import Tensor, nn

from .randomness import generator

PREFIX = "lora_unet_"
DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
Choice = Callable[[str], bool]


class LowRank(nn.Module):
    """(alpha / r) B A for one layer, a linear one or a convolution.

    Attributes:
        layer: holds stride, padding and so on; not a part of this module.
    """

    def __init__(self, layer: nn.Module, rank: int, alpha: float, seed: torch.Generator) -> None:
        super().__init__()
        weight: Any = layer.weight
        rows, *columns = weight.shape
        self.scale = alpha / rank
        self.alpha = alpha
        self.convolution = (
            {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
            if isinstance(layer, nn.Conv2d)
            else None
        )
        ones = [1] * (len(columns) - 1)
        bound = 1 / math.sqrt(math.prod(columns))
        down = torch.empty(rank, *columns).uniform_(-bound, bound, generator=seed)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(rows, rank, *ones))

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., rows), or (B, channels, h, w) for a convolution, of x's type."""
        down, up = _for(x, self.down), _for(x, self.up)
        # The scale goes to the few numbers between A and B: at the outputs it would cost as much as the products.
        if self.convolution is None:
            return nn.functional.linear(self._scaled(nn.functional.linear(x, down)), up)
        inner = nn.functional.conv2d(x, down, **self.convolution)  # type: ignore[arg-type]
        return nn.functional.conv2d(self._scaled(inner), up)

    def _scaled(self, inner: Tensor) -> Tensor:
        return inner if self.scale == 1 else self.scale * inner


def _for(x: Tensor, weight: Tensor) -> Tensor:
    """A weight as `x` meets it. Autocast casts by itself, once a step; a cast of ours would be one a layer."""
    return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)


def adapted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that a LoRA may change, by name: linear ones and, in a U-Net, convolutions.

    Those of a transformer's blocks only: of FLUX the double and single blocks, of a U-Net the input, middle and output blocks.
    """
    kinds = (nn.Linear,) if isinstance(network, comfy.ldm.flux.model.Flux) else (nn.Linear, nn.Conv2d)
    parts = ("double_blocks.", "single_blocks.", "input_blocks.", "middle_block.", "output_blocks.")
    return {
        name: layer
        for name, layer in network.named_modules()
        if name.startswith(parts) and isinstance(layer, kinds) and getattr(layer, "groups", 1) == 1
    }


def attach_lora(network: nn.Module, rank: int, alpha: float, seed: int, chosen: Choice | None = None) -> nn.ModuleDict:
    """Let every layer of `network`, which must be nobody else's, add what a LoRA of its own says.

    Args:
        chosen: picks layers by name; None for all of `adapted_layers`.

    Returns:
        The LoRAs, float32 and trainable, by the names they have in a file.
    """
    layers = {name: layer for name, layer in adapted_layers(network).items() if chosen is None or chosen(name)}
    loras = nn.ModuleDict()
    for number, (name, layer) in enumerate(layers.items()):
        lora = LowRank(layer, rank, alpha, generator(seed, "lora", number))
        loras[PREFIX + name.replace(".", "_")] = lora

        def add(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor, lora: LowRank = lora) -> Tensor:
            return out + lora(inputs[0]).to(out.dtype)

        layer.register_forward_hook(add)
    return loras


def lora_state(loras: nn.ModuleDict) -> dict[str, Tensor]:
    """The LoRAs' present values, float32 on the CPU, in the host's key names."""
    state: dict[str, Tensor] = {}
    for name, lora in loras.items():
        assert isinstance(lora, LowRank)
        state[f"{name}.{DOWN}"] = lora.down.detach().to("cpu", copy=True)
        state[f"{name}.{UP}"] = lora.up.detach().to("cpu", copy=True)
        state[f"{name}.{ALPHA}"] = torch.tensor(float(lora.alpha))
    return state


def load_lora_state(loras: nn.ModuleDict, state: dict[str, Tensor]) -> None:
    """Put values of `lora_state` back.

    Raises:
        ValueError: they belong to other layers, or have another rank.
    """
    for name, lora in loras.items():
        assert isinstance(lora, LowRank)
        for key, parameter in ((DOWN, lora.down), (UP, lora.up)):
            value = state.get(f"{name}.{key}")
            if value is None or value.shape != parameter.shape:
                raise ValueError(f"the LoRA has no '{name}.{key}' of the shape {tuple(parameter.shape)}")
            with torch.no_grad():
                parameter.copy_(value)
