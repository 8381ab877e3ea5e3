"""SeAl's Reference-guided Appearance Infusion: every token of the picture takes over what the appearance has most like it.

In a self-attention layer, with the picture's queries q_i and the appearance's cached keys k_j and values v_j:

- sim_i = max_j cos(q_i, k_j), heads concatenated, or the mean of the heads' cosines
- M_i = [sim_i >= tau]
- A_app,i = attention of q_i over its top-k most similar keys; for k = 1 the value itself
- A = (A_base + delta M A_app) / (1 + delta M), which is A_base + w (A_app - A_base) with w = delta M / (1 + delta M)

tau falls and delta rises along the run: structure first, details later. Beyond the paper, there may be several appearances,
each with a mask or the routing map of a subject. M then is also weighted with how much of the token the mask covers, and
where appearances meet, the token goes to the one it is most similar to: A stays between A_base and one appearance.

The similarities of all tokens at once would be as large as the attention matrix, so they are made a chunk of queries at a
time, of which only the best are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .appearance_tokens import LayerTokens, Tokens

CONSTANT, LINEAR, COSINE, STEP = "constant", "linear", "cosine", "step"
SCHEDULES = (LINEAR, COSINE, STEP, CONSTANT)
CONCATENATED, AVERAGED = "heads together", "mean of heads"
SIMILARITIES = (CONCATENATED, AVERAGED)

SCORES = 1 << 22  # similarities of one chunk: 8 MB in half precision, where 4,096 tokens squared take 32


@dataclass(frozen=True)
class Schedule:
    """tau and delta over the part of the run from `start` to `end`; outside of it nothing is infused.

    A tau above 1 admits nothing, because no cosine reaches it.
    """

    tau_start: float
    tau_end: float
    delta_start: float
    delta_end: float
    kind: str = LINEAR
    start: float = 0.0
    end: float = 1.0

    def at(self, progress: float) -> tuple[float, float]:
        """(tau, delta) at a progress of the run, 0 to 1."""
        if not self.start <= progress <= self.end:
            return self.tau_end, 0.0
        share = rise((progress - self.start) / max(self.end - self.start, 1e-9), self.kind)
        return (
            self.tau_start + share * (self.tau_end - self.tau_start),
            self.delta_start + share * (self.delta_end - self.delta_start),
        )


def rise(fraction: float, kind: str) -> float:
    """How far a schedule has come from its start to its end value, 0 to 1."""
    if kind == CONSTANT:
        return 1.0
    if kind == STEP:
        return float(fraction >= 0.5)
    return fraction if kind == LINEAR else (1 - math.cos(math.pi * fraction)) / 2


def split_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """(..., heads * d) -> (..., heads, d)."""
    return tokens.unflatten(-1, (heads, -1))


def unit_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Every head's part of length 1 / sqrt(heads), so that products are means of the heads' cosines: (R, C) -> (R, C)."""
    parts = torch.nn.functional.normalize(split_heads(tokens.float(), heads), dim=-1) / math.sqrt(heads)
    return parts.flatten(-2).to(tokens.dtype)


def attend_to(q: torch.Tensor, tokens: Tokens, index: torch.Tensor, heads: int) -> torch.Tensor:
    """A_app: attention of each query over its own few keys.

    Args:
        q: (R, C).
        index: (R, k), which of the tokens each query sees.

    Returns:
        (R, C), of the values' type.
    """
    keys = tokens.keys[index].float() * tokens.lengths[index][..., None]  # (R, k, C)
    values = split_heads(tokens.values[index].float(), heads)  # (R, k, heads, d)
    queries = split_heads(q.float(), heads)[:, None]  # (R, 1, heads, d)
    scores = (queries * split_heads(keys, heads)).sum(-1) / math.sqrt(queries.shape[-1])  # (R, k, heads)
    found = (scores.softmax(dim=1)[..., None] * values).sum(1)  # (R, heads, d)
    return found.flatten(-2).to(tokens.values.dtype)


