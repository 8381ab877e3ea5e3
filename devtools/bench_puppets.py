"""How fast the puppets are drawn, and whether a training step waits for them: rows for ``dev.py bench``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.puppets.posing import BROADEST, entries, pose
from comfyui_ensemble.training.puppets.source import PuppetSource
from devtools.bench_row import AT_LEAST, SHARE, Row
from devtools.bench_training_data import BATCH, PROMISED_WAIT, STEP_SECONDS, waiting_share

SIZE, REFERENCE = 128, 64
PICTURES = 1000
BEFORE = 1000  # pictures drawn first: a training draws hundreds of thousands, and has met nearly all heads and grounds
PROMISED_RATE = 1000.0  # pictures a second: "thousands or close"; one process draws them, data loading has several


def rows() -> list[Row]:
    """Pictures alone and whole samples that are new, of one process in processor time; and the share of a step that waits."""
    source = PuppetSource(size=(SIZE, SIZE), reference_size=REFERENCE)
    _meet_all_poses(source.people)
    for number in range(BEFORE):
        source.stored(number)
    data = TrainingData(source, SIZE, REFERENCE)
    about = f"{SIZE} x {SIZE}, a second of one core"
    return [
        Row("puppets.pictures", f"puppet pictures, {about}", "pictures", _rate(source.scene), PROMISED_RATE, AT_LEAST),
        Row("puppets.samples", f"puppets as training samples, {about}", "samples", _rate(source.stored)),
        Row(
            "puppets.wait",
            f"a {STEP_SECONDS:g} s step of {BATCH} puppet samples waits for them",
            SHARE,
            waiting_share(data),
            PROMISED_WAIT,
        ),
    ]


def _meet_all_poses(people: tuple[int, int]) -> None:
    """A training has, after its first minute."""
    for number in range(people[0], people[1] + 1):
        for count in range(1, number + 1):
            for entry in entries(count, BROADEST[number]):
                pose(entry, False)
                pose(entry, True)


def _rate(draw: Callable[[int], Any]) -> float:
    start = time.process_time()
    for number in range(BEFORE, BEFORE + PICTURES):
        draw(number)
    return PICTURES / (time.process_time() - start)
