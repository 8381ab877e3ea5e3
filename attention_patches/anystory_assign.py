"""Whose a pixel is, in AnyStory's training: sigma(M) of every layer, from one of three places.

- `everywhere`: there is no router yet, and everything is the one subject's
- `GivenMasks`: the target picture's instance masks say it
- `Routed`: the routers say it, one-hot forwards, with the gradient of a Gumbel-softmax backwards; their logits are kept for
  the routing loss
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .anystory_router import AnyStoryRouters, RoutingLogits, straight_through
from .anystory_routing import Grid
from .unet_layers import AttentionLayer


def owners_of(masks: torch.Tensor, grid: Grid) -> torch.Tensor:
    """M^gt of Eq. 4 as the index of the entry that each token shows most of: (B, N, h, w) -> (B, hw) int64, N = background.

    Args:
        masks: the subjects' shares of every pixel, at any size; the background has what they leave over.
    """
    shares = torch.nn.functional.adaptive_avg_pool2d(masks, grid)  # (B, N, h, w)
    background = (1 - shares.sum(dim=1, keepdim=True)).clamp(min=0)
    return torch.cat((shares, background), dim=1).argmax(dim=1).flatten(1)


@dataclass(frozen=True)
class Assigned:
    """Whose a layer's pixels are.

    Attributes:
        grid: (h, w) of the layer.
        shares: sigma(M), (B, hw, E).
        owners: (B, hw) int64, the entry that owns each pixel; None where everything is the first entry's.
    """

    grid: Grid
    shares: torch.Tensor
    owners: torch.Tensor | None


class Assigner(Protocol):
    """Says whose the pixels of a cross-attention are, from the hidden state Z (B, hw, C) that enters it."""

    def __call__(self, layer: AttentionLayer, grid: Grid, hidden: torch.Tensor) -> Assigned: ...


def everywhere(layer: AttentionLayer, grid: Grid, hidden: torch.Tensor) -> Assigned:
    """The whole picture belongs to the row's one entry."""
    return Assigned(grid, hidden.new_ones(*hidden.shape[:2], 1), None)


@dataclass
class GivenMasks:
    """The target's own instance masks, (B, N, h, w)."""

    masks: torch.Tensor
    _made: dict[Grid, Assigned] = field(default_factory=dict)

    def __call__(self, layer: AttentionLayer, grid: Grid, hidden: torch.Tensor) -> Assigned:
        if grid not in self._made:
            owners = owners_of(self.masks, grid)
            shares = torch.nn.functional.one_hot(owners, self.masks.shape[1] + 1).to(self.masks)
            self._made[grid] = Assigned(grid, shares, owners)
        return self._made[grid]


@dataclass
class Routed:
    """The routers, with the noise of the Gumbel-softmax.

    Attributes:
        routers: of all layers.
        features: R of every row's entries, (B, E, d_r) float32.
        absent: (B, E), where a row has no such entry.
        noise: (layer, pixels) -> (B, pixels, E), always the same for the same layer; None for the plain argmax.
        temperature: of the Gumbel-softmax.
        logits: of every layer, by its name: what the routing loss is made from.
        grids: likewise.
    """

    routers: AnyStoryRouters
    features: torch.Tensor
    absent: torch.Tensor
    noise: Callable[[AttentionLayer, int], torch.Tensor] | None = None
    temperature: float = 1.0
    logits: dict[str, RoutingLogits] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)

    def __call__(self, layer: AttentionLayer, grid: Grid, hidden: torch.Tensor) -> Assigned:
        router: Any = self.routers[layer.name]
        with torch.autocast(hidden.device.type, enabled=False):  # a small difference decides
            probes = router.probes(self.features, self.absent)
            found: RoutingLogits = router(hidden, probes)
            refined = found.refined
            if self.noise is not None:
                refined = refined + self.noise(layer, hidden.shape[1]).to(refined)
            shares = straight_through(refined, self.temperature)
        self.logits.setdefault(layer.name, found)
        self.grids.setdefault(layer.name, grid)
        return Assigned(grid, shares, refined.argmax(dim=-1))
