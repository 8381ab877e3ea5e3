"""AnyStory's router (section 3.3, "Decoupled routing mechanism"): whose is every pixel?

Every cross-attention layer of the U-Net has a router of its own, a small decoder of image segmentation. With Z the hidden
state that enters the layer (the one its queries are made from, as in Eq. 5) and R_i the routing features of the N subjects
and, last, of the background:

- coarse map: <W_a R_i, W_b Z>
- R_i <- R_i + cross-attention of R_i to Z, masked to where the coarse map is largest for i, everywhere where that is nowhere
- refined map: M_i = softmax over i of <W_c R_i, W_d Z>
- sigma(M): one-hot of the largest; in training Gumbel-softmax, straight through

There are a handful of R_i and thousands of pixels, so no matrix is ever applied to a pixel: <W_a R_i, W_b Z> is computed as
<W_b^T W_a R_i, Z>, the same number, and likewise the keys of the cross-attention. That is why the matrices on Z's side are
kept transposed: they are only applied to routing features. What hangs on R_i alone is computed once a run, in `Probes`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .outline import Outline
from .unet_layers import AttentionLayer

HEAD_WIDTH = 64  # of the masked cross-attention


def coarse_mask(logits: torch.Tensor) -> torch.Tensor:
    """Where each entry may look: its own pixels by the coarse map, all where it has none; (B, hw, E) -> bool."""
    entries = torch.arange(logits.shape[-1], device=logits.device)
    own = logits.argmax(dim=-1, keepdim=True) == entries  # (B, hw, E)
    return own | ~own.any(dim=1, keepdim=True)


def gumbel_noise(shape: Sequence[int], generator: torch.Generator | None = None, **place: Any) -> torch.Tensor:
    """What, added to logits, makes their argmax a draw from their softmax; `place`: dtype and device."""
    uniform = torch.rand(shape, generator=generator, **place)
    smallest = torch.finfo(uniform.dtype).tiny
    return -torch.log((-torch.log(uniform.clamp(min=smallest))).clamp(min=smallest))


def straight_through(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """One-hot of the largest forwards, the gradient of the softmax backwards: (..., E), each row one 1 and zeros."""
    soft = torch.softmax(logits / temperature, dim=-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


def gumbel_assignment(
    logits: torch.Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
) -> torch.Tensor:
    """sigma(M) in training: one-hot forwards, the gradient of a Gumbel-softmax backwards ("straight through").

    Args:
        logits: of the refined map, (..., E).
        temperature: of the softmax; the smaller, the nearer it is to one-hot.

    Returns:
        (..., E), each row one 1 and zeros.
    """
    noise = gumbel_noise(logits.shape, generator, device=logits.device, dtype=logits.dtype)
    return straight_through(logits + noise, temperature)


@dataclass(frozen=True)
class Probes:
    """What a router asks of every pixel, for one set of routing features.

    In front of these shapes may stand one more dimension, B: every row of the call then has entries of its own.

    Attributes:
        features: R, (E, d_r).
        vectors: (E + E * heads, d): W_b^T W_a R_i of all entries, then the queries of the masked cross-attention, entry
            by entry, already multiplied with its key matrix and scaled.
        absent: (B, E), where it is true there is no such entry; with None all are there.
    """

    features: torch.Tensor
    vectors: torch.Tensor
    absent: torch.Tensor | None = None


@dataclass(frozen=True)
class RoutingLogits:
    """Maps before the softmax over entries, (B, hw, E) each.

    Attributes:
        coarse: only chooses where each entry looks, so a loss has to reach its matrices by itself.
        refined: of M.
    """

    coarse: torch.Tensor
    refined: torch.Tensor


class AnyStoryRouter(torch.nn.Module):
    """The router of one cross-attention layer; the host's `operations` cast and offload its weights.

    It computes in float32 at least, whatever the model's precision: who owns a pixel is decided by a small difference.

    Args:
        width: d, of Z.
        router_width: d_r, of the routing features; a multiple of 64, or smaller.
    """

    def __init__(
        self, width: int, router_width: int, dtype: torch.dtype, device: torch.device | str, operations: Any
    ) -> None:
        super().__init__()
        self.heads = max(1, router_width // HEAD_WIDTH)

        def linear(columns: int, rows: int) -> torch.nn.Module:
            return operations.Linear(columns, rows, bias=False, dtype=dtype, device=device)

        self.coarse_subject = linear(router_width, router_width)  # W_a
        self.coarse_latent = linear(router_width, width)  # W_b transposed
        self.refine_query = linear(router_width, router_width)
        self.refine_key = linear(router_width, width)  # transposed
        self.refine_value = linear(width, router_width)
        self.refine_out = linear(router_width, router_width)
        self.fine_subject = linear(router_width, router_width)  # W_c
        self.fine_latent = linear(router_width, width)  # W_d transposed

    def probes(self, features: torch.Tensor, absent: torch.Tensor | None = None) -> Probes:
        """Routing features (..., E, d_r), float32 or wider -> what can be computed before a pixel is seen."""
        query = self.refine_query(features).unflatten(-1, (self.heads, -1))  # (..., E, heads, d_r / heads)
        one_head = torch.eye(self.heads, device=query.device, dtype=query.dtype)[:, :, None] * query.unsqueeze(-3)
        looked_for = self.refine_key(one_head.flatten(-2)) / math.sqrt(query.shape[-1])  # (..., E, heads, d)
        coarse = self.coarse_latent(self.coarse_subject(features))  # (..., E, d)
        return Probes(features, torch.cat((coarse, looked_for.flatten(-3, -2)), dim=-2), absent)

    def forward(self, hidden: torch.Tensor, probes: Probes) -> RoutingLogits:
        """Z (B, hw, d) -> the maps of all entries; minus infinity for those that are absent."""
        hidden = hidden.to(probes.vectors.dtype)
        entries = probes.features.shape[-2]
        found = hidden @ probes.vectors.mT  # (B, hw, E + E * heads)
        coarse, scores = found[..., :entries], found[..., entries:].unflatten(-1, (entries, self.heads))
        coarse = _without(coarse, probes.absent)
        scores = scores.masked_fill(~coarse_mask(coarse).unsqueeze(-1), -math.inf)
        shares = scores.softmax(dim=1).flatten(2)  # (B, hw, E * heads)
        seen = (shares.transpose(1, 2) @ hidden).unflatten(1, (entries, self.heads))  # (B, E, heads, d)
        values = self.refine_value(seen).unflatten(-1, (self.heads, -1))  # (B, E, heads, heads, d_r / heads)
        values = values.diagonal(dim1=2, dim2=3).transpose(-1, -2).flatten(2)  # each head's own part: (B, E, d_r)
        refined = probes.features + self.refine_out(values)
        fine = hidden @ self.fine_latent(self.fine_subject(refined)).transpose(1, 2)
        return RoutingLogits(coarse, _without(fine, probes.absent))


def _without(logits: torch.Tensor, absent: torch.Tensor | None) -> torch.Tensor:
    return logits if absent is None else logits.masked_fill(absent.unsqueeze(1), -math.inf)


class AnyStoryRouters(torch.nn.ModuleDict):
    """The routers of all cross-attention layers, under the layers' names.

    Args:
        layers: of the U-Net, in execution order.
        router_width: d_r.
    """

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        router_width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        operations: Any,
    ) -> None:
        super().__init__(
            {
                layer.name: AnyStoryRouter(layer.width, router_width, dtype, device, operations)
                for layer in layers
                if layer.context_width is not None
            }
        )
        self.router_width = router_width


def fresh_routers(layers: Sequence[AttentionLayer], router_width: int, seed: int) -> dict[str, torch.Tensor]:
    """Weights of untrained routers, float32, such that maps of features of variance 1 have logits of variance about 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = AnyStoryRouters(layers, router_width, torch.float32, "meta", Outline).state_dict()
    weights = {}
    for name, shape in sorted((name, value.shape) for name, value in shapes.items()):
        transposed = name.endswith(("_latent.weight", "_key.weight"))
        spread = 1 / math.sqrt(shape[0] if transposed else shape[1])
        if name.endswith("_subject.weight"):
            spread /= math.sqrt(router_width)
        weights[name] = torch.randn(shape, generator=generator) * spread
    return weights
