"""AnyStory in training: every row of a call is another picture with subjects of its own, and gradients go through its maps.

The formulas and the modules are those of `anystory_injection` and `anystory_router`. What differs:

- Eq. 5 is computed as printed, as a sum over the entries weighted with sigma(M), because the weight that a pixel gives to
  an entry which does not own it has a gradient too. Where sigma(M) is one-hot, the sum is what inference computes.
- Eq. 6-8 are one attention to [own keys ; keys of all references of the row] with the bias of Eq. 7. g is 0 or minus infinity
  and has no derivative, so routers learn from Eq. 5 and from their own loss.
- Whose a pixel is comes from an `Assigner` (`anystory_assign`).

Whatever a layer is asked twice about, as gradient checkpointing does, is kept from the first time: nothing here depends on
the order of calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .anystory_assign import Assigned, Assigner
from .anystory_call import host_attention, token_grid
from .anystory_injection import Attention
from .anystory_network import AnyStoryInjecting
from .anystory_routing import Grid, resize_owners
from .attention_chain import ROUTED, Attend, Step, add_steps
from .unet_layers import AttentionLayer, Block

KEY = "ensemble_anystory_rows"


def weighted_subject_attention(
    attention: Attention, q: torch.Tensor, shares: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """The sum of Eq. 5, without eta: sum over i of sigma(M_i) * softmax(Q K_i^T / sqrt d) V_i.

    Args:
        attention: softmax attention.
        q: (B, hw, heads * d).
        shares: sigma(M), (B, hw, E).
        keys, values: K_i and V_i of every row's entries, (B, E, m, heads * d).

    Returns:
        (B, hw, heads * d).
    """
    entries = keys.shape[1]
    queries = q.unsqueeze(1).expand(-1, entries, -1, -1).flatten(0, 1)  # (B * E, hw, heads * d)
    found = attention(queries, keys.flatten(0, 1), values.flatten(0, 1), None).unflatten(0, (-1, entries))
    return (found * shares.mT.unsqueeze(-1).to(found)).sum(dim=1)


def biased_reference_attention(
    attention: Attention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    references: tuple[torch.Tensor, torch.Tensor],
    seen: torch.Tensor | None,
    gamma: float,
) -> torch.Tensor:
    """Eq. 6-8: attention to [own keys ; those of N references].

    Args:
        attention: softmax attention.
        q, k, v: (B, hw, heads * d).
        references: keys and values, (B, N, T, heads * d).
        seen: sigma(M_i) of the N subjects, (B, hw, N) bool; None where every pixel is every subject's.
        gamma: strength.

    Returns:
        (B, hw, heads * d).
    """
    keys, values = (torch.cat((own, other.flatten(1, 2)), dim=1) for own, other in zip((k, v), references, strict=True))
    bias = None  # adding 0 needs no mask, and without one every fused kernel serves
    if seen is not None or gamma != 0:
        bias = q.new_zeros(len(q), 1, q.shape[1], keys.shape[1])
        bias[..., k.shape[1] :] = gamma
        if seen is not None:
            hidden = ~seen.repeat_interleave(references[0].shape[2], dim=-1)
            bias[..., k.shape[1] :].masked_fill_(hidden.unsqueeze(1), -math.inf)
    return attention(q, keys, values, bias)


@dataclass(frozen=True)
class RowSubjects:
    """The subjects of B rows.

    Attributes:
        tokens: E of every row's entries, (B, E, m, d_c): its subjects and, unless everything is a subject's, the background.
        hidden: {G^l} of S subjects, those of all rows together, each (S, T_l, C_l); the first is not used.
        places: (B, N) int64, which of the S each row's subjects are; S where it has no such subject, or no reference of it.
    """

    tokens: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    places: torch.Tensor

    def of_rows(self, states: torch.Tensor) -> torch.Tensor:
        """What was computed for each of the S subjects, by row: (S, T, C) -> (B, N, T, C), zeros where there is none."""
        nobody = states.new_zeros(1, *states.shape[1:])
        return torch.cat((states, nobody))[self.places]

    @property
    def all_there(self) -> bool:
        """Whether every row has all N references."""
        return bool((self.places < len(self.hidden[-1])).all())


class RowCall:
    """One call of the U-Net for B rows, whose subjects come in wherever `assign` says."""

    def __init__(
        self, network: AnyStoryInjecting, subjects: RowSubjects, assign: Assigner, eta: float = 1.0, gamma: float = 0.0
    ) -> None:
        self.network, self.subjects, self.assign = network, subjects, assign
        self.eta, self.gamma = eta, gamma
        self.assigned: dict[int, Assigned] = {}  # by the layer's number
        self._entering: torch.Tensor | None = None
        self._all_there = subjects.all_there

    def diffusion_model(
        self,
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """DIFFUSION_MODEL wrapper."""
        return executor(x, timesteps, context, y, control, self._with_steps(transformer_options or {}), **kwargs)

    def _with_steps(self, options: dict[str, Any]) -> dict[str, Any]:
        cross: dict[Block, Step] = {}
        own: dict[Block, Step] = {}
        for number, layer in enumerate(self.network.injection.layers):
            cross[layer.block] = partial(self.cross_attention, number, layer)
            if number:
                own[layer.block] = partial(self.self_attention, number, layer)
        patches = options.get("patches", {})
        patches = {**patches, "attn2_patch": [*patches.get("attn2_patch", []), self.see]}
        return add_steps(add_steps({**options, "patches": patches}, "attn2", cross, ROUTED), "attn1", own, ROUTED)

    def see(self, hidden: torch.Tensor, context: Any, value: Any, extra: dict[str, Any]) -> tuple[Any, Any, Any]:
        """`attn2_patch`, the last of all: keeps what the queries are about to be made from."""
        self._entering = hidden
        return hidden, context, value

    def cross_attention(
        self,
        number: int,
        layer: AttentionLayer,
        attend: Attend,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        extra: dict[str, Any],
    ) -> torch.Tensor:
        """Assigns this layer's pixels, then Eq. 5."""
        hidden, self._entering = self._entering, None
        assert hidden is not None
        found = self.assign(layer, token_grid(hidden, len(q), extra), hidden)
        self.assigned.setdefault(number, found)
        keys, values = (each.to(q) for each in self.network.injection.subject[layer.name](self.subjects.tokens))
        injected = weighted_subject_attention(host_attention(extra), q, found.shares, keys, values)
        return attend(q, k, v) + self.eta * injected

    def self_attention(
        self,
        number: int,
        layer: AttentionLayer,
        attend: Attend,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        extra: dict[str, Any],
    ) -> torch.Tensor:
        """Eq. 6-8 by the map of the cross-attention before this layer."""
        matrices = self.network.injection.reference[layer.name]
        made = matrices(self.subjects.hidden[number])  # (S, T, heads * d) each
        keys, values = (self.subjects.of_rows(each.to(q)) for each in made)
        seen = self._seen(self.assigned[number - 1], token_grid(q, len(q), extra))
        return biased_reference_attention(host_attention(extra), q, k, v, (keys, values), seen, self.gamma)

    def _seen(self, latest: Assigned, grid: Grid) -> torch.Tensor | None:
        """sigma(M_i) of the subjects on a layer's grid, (B, hw, N); None where every pixel is every subject's."""
        places = self.subjects.places
        if latest.owners is None:
            there = places < len(self.subjects.hidden[-1])
            return None if self._all_there else there.unsqueeze(1).expand(-1, grid[0] * grid[1], -1)
        owners = resize_owners(latest.owners, latest.grid, grid)
        there = owners.unsqueeze(-1) == torch.arange(places.shape[1], device=owners.device)
        return there & (places < len(self.subjects.hidden[-1])).unsqueeze(1)


def with_rows(model: ModelPatcher, call: RowCall) -> ModelPatcher:
    """A clone of `model` that makes this call."""
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, call.diffusion_model)
    return patched
