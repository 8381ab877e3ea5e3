"""Gradient checkpointing for blocks whose hooks have a memory.

A block's intermediate values are dropped and computed again on the way back. That gives the right gradients only where the
second run sees what the first one saw. The host keeps one dictionary of options for a call and writes into it from block to
block (`block`, `block_index`, `transformer_index`, `activations_shape`), hooks hold what they found in earlier blocks, and a
flag of the host's changes what its RoPE does. All of it is put back for the second run, and afterwards is as if there had
been no second run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import comfy.model_management
import torch
from torch.utils.checkpoint import checkpoint

from ..attention_patches.call_state import KEY, CallState

Output = torch.Tensor | tuple[torch.Tensor, ...]


@contextlib.contextmanager
def host_in_training(training: bool = True) -> Iterator[None]:
    """The host computes RoPE and quantised layers such that gradients can be had; with False, as it always does."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = training
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextlib.contextmanager
def _holding(states: Sequence[CallState], held: Sequence[Any]) -> Iterator[None]:
    now = [state.get_state() for state in states]
    for state, value in zip(states, held, strict=True):
        state.set_state(value)
    try:
        yield
    finally:  # also when the second run is cut short, because nothing more is needed of it
        for state, value in zip(states, now, strict=True):
            state.set_state(value)


def recomputed(
    block: Callable[..., Output], options: Mapping[str, Any], *tensors: torch.Tensor | None, **settings: Any
) -> Any:
    """`block(options, *tensors, **settings)`, whose intermediate values are computed again when gradients are.

    Args:
        block: changes none of its tensors in place.
        options: the call's transformer options.
    """
    states: tuple[CallState, ...] = tuple(options.get(KEY, ()))
    held = [state.get_state() for state in states]
    entered_with = dict(options)
    runs = 0

    def run(*inputs: torch.Tensor | None) -> Output:
        nonlocal runs
        runs += 1
        if runs == 1:
            return block(options, *inputs, **settings)
        with host_in_training(), _holding(states, held):
            return block(dict(entered_with), *inputs, **settings)

    return checkpoint(run, *tensors, use_reentrant=False)
