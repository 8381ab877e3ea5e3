"""What the training loop asks of a mechanism: its trainable modules, its losses, and the files they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .sample import TrainingSample

Prepared = dict[str, Any]  # one sample as tensors on the CPU: latents, text embeddings, features


@dataclass(frozen=True)
class WeightFile:
    """One file of a training's result. `folder` is the host's folder name, such as "loras"."""

    folder: str
    suffix: str  # added to the name that the user gives; "" for none
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Weights:
    files: tuple[WeightFile, ...]


class Task(Protocol):
    """A training, without its loop. Every random number comes from `randomness.generator(seed, purpose, position)`."""

    name: str

    def identity(self) -> dict[str, str]:
        """What a resumed run must find unchanged: the base model's hash, dimensions, mechanism options."""
        ...

    def modules(self) -> dict[str, torch.nn.Module]:
        """The trainable modules by name; their parameters are float32 and are the only ones with requires_grad."""
        ...

    def prepare(self, sample: TrainingSample, position: int) -> Prepared:
        """Encode one sample; called without gradients, from a thread that works ahead of the step."""
        ...

    def losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        """Losses by name, each (B,), one number a sample; "loss" is the one that is minimised, the others are logged."""
        ...

    def weights(self) -> Weights:
        """The modules' present values as files; the loop asks for them with the averaged (EMA) values in place."""
        ...

    def picture(self) -> torch.Tensor | None:
        """A sample picture (H, W, 3) in [0, 1] made with the present values through the host's sampler, or None."""
        ...
