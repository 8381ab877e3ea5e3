"""What the picture looks at: shares of attention, a subject each, with and without DAM (One-for-All, Figure 11).

In one block of one step every token of the canvas spreads its attention, which sums to 1, over all tokens: each subject's
reference, the words that describe it, the pose map, the canvas itself, all other words. Shares are sums of softmax weights
over such a group of keys, mean over the heads; with q the query that the attention is given and f its temperature:

- as it is, with DAM: softmax(q k^T / sqrt(d)), which is Eq. 5, because q was divided by f
- without DAM: softmax(f q k^T / sqrt(d)), Eq. 1

Both come from the same scores, which are made a chunk of one head's queries at a time and never all at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import comfy.model_management
import torch

from .item_spans import Spans
from .layout import Grid, Reference

SCORES = 1 << 22  # of one chunk: 16 MB in float32, which processors like and no card notices

Kind = Literal["subject", "pose", "words", "canvas", "text", "other"]


@dataclass(frozen=True)
class Group:
    """Keys that are counted together.

    Attributes:
        kind: a subject's reference, the pose map, the words of a subject's description, the canvas, all other words of
            the prompt, or tokens that another pack added.
        name: the subject's.
    """

    kind: Kind
    name: str = ""


@dataclass(frozen=True)
class Shares:
    """What was seen of the pictures of one prompt.

    Attributes:
        groups: G, in the order of the shares.
        canvas: (H, W) in tokens.
        shares: (B, H * W, G) float32 on the CPU, every row sums to 1; with DAM where the model has one.
        without_dam: the same from the same scores without it; None where the model has none.
    """

    groups: tuple[Group, ...]
    canvas: Grid
    shares: torch.Tensor
    without_dam: torch.Tensor | None


def key_groups(
    text: int, canvas: int, references: Sequence[Reference], spans: Mapping[str, Spans], length: int
) -> tuple[tuple[Group, ...], torch.Tensor]:
    """The groups of one attention's keys: text first, then canvas, then references.

    Args:
        text, canvas: number of their tokens.
        references: in order; several of one name count together.
        spans: the tokens that describe a subject; a token of several subjects counts a part for each.
        length: N, of all keys.

    Returns:
        The groups that have keys, G of them, and each key's part in them, (N, G) float32 whose rows sum to 1.
    """
    parts: dict[Group, torch.Tensor] = {}

    def part(group: Group) -> torch.Tensor:
        return parts.setdefault(group, torch.zeros(length))

    start = text + canvas
    for reference in references:
        stop = start + reference.grid[0] * reference.grid[1]
        part(Group(reference.role, reference.name))[start:stop] = 1
        start = stop
    for name, ranges in spans.items():
        for first, last in ranges:
            part(Group("words", name))[first : min(last, text)] = 1
    part(Group("canvas"))[text : text + canvas] = 1
    taken = sum(parts.values(), torch.zeros(length))
    part(Group("text"))[:text] = (taken[:text] == 0).float()
    part(Group("other"))[start:] = 1
    found = {group: keys / taken.clamp(min=1) for group, keys in parts.items() if keys.any()}
    return tuple(found), torch.stack(tuple(found.values()), dim=1)


def attention_shares(
    q: torch.Tensor,
    k: torch.Tensor,
    parts: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    temperature: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """How much of its attention each query gives to each group of keys.

    Args:
        q: (heads, C, d), as the attention gets them, divided by the temperature.
        k: (heads, N, d).
        parts: (N, G), each key's part in each group.
        scale: of the scores, 1 / sqrt(d).
        mask: (1 or heads, 1 or C, N): bool, or added to the scores.
        temperature: f, (C,); None where nothing was divided.

    Returns:
        (C, G) float32 of Eq. 5, and of Eq. 1 for the queries times f; None for these without temperatures.
    """
    heads, count, _ = q.shape
    parts = parts.to(q.device)
    given = q.new_zeros((count, parts.shape[1]), dtype=torch.float32)
    plain = None if temperature is None else torch.zeros_like(given)
    chunk = max(1, SCORES // k.shape[1])
    if mask is not None:
        mask = mask.expand(heads, count, -1)  # a view
    for head in range(heads):
        comfy.model_management.throw_exception_if_processing_interrupted()
        keys = k[head].float().T  # (d, N)
        for start in range(0, count, chunk):
            rows = slice(start, start + chunk)
            hidden = None if mask is None else mask[head, rows]
            scores = q[head, rows].float() @ keys * scale  # (chunk, N)
            given[rows] += _softmax(scores, hidden) @ parts
            if plain is not None and temperature is not None:
                plain[rows] += _softmax(scores * temperature[rows, None], hidden) @ parts
    return given / heads, None if plain is None else plain / heads


def _softmax(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(dim=-1)
