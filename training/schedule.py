"""The learning rate of every step."""

from __future__ import annotations

import math

from .config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of step number `step`, the first being 0: a rise over the warm-up, then the schedule.

    The warm-up's steps take 1/w, 2/w, ... w/w of the rate. What is left of the run is u = (step - w) / (steps - w): linear
    falls as 1 - u, cosine as (1 + cos(pi u)) / 2 (Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts).
    """
    warmup = min(config.warmup_steps, config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    if config.schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate
