"""How long rows take, measured by rehearsing one, and how many steps a given time allows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...batch.live_line import duration
from ..errors import TrainingError
from ..progress import Progress
from .models import Models
from .table import Ablation, trainings
from .worlds import Sizes

REHEARSED = 4  # steps of each stage
FEWEST_STEPS = 10


@dataclass(frozen=True)
class Cost:
    """Of one table, in seconds.

    Attributes:
        encoding: of all pictures to learn from, once.
        step: of one training step, a mean over the stages.
        drawing: of a test picture, drawn and measured.
        stages: trainings of a row.
        trainings: of all rows of one seed.
        rows: of the table.
    """

    encoding: float
    step: float
    drawing: float
    stages: int
    trainings: int
    rows: int

    def fixed(self, seeds: int, scenes: int) -> float:
        """What has to be spent however few steps there are."""
        return self.encoding + self.drawing * self.rows * seeds * scenes

    def total(self, steps: int, seeds: int, scenes: int) -> float:
        return self.fixed(seeds, scenes) + self.training(steps) * self.trainings * seeds

    def training(self, steps: int) -> float:
        """Of one row and seed."""
        return self.step * steps * self.stages


class _Steps:
    """Notes when steps end."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self.firsts: list[float] = []
        self._last = time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            return
        now = time.perf_counter()
        (self.firsts if progress.step == 1 else self.lengths).append(now - self._last)
        self._last = now


def rehearse(ablation: Ablation, models: Models, sizes: Sizes) -> Cost:
    """Train the full row for some steps and draw one picture, in a folder of its own."""
    brief = replace(sizes, pictures=4, scenes=1)
    row, steps = ablation.rows[0], _Steps()
    with tempfile.TemporaryDirectory() as name:
        study = ablation.study(models, brief, Path(name) / "encodings")
        (case,) = study.cases()
        trained = study.train(row.training, REHEARSED, 0, Path(name) / "training", steps)
        study.measure(study.draw(trained, row.drawing, case, 0), case)  # whatever is loaded at first is not counted
        start = time.perf_counter()
        study.measure(study.draw(trained, row.drawing, case, 0), case)
        drawing = time.perf_counter() - start
    step = sum(steps.lengths) / max(1, len(steps.lengths))
    # The first step of a stage encodes its four pictures and loads what it needs.
    encoding = max(0.0, sum(steps.firsts) - step * len(steps.firsts)) * sizes.pictures / brief.pictures
    count = len(trainings(ablation)) if study.stages else 0
    return Cost(encoding, step, drawing, study.stages, count, len(ablation.rows))


def share_out(costs: Sequence[Cost], minutes: float, seeds: int, scenes: int) -> list[int]:
    """Steps of each table, so that all together take the time; every training of any table gets the same time.

    Raises:
        TrainingError: the time is too short.
    """
    fixed = sum(cost.fixed(seeds, scenes) for cost in costs)
    count = sum(cost.trainings for cost in costs) * seeds
    left = (60 * minutes - fixed) / max(1, count)
    steps = [int(left / (cost.step * cost.stages)) if cost.stages else 0 for cost in costs]
    if left < 0 or any(number < FEWEST_STEPS for number, cost in zip(steps, costs, strict=True) if cost.stages):
        least = fixed + sum(cost.training(FEWEST_STEPS) for cost in costs) * count
        raise TrainingError(
            f"--minutes {minutes:g} is not enough, the pictures alone take {duration(fixed)}; give at least"
            f" {least / 60:.0f}, or lower --scenes or --seeds",
            "minutes",
        )
    return steps


def say_cost(ablation: Ablation, cost: Cost, steps: int, seeds: int, scenes: int, say: Callable[[str], None]) -> None:
    """One line of what a table will take."""
    training = f"{steps} steps, {duration(cost.training(steps))}" if cost.stages else "nothing to train"
    say(
        f"{ablation.name}: {cost.rows} rows, seeds: {seeds}, each {training}, then {scenes} pictures,"
        f" {duration(cost.drawing * scenes)}; about {duration(cost.total(steps, seeds, scenes))} in all"
    )
