"""How rows of a FLUX table are trained and drawn: by the pack's own trainings and hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..config import read_config
from ..data import TrainingData
from ..encoding import Keep, keep_in_folder
from ..flux_task import Absent, FluxConfig, FluxTask
from ..loop import train
from ..progress import Progress
from ..puppets import KeptSamples
from ..weights import save_weights
from .measures import puppet_measures, thing_measures
from .models import Models
from .runs import run_settings
from .table import Drawn
from .worlds import Case, World

CFG = 2.0  # as in the workflows

# (model, vae, clip, vision, data, config, keep) -> the task and the data as it draws them
Build = Callable[..., tuple[FluxTask, TrainingData]]


class FluxStudy:
    """A FLUX table.

    Args:
        config: of the training; `build` makes its task.
        settings: what all rows have in common.
    """

    stages = 1

    def __init__(
        self,
        models: Models,
        world: World,
        encodings: Path,
        config: type[FluxConfig],
        build: Build,
        settings: Mapping[str, Any],
    ) -> None:
        self.models, self.world, self.encodings = models, world, encodings
        self.config, self.build, self.settings = config, build, settings

    @cached_property
    def source(self) -> KeptSamples:
        """What is learned from."""
        return self.world.training()

    @cached_property
    def keep(self) -> Keep:
        """Encodings that all rows share."""
        return keep_in_folder(self.encodings)

    def cases(self) -> Sequence[Case]:
        return self.world.cases

    def train(
        self, training: Mapping[str, Any], steps: int, seed: int, folder: Path, report: Callable[[Progress], None]
    ) -> FluxTask:
        sizes, models = self.world.sizes, self.models
        drawing = {"picture_steps": sizes.draw_steps, "picture_guidance": 1.0, "picture_cfg": CFG}
        config = read_config(self.config, {**run_settings(steps, seed), **self.settings, **drawing, **training})
        data = TrainingData(self.source, sizes.resolution, sizes.reference, seed)
        task, data = self.build(models.flux, models.vae, models.clip, models.vision, data, config, self.keep)
        result = train(task, data, config, folder, report)
        save_weights(result.weights, "result", True, lambda name: folder / "weights" / name)
        return task

    def draw(self, trained: FluxTask, drawing: Mapping[str, Any], case: Case, seed: int) -> Drawn:
        without_pose = trained.config.pose_dropout == 1
        with torch.no_grad():
            prepared = trained.encode(case.sample, Absent(pose=without_pose))
            picture = trained.encoders.decode(trained.draw(prepared))
        return Drawn(picture.numpy(), case.scene)

    def measure(self, drawn: Drawn, case: Case) -> dict[str, float]:
        categories = [subject.category for subject in case.sample.subjects]
        things = {} if self.world.kind == "people" else thing_measures(drawn, categories)
        return {**puppet_measures(drawn), **things}
