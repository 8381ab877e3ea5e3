"""Half precision: weights and optimizer stay float32, the forward and backward pass run in bfloat16 or float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .config import Precision
from .errors import TrainingError

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2_000
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Where a forward pass computes in `precision`."""
    return torch.autocast(device.type, _DTYPES[precision]) if precision in _DTYPES else nullcontext()


class LossScale:
    """What the loss is multiplied with, so that float16's gradients do not vanish (Micikevicius et al., ICLR 2018, §3.2).

    It halves whenever a gradient overflows, that step changing no weights, and doubles after 2,000 steps without one. Other
    precisions need none: their scale is 1, and what is not finite there is no overflow but a training that failed.
    """

    def __init__(self, precision: Precision) -> None:
        self.dynamic = precision == "fp16"
        self.value = FIRST_SCALE if self.dynamic else 1.0
        self.steps = 0  # since it last changed

    def update(self, finite: bool) -> None:
        """Take note of a step.

        Raises:
            TrainingError: something was not finite and a smaller scale cannot help.
        """
        if not finite:
            if self.value <= 1:
                raise TrainingError("the loss or its gradient is not a finite number")
            self.value, self.steps = self.value / 2, 0
            return
        self.steps += 1
        if self.dynamic and self.steps == GROWTH_STEPS:
            self.value, self.steps = self.value * 2, 0

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.value, self.steps = float(state["value"]), int(state["steps"])
