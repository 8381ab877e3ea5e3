"""Works through a table: train, draw, measure, keep. What is kept is not done again, and a training that was cut off goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...models_info.files import whole_file
from ..progress import Progress
from .results import Plan, Store
from .table import Ablation, Row, Study, trainings

SHOWN = 4  # test pictures of a row that are kept, of the first seed


def run(
    ablation: Ablation,
    study: Study,
    plan: Plan,
    store: Store,
    report: Callable[[Progress], None],
    say: Callable[[str], None],
) -> None:
    """All rows and seeds of a table that are not done yet. Seed by seed, so that an early end has whole seeds."""
    for seed in range(plan.seeds):
        for name, (settings, rows) in trainings(ablation).items():
            _rows(rows, name, settings, study, plan, store, seed, report, say)
    _keep_truth(study, store)
    store.collect(ablation, plan)


def _rows(
    rows: Sequence[Row],
    name: str,
    settings: Mapping[str, Any],
    study: Study,
    plan: Plan,
    store: Store,
    seed: int,
    report: Callable[[Progress], None],
    say: Callable[[str], None],
) -> None:
    """All rows of one training."""
    left = [row for row in rows if not store.is_done(row, seed)]
    folder = store.training(name, seed)
    if left:
        if study.stages:
            say(f"{name}, seed {seed}: {plan.steps} steps")
        trained = study.train(settings, plan.steps, seed, folder, report)
        for row in left:
            say(f"{row.name}, seed {seed}: {plan.scenes} pictures")
            _measure(row, trained, study, store, seed)
    _forget_checkpoints(folder)


def _measure(row: Row, trained: Any, study: Study, store: Store, seed: int) -> None:
    found = []
    for case in study.cases():
        drawn = study.draw(trained, row.drawing, case, seed)
        found.append(study.measure(drawn, case))
        if seed == 0 and case.number < SHOWN:
            _save_picture(store.picture(row, seed, case.number), drawn.picture)
    store.save(row, seed, found)


def _forget_checkpoints(folder: Path) -> None:
    """Nobody asks for them any more; the weights stay."""
    for checkpoints in folder.rglob("checkpoints"):
        shutil.rmtree(checkpoints)


def _keep_truth(study: Study, store: Store) -> None:
    """What the shown pictures should show, for the contact sheet."""
    for case in study.cases()[:SHOWN]:
        _save_picture(store.folder / "truth" / f"scene-{case.number:02d}.png", case.scene.picture)
        for number, subject in enumerate(case.sample.subjects):
            path = store.folder / "truth" / f"scene-{case.number:02d}-reference-{number}.png"
            _save_picture(path, subject.reference.numpy())


def _save_picture(path: Path, picture: np.ndarray) -> None:
    values = picture if picture.dtype == np.uint8 else np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    with whole_file(path) as temporary:
        Image.fromarray(values).save(temporary, format="PNG")
