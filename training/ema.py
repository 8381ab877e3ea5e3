"""The averaged weights: steadier than the last ones, and what a training saves and shows.

The average starts as the first weights and after the n-th step (n = 1, 2, ...) moves towards the new ones,

    average <- d average + (1 - d) weights,    d = min(ema_decay, (1 + n) / (10 + n)),

so that early on it forgets where it started, which an average with a fixed d near 1 would carry along for thousands of
steps (the warm-up of TensorFlow's ExponentialMovingAverage).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class Average:
    """The moving average of some parameters.

    Attributes:
        values: the averages, in the parameters' order.
        updates: n of the equation above.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.parameters = [parameter.detach() for parameter in parameters]
        self.values = [parameter.clone() for parameter in self.parameters]
        self.decay = decay
        self.updates = 0

    def update(self) -> None:
        """Take the parameters' present values in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the parameters have the averages as their values."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=True):
                kept = parameter.clone()
                parameter.copy_(value)
                value.copy_(kept)
