"""Several changes to one attention of a U-Net, in one call, without losing any.

The host keeps a single replacement an attention (`patches_replace`), so packs that replace attention push each other out.
Here replacements are put together for one call of the model, when all that the graph has applied is known: a foreign
replacement runs innermost, then this pack's steps, from the lowest rank outwards. So the order in which the nodes were wired
does not matter, and nothing outlives the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention

from .unet_layers import Block

# (B, L, heads * d) queries, (B, S, heads * d) keys and values -> (B, L, heads * d)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Step = Callable[[Attend, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]

ROUTED = 10  # AnyStory: what a subject's pixels attend to
INFUSED = 20  # SeAl: blends into the result
OBSERVED = 30  # reads, and changes nothing


@dataclass(frozen=True)
class AttentionChain:
    """What stands in `patches_replace` for one attention during one call.

    Attributes:
        foreign: the replacement that was found there, or None.
        steps: (rank, step), lowest rank first.
    """

    foreign: Callable[..., torch.Tensor] | None
    steps: tuple[tuple[int, Step], ...]

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        return self._attend(len(self.steps), extra)(q, k, v)

    def _attend(self, count: int, extra: dict[str, Any]) -> Attend:
        if count == 0:
            return lambda q, k, v: self._innermost(q, k, v, extra)
        step = self.steps[count - 1][1]
        return lambda q, k, v: step(self._attend(count - 1, extra), q, k, v, extra)

    def _innermost(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        if self.foreign is not None:
            return self.foreign(q, k, v, extra)
        # As the host's CrossAttention calls it where nothing is replaced.
        return optimized_attention(
            q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"], transformer_options=extra
        )

    def with_step(self, rank: int, step: Step) -> AttentionChain:
        """A chain with one more step; steps of equal rank run in the order in which they came."""
        return replace(self, steps=tuple(sorted([*self.steps, (rank, step)], key=lambda entry: entry[0])))


def add_steps(options: Mapping[str, Any], kind: str, steps: Mapping[Block, Step], rank: int) -> dict[str, Any]:
    """Transformer options for one call in which every block of `steps` has its step in front of its attention.

    Args:
        options: the call's transformer options; left as they are.
        kind: "attn1" for self-attention, "attn2" for cross-attention.
        steps: block -> `step(attend, q, k, v, extra_options)`, where `attend(q, k, v)` runs what lies below. A step may
            attend with fewer queries or more keys than it was given, and several times.
        rank: one of the constants above.
    """
    replaced = options.get("patches_replace", {})
    found = dict(replaced.get(kind, {}))
    for block, step in steps.items():
        # The host lets a replacement stand for all transformer blocks of a block, under the first two parts of its name.
        there = found.get(block, found.get(block[:2]))
        chain = there if isinstance(there, AttentionChain) else AttentionChain(there, ())
        found[block] = chain.with_step(rank, step)
    return {**options, "patches_replace": {**replaced, kind: found}}
