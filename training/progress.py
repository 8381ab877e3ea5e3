"""How far a training is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

WINDOW = 50  # steps whose speed is the present speed


@dataclass(frozen=True)
class Progress:
    """What is reported after every step, and once before the first.

    Attributes:
        step: steps done.
        steps: steps in all.
        losses: by name; "loss" is the one that is minimised. Empty before the first step.
        learning_rate: of the step.
        gradient_norm: before clipping.
        step_seconds: how long a step takes at present.
        remaining: seconds until the end, probably.
        waited: share of the time since this start's first step that was spent waiting for data.
        picture: a new sample picture (H, W, 3), where there is one.
        note: a sentence without its full stop that the artist should read, or "".
    """

    step: int
    steps: int
    losses: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    gradient_norm: float = 0.0
    step_seconds: float = 0.0
    remaining: float = 0.0
    waited: float = 0.0
    picture: torch.Tensor | None = None
    note: str = ""

    @property
    def loss(self) -> float:
        return self.losses.get("loss", float("nan"))


class Clock:
    """Measures steps."""

    def __init__(self) -> None:
        self.ends: deque[float] = deque([time.perf_counter()], maxlen=WINDOW + 1)
        self.first: tuple[float, float] | None = None

    def tick(self, waited: float) -> None:
        """A step has ended; `waited` are the seconds spent waiting for data so far."""
        self.ends.append(time.perf_counter())
        self.waited = waited
        if self.first is None:
            self.first = (self.ends[-1], waited)

    def step_seconds(self) -> float:
        """The mean of the last steps."""
        return (self.ends[-1] - self.ends[0]) / max(1, len(self.ends) - 1)

    def waited_share(self) -> float:
        """The share of the time after the first step, which always waits, that was spent waiting."""
        assert self.first is not None
        start, waited = self.first
        return (self.waited - waited) / max(self.ends[-1] - start, 1e-9)