def match(
    q: torch.Tensor, tokens: Tokens, heads: int, top_k: int = 1, similarity: str = CONCATENATED
) -> tuple[torch.Tensor, torch.Tensor]:
    """sim and A_app of every query, a chunk at a time.

    Args:
        q: (R, C), heads concatenated.
        tokens: the appearance's, M of them, of q's type and device.

    Returns:
        (R,) float32 and (R, C) of the values' type.
    """
    averaged = similarity == AVERAGED
    keys = (unit_heads(tokens.keys, heads) if averaged else tokens.keys).T  # (C, M)
    top_k = min(top_k, keys.shape[1])
    wide = keys.shape[1] if top_k == 1 else max(keys.shape[1], top_k * keys.shape[0])
    rows = max(1, SCORES // wide)
    best = q.new_empty(len(q), dtype=torch.float32)
    found = torch.empty_like(q, dtype=tokens.values.dtype)
    for start in range(0, len(q), rows):
        chunk = slice(start, start + rows)
        queries = q[chunk]
        scores = (unit_heads(queries, heads) if averaged else queries) @ keys  # (rows, M)
        if top_k == 1:
            highest, index = scores.max(dim=-1)
            torch.index_select(tokens.values, 0, index, out=found[chunk])
        else:
            scores, index = scores.topk(top_k, dim=-1)
            highest = scores[:, 0]
            found[chunk] = attend_to(queries, tokens, index, heads)
        best[chunk] = highest
    if not averaged:
        best /= torch.linalg.vector_norm(q, dim=-1, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    return best, found


@dataclass(frozen=True)
class Offer:
    """One appearance at one layer of one call.

    Attributes:
        tokens: of the layer.
        rows: which of the R query tokens it may change, (n,) indices; None for all.
        share: how much of each of those tokens is its own, (n,) in [0, 1]; None for all of each.
    """

    tokens: LayerTokens
    rows: torch.Tensor | None = None
    share: torch.Tensor | None = None


@dataclass(frozen=True)
class Infused:
    """What became of one layer.

    Attributes:
        attention: A, of base's shape and type.
        number: (R,) uint8, which appearance each token took from, counted from 1; 0 where none.
    """

    attention: torch.Tensor
    number: torch.Tensor


def infuse(
    base: torch.Tensor,
    q: torch.Tensor,
    offers: Sequence[Offer],
    heads: int,
    tau: float,
    delta: float,
    top_k: int = 1,
    similarity: str = CONCATENATED,
) -> Infused:
    """Gate and blend.

    Args:
        base: A_base, (R, C); rows without a match come back bit by bit.
        q: the queries it was made from, (R, C).
    """
    best = q.new_full((len(q),), -math.inf, dtype=torch.float32)
    weight = torch.zeros_like(best)
    number = torch.zeros_like(best, dtype=torch.uint8)
    chosen = base
    for count, offer in enumerate(offers, start=1):
        if offer.rows is not None and len(offer.rows) == 0:
            continue
        rows = slice(None) if offer.rows is None else offer.rows
        with offer.tokens.beside(q) as tokens:
            found, values = match(q[rows], tokens, heads, top_k, similarity)
        better = (found >= tau) & (found > best[rows])
        share = 1.0
        if offer.share is not None:
            better &= offer.share > 0
            share = offer.share
        best[rows] = torch.where(better, found, best[rows])
        weight[rows] = torch.where(better, delta * share / (1 + delta * share), weight[rows])
        number[rows] = torch.where(better, count, number[rows].to(torch.int64)).to(torch.uint8)
        taken = torch.where(better[:, None], values.to(base.dtype), chosen[rows])
        chosen = taken if offer.rows is None else chosen.index_copy(0, offer.rows, taken)
    return Infused(torch.lerp(base, chosen, weight[:, None].to(base.dtype)), number)
