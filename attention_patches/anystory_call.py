"""One call of the U-Net under AnyStory: the steps that stand in front of its attentions.

A cross-attention first routes its pixels, then lets the subjects in (Eq. 5); a self-attention looks at the references by the
map of the cross-attention before it (Eq. 6-8). All state is the call's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention

from .anystory_entries import Entries
from .anystory_injection import Attention, Members, add_references, reference_attention, subject_attention
from .anystory_routing import CallRouting, Grid, RoutingMap
from .attention_chain import Attend
from .unet_layers import AttentionLayer

NO_REFERENCES = -math.inf  # gamma


@dataclass(frozen=True)
class Settings:
    """Strengths and range.

    Attributes:
        eta: of Eq. 5; 0 leaves cross-attention as it is.
        gamma: of Eq. 7; `NO_REFERENCES` leaves self-attention as it is.
        start_percent, end_percent: of the run, in which anything is done.
    """

    eta: float
    gamma: float
    start_percent: float = 0.0
    end_percent: float = 1.0


@dataclass
class Call:
    """The steps of one call of the U-Net.

    Attributes:
        rows: how many the call has.
        subject_rows: those of positive prompts.
        routing: the maps so far.
        entering: the hidden state that enters the cross-attention which comes next.
    """

    settings: Settings
    entries: Entries
    rows: int
    subject_rows: list[int]
    routing: CallRouting
    entering: torch.Tensor | None = field(default=None, init=False)

    def get_state(self) -> tuple[torch.Tensor | None, list[RoutingMap]]:
        """What is remembered from one layer to the next (see `call_state`)."""
        return self.entering, list(self.routing.maps)

    def set_state(self, state: tuple[torch.Tensor | None, list[RoutingMap]]) -> None:
        """Remember that instead."""
        self.entering, self.routing.maps = state[0], list(state[1])

    def see(self, hidden: torch.Tensor, context: Any, value: Any, extra: dict[str, Any]) -> tuple[Any, Any, Any]:
        """`attn2_patch`, the last of all: keeps what the queries are about to be made from."""
        self.entering = hidden
        return hidden, context, value

    def cross_attention(
        self,
        layer: AttentionLayer,
        attend: Attend,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        extra: dict[str, Any],
    ) -> torch.Tensor:
        """Routes this layer's pixels, then Eq. 5."""
        hidden, self.entering = self.entering, None
        assert hidden is not None
        grid = token_grid(hidden, self.rows, extra)
        probes = self.entries.probes(layer, hidden.device)
        router = self.entries.features.network.model.routers[layer.name]
        routed = RoutingMap(grid, router(hidden, probes).refined.argmax(dim=-1), len(probes.features))
        self.routing.maps.append(routed)
        out = attend(q, k, v)
        if self.settings.eta == 0:
            return out
        entries, nobody = self.entries.subjects(layer, q), self.entries.nobody(layer, q)
        injected = subject_attention(host_attention(extra), q, self._members(routed), entries, nobody)
        return out + self.settings.eta * injected

    def self_attention(
        self,
        layer: AttentionLayer,
        number: int,
        alone: bool,
        attend: Attend,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        extra: dict[str, Any],
    ) -> torch.Tensor:
        """Eq. 6-8 in layer `number`; `alone` where nothing else has replaced this attention."""
        grid, latest = token_grid(q, self.rows, extra), self.routing.latest
        if latest is None:
            return attend(q, k, v)
        references, gamma = self.entries.references(layer, number, q), self.settings.gamma
        members = self._members(latest.resized(grid))
        if alone:
            return reference_attention(host_attention(extra), q, k, v, members, references, gamma)
        return add_references(host_attention(extra), attend(q, k, v), q, k, v, members, references, gamma)

    def _members(self, routed: RoutingMap) -> Members:
        return {row: routed.members[row] for row in self.subject_rows}


def token_grid(tokens: torch.Tensor, rows: int, extra: Mapping[str, Any]) -> Grid:
    """(h, w) of the tokens (rows, h * w, C) that a layer's attention is given."""
    height, width = extra["activations_shape"][-2:]
    if tokens.shape[:2] != (rows, height * width):
        raise ValueError(
            "AnyStory: another patch of this model merges or cuts up the picture inside attention (token merging,"
            " HyperTile), so subjects cannot be told apart; remove that patch."
        )
    return height, width


def host_attention(extra: dict[str, Any]) -> Attention:
    """The host's attention as it calls it at this place."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        precision = extra["attn_precision"]
        return optimized_attention(
            q, k, v, extra["n_heads"], mask=mask, attn_precision=precision, transformer_options=extra
        )

    return attention
