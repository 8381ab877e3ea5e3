"""A training of milliseconds, for the tests of the loop and of the command: a small network learns a picture's mean colour."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from comfyui_ensemble.training.command import main
from comfyui_ensemble.training.config import TrainingConfig
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.distributed import end_process
from comfyui_ensemble.training.randomness import generator
from comfyui_ensemble.training.sample import TrainingSample
from comfyui_ensemble.training.task import Prepared, WeightFile, Weights
from comfyui_ensemble.training.trainers import TRAINERS, Trainer

WIDTH = 8
PIXELS = 64


@dataclass(frozen=True)
class ToyConfig(TrainingConfig):
    steps: int = 40
    batch_size: int = 4
    learning_rate: float = 1e-2
    warmup_steps: int = 5
    ema_decay: float = 0.9
    precision: str = "fp32"
    save_every: int = 5
    widths: tuple[int, ...] = (WIDTH, WIDTH)


@dataclass
class ToyPictures:
    """A `Source` of random pictures."""

    count: int = 50
    identity: str = ""

    def __post_init__(self) -> None:
        self.identity = f"{self.count} toy pictures"

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> TrainingSample:
        colour = torch.rand(3, generator=generator(0, "colour", index))
        noise = 0.1 * torch.rand(PIXELS, PIXELS, 3, generator=generator(0, "picture", index))
        return TrainingSample(f"toy {index}", (colour + noise).clamp(0, 1), "a colour", ())


@dataclass
class ToyTask:
    """Its losses use every kind of randomness that a training may: by position, and a module's own dropout."""

    seed: int = 0
    dropout: float = 0.1
    step_seconds: float = 0.0
    loss_factor: float = 1.0
    width: int = WIDTH
    name: str = "toy"
    network: nn.Sequential = field(init=False)
    shift: nn.Linear = field(init=False)

    def __post_init__(self) -> None:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layers = [
                nn.Linear(12, self.width),
                nn.LayerNorm(self.width),
                nn.Dropout(self.dropout),
                nn.GELU(),
                nn.Linear(self.width, 3),
            ]
            self.network = nn.Sequential(*layers)
            self.shift = nn.Linear(3, 3)

    def identity(self) -> dict[str, str]:
        return {"base model": f"toy {self.width}"}

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "shift": self.shift}

    def prepare(self, sample: TrainingSample, position: int) -> Prepared:
        """Four numbers a channel stand for the picture."""
        quarters = sample.target.unflatten(0, (2, -1)).unflatten(2, (2, -1)).mean((1, 3))
        return {"x": quarters.flatten(), "y": sample.target.mean((0, 1))}

    def losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        time.sleep(self.step_seconds)
        self.network.state_dict()  # so does the host's memory manager in every call
        noise = torch.stack([torch.randn(12, generator=generator(self.seed, "noise", each)) for each in positions])
        x = torch.stack([each["x"] for each in batch]) + 0.05 * noise
        error = (self.shift(self.network(x)) - torch.stack([each["y"] for each in batch])).square().mean(1)
        return {"loss": self.loss_factor * error, "error": error.detach()}

    def weights(self) -> Weights:
        tensors = {
            f"{name}.{key}": value for name, part in self.modules().items() for key, value in part.state_dict().items()
        }
        return Weights((WeightFile("loras", "", tensors, {"toy": "{}"}), WeightFile("loras", "_shift", tensors, {})))

    def picture(self) -> torch.Tensor:
        colour = self.shift(self.network.eval()(torch.zeros(12)))
        self.network.train()
        return colour.detach().clamp(0, 1).expand(16, 24, 3)


def toy_data(seed: int = 0, count: int = 50) -> TrainingData:
    return TrainingData(ToyPictures(count), PIXELS, PIXELS, seed)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step-seconds", type=float, default=0.0, help="make every step last longer")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--count", type=int, default=50, help="pictures")


def _build(arguments: argparse.Namespace, config: TrainingConfig) -> tuple[ToyTask, TrainingData]:
    task = ToyTask(config.seed, arguments.dropout, arguments.step_seconds, width=arguments.width)
    return task, toy_data(config.seed, arguments.count)


TRAINER = Trainer("a colour from a picture, for tests", ToyConfig, _add_arguments, _build)


def command(
    *arguments: str,
    largest_file: int | None = None,
    environment: Mapping[str, str] | None = None,
    said: Path | None = None,
    trainer: str = "toy",
) -> None:
    """The real command with this trainer or one of the pack's own, as a process of its own runs it.

    Args:
        largest_file: in bytes; stands for a full disk.
        environment: what a launcher of several processes tells each.
        said: file for what goes to the terminal.
    """
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    os.environ.update(environment or {})
    TRAINERS["toy"] = TRAINER
    with said.open("w") if said else nullcontext(sys.stderr) as sys.stderr:
        end_process(main([trainer, *arguments]))


if __name__ == "__main__":
    command(*sys.argv[1:])
