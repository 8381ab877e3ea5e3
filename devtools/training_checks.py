"""What every trainer is held to: right gradients, losses that belong to their sample alone, and four pictures learnt by heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from comfyui_ensemble.training.checkpointing import host_in_training
from comfyui_ensemble.training.config import TrainingConfig
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.loop import train
from comfyui_ensemble.training.task import Prepared, Task
from comfyui_ensemble.training.tiny import tiny_flux

UNSEEN = 1_000_000  # positions that no test trains at


def fresh_flux() -> ModelPatcher:
    """The tiny FLUX before it has learnt anything, whatever the one in the models folder knows."""
    model = comfy.sd.load_diffusion_model_state_dict(tiny_flux(0))
    assert model is not None
    return model


def prepared_batch(task: Task, data: TrainingData, size: int, step: int = 0) -> tuple[list[Prepared], list[int]]:
    """A step's samples, prepared, and their positions."""
    draws = data.batch(step, size)
    with torch.no_grad():
        return [task.prepare(data.load(draw), draw.position) for draw in draws], [draw.position for draw in draws]


def disturb(task: Task, spread: float = 0.02) -> None:
    """Let nothing that is trained be neutral, as it is in fresh adapters."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in task.modules().values():
            for parameter in module.parameters():
                parameter += spread * torch.randn(parameter.shape, generator=random)


def losses(task: Task, batch: Sequence[Prepared], positions: Sequence[int]) -> torch.Tensor:
    """Each sample's loss, (B,)."""
    with host_in_training():
        return task.losses(batch, positions)["loss"]


def slopes(
    task: Task, name: str, batch: Sequence[Prepared], positions: Sequence[int], step: float
) -> tuple[float, float]:
    """How fast the loss grows along a direction in the parameters of one module: by its gradient, and by central differences.

    The direction follows the gradient but for a random share of each number, so that the slope stands out from rounding.
    """
    parameters = [value for value in task.modules()[name].parameters() if value.requires_grad]
    gradients = torch.autograd.grad(losses(task, batch, positions).sum(), parameters)
    random = torch.Generator().manual_seed(1)
    direction = [gradient * torch.rand(gradient.shape, generator=random) for gradient in gradients]
    length = torch.stack([part.square().sum() for part in direction]).sum().sqrt()
    direction = [part / length for part in direction]
    said = sum(float((gradient * part).sum()) for gradient, part in zip(gradients, direction, strict=True))
    with torch.no_grad():
        ends = []
        for way in (step, -2 * step):
            for parameter, part in zip(parameters, direction, strict=True):
                parameter += way * part
            ends.append(float(losses(task, batch, positions).double().sum()))
        for parameter, part in zip(parameters, direction, strict=True):
            parameter += step * part
    return said, (ends[0] - ends[1]) / (2 * step)


def learn_by_heart(task: Task, data: TrainingData, config: Any, out: Path) -> tuple[float, float]:
    """The loss on the data's first samples, with noise that training does not see, before and after a training."""
    assert isinstance(config, TrainingConfig)
    batch, _ = prepared_batch(task, data, 4)
    unseen = [list(range(UNSEEN + 4 * draw, UNSEEN + 4 * draw + 4)) for draw in range(4)]

    def loss() -> float:
        with torch.no_grad():
            return float(torch.stack([losses(task, batch, positions) for positions in unseen]).mean())

    before = loss()
    train(task, data, replace(config, workers=0), out)
    return before, loss()
