"""Where a sampling run stands, read from its noise level, so that samplers with any number of calls a step agree."""

from __future__ import annotations

from typing import Any

_HALVINGS = 14  # 1/16384 of the run


def sampling_progress(sampling: Any, sigma: float) -> float:
    """The inverse of the host's `percent_to_sigma`: 0 at the noisiest, 1 at the end, as on every start_percent input.

    Args:
        sampling: the model's `model_sampling`, of any kind; its sigma falls as the percentage rises.
        sigma: the noise level of a call.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sampling.percent_to_sigma(middle) > sigma:
            low = middle
        else:
            high = middle
    return (low + high) / 2
