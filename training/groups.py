"""Samples of equal structure go through the model together, those of another structure by themselves."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")


def grouped(batch: Sequence[Item], key: Callable[[Item], Hashable]) -> list[list[int]]:
    """Which items of `batch` have equal keys: lists of indices, each ascending, in the order of their first items."""
    groups: dict[Hashable, list[int]] = {}
    for index, item in enumerate(batch):
        groups.setdefault(key(item), []).append(index)
    return list(groups.values())


def in_batch_order(groups: Sequence[Sequence[int]], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What was computed group by group, (n_g, ...) each, as one tensor (B, ...) in the batch's order."""
    order = torch.tensor([index for group in groups for index in group])
    joined = torch.cat(list(parts))
    return joined[order.argsort().to(joined.device)]
