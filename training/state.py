"""All that a training is after a step: weights, optimizer, average, loss scale. Taken into a checkpoint and put back from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .checkpoint import Checkpoint
from .config import TrainingConfig
from .distributed import OneProcess, Trainee
from .ema import Average
from .errors import TrainingError
from .precision import LossScale


class TrainingState:
    """What changes from step to step.

    Attributes:
        parameters: the trained parameters by name.
        optimizer: AdamW over them.
        average: their moving average, or None.
        scale: the loss scale.
        step: steps done.
    """

    def __init__(self, trainee: Trainee, config: TrainingConfig) -> None:
        self.parameters = trainee.trained()
        self.carried = trainee.carried()
        if not self.parameters:
            raise TrainingError("the training has no parameter to learn", "model")
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = _optimizer(list(self.parameters.values()), config)
        self.average = Average(list(self.parameters.values()), config.ema_decay) if config.ema_decay else None
        self.scale = LossScale(config.precision)
        self.step = 0

    def capture(self, processes: OneProcess, about: Mapping[str, Any]) -> Checkpoint:
        """The state as a checkpoint, with what else `about` says; on the CPU its tensors are those of the training.

        All processes gather it together, the first one has it.
        """
        tensors = {}
        for name, value in self._tensors().items():
            whole = processes.whole(value)
            if processes.rank == 0:
                tensors[name] = whole
        updates = self.average.updates if self.average else 0
        return Checkpoint(self.step, tensors, {**about, "scale": self.scale.state(), "updates": updates})

    def restore(self, processes: OneProcess, checkpoint: Checkpoint | None) -> bool:
        """Continue from the checkpoint that the first process has read; False where it has none.

        Raises:
            TrainingError: its tensors are not those of this training.
        """
        known = None
        if checkpoint is not None:
            shapes = {name: list(value.shape) for name, value in checkpoint.tensors.items()}
            known = {**checkpoint.state, "step": checkpoint.step, "shapes": shapes}
        known = processes.tell(known)
        if known is None:
            return False
        self._prepare_optimizer(known["shapes"])
        targets = self._tensors()
        if {name: list(target.shape) for name, target in targets.items()} != known["shapes"]:
            raise TrainingError("the checkpoint is of a model with other sizes; give the run another name")
        for name, target in targets.items():
            processes.put(checkpoint.tensors[name] if checkpoint is not None else target, target)
        self.step = known["step"]
        self.scale.restore(known["scale"])
        if self.average is not None:
            self.average.updates = known["updates"]
        return True

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"weight/{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"carried/{name}": value for name, value in self.carried.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state.get(parameter, {}).items()}
        if self.average is not None:
            tensors |= {
                f"average/{name}": value for name, value in zip(self.parameters, self.average.values, strict=True)
            }
        return tensors

    def _prepare_optimizer(self, has: Mapping[str, Any]) -> None:
        """Give the optimizer room for what a checkpoint with these tensors has; it makes its own only when it first steps."""
        for name, parameter in self.parameters.items():
            if f"exp_avg/{name}" in has:
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), device=self.device if self.optimizer.defaults["fused"] else "cpu"),
                    "exp_avg": torch.zeros_like(parameter.detach()),
                    "exp_avg_sq": torch.zeros_like(parameter.detach()),
                }


def _optimizer(parameters: list[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019); biases and the scales of norms do not decay."""
    groups = [
        {"params": [value for value in parameters if value.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [value for value in parameters if value.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cuda", "xpu", "cpu")
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, fused=fused
    )
