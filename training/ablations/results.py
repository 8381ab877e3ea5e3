"""What has been measured so far: one JSON file a row and seed, whole or not there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...models_info.files import whole_file
from ..errors import TrainingError
from .table import Ablation, Row, folder_name


@dataclass(frozen=True)
class Plan:
    """What a table is made of. Kept in its folder, so that a continued command makes the rest alike.

    Attributes:
        asked: what the command was asked for, and of which models.
        steps: of every training's every stage.
        seeds: how many.
        scenes: test pictures of a row and seed.
        random: whether the base has random weights.
    """

    asked: Mapping[str, Any]
    steps: int
    seeds: int
    scenes: int
    random: bool


class Store:
    """The folder of one table."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def plan(self, asked: Mapping[str, Any]) -> Plan | None:
        """The plan that is there, or None.

        Raises:
            TrainingError: it is another one.
        """
        path = self.folder / "plan.json"
        if not path.is_file():
            return None
        plan = Plan(**_read(path))
        for name, value in asked.items():
            if plan.asked.get(name) != value:
                raise TrainingError(
                    f"{self.folder} holds results with {name} {plan.asked.get(name)}, not {value}; choose another --out",
                    "out",
                )
        return plan

    def save_plan(self, plan: Plan) -> None:
        write_json(self.folder / "plan.json", vars(plan))

    def result(self, row: Row, seed: int) -> Path:
        """The file of a row and seed."""
        return self.folder / folder_name(row.name) / f"seed-{seed}.json"

    def picture(self, row: Row, seed: int, case: int) -> Path:
        """A test picture's file."""
        return self.folder / folder_name(row.name) / f"seed-{seed}-scene-{case:02d}.png"

    def training(self, name: str, seed: int) -> Path:
        """The folder of a training."""
        return self.folder / "trainings" / name / f"seed-{seed}"

    def is_done(self, row: Row, seed: int) -> bool:
        return self.result(row, seed).is_file()

    def save(self, row: Row, seed: int, scenes: Sequence[Mapping[str, float]]) -> None:
        """Keep what was measured: for every scene numbers by name."""
        found = [
            {name: None if math.isnan(value) else round(value, 6) for name, value in each.items()} for each in scenes
        ]
        write_json(self.result(row, seed), {"row": row.name, "seed": seed, "scenes": found})

    def values(self, row: Row, measure: str, seeds: int) -> np.ndarray:
        """A measure of a row, (seeds, scenes); nan where there is nothing."""
        rows = [_read(self.result(row, seed))["scenes"] for seed in range(seeds)]
        return np.array([[_number(scene.get(measure)) for scene in scenes] for scenes in rows], dtype=np.float64)

    def collect(self, ablation: Ablation, plan: Plan) -> None:
        """One file of all results: results.json."""
        rows = {
            row.name: [_read(self.result(row, seed))["scenes"] for seed in range(plan.seeds)] for row in ablation.rows
        }
        write_json(self.folder / "results.json", {"ablation": ablation.name, **vars(plan), "rows": rows})


def write_json(path: Path, content: Any) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise TrainingError(f"{path} is damaged; remove it and start the same command again", "out") from None


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
