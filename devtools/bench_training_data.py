"""What training data costs: checking a manifest's rows, loading them, and how long a step waits for them."""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import numpy as np
import torch
from PIL import Image

from comfyui_ensemble.training.cache import EncodedCache
from comfyui_ensemble.training.data import Draw, TrainingData
from comfyui_ensemble.training.manifest import read_manifest
from comfyui_ensemble.training.manifest_source import ManifestSource
from comfyui_ensemble.training.prefetch import Prefetch
from devtools.bench_row import SHARE, Row

ROWS = 24
SIZE = 768  # of the files' sides, pixels
RESOLUTION = 512
WORKERS = 2
BATCH = 4
STEP_SECONDS = 0.5  # of a step on an accelerator, during which the processors are free; a FLUX LoRA's takes longer
STEPS = 12
PROMISED_CHECK_MS = {"jpg": 20.0, "png": 60.0}
PROMISED_LOAD_MS = {"jpg": 60.0, "png": 100.0}
PROMISED_WAIT = 0.05


def rows() -> list[Row]:
    """For manifests of photos as JPEG and as PNG; times are processor time, which other work on the machine disturbs little."""
    found: list[Row] = []
    for kind in ("jpg", "png"):
        with tempfile.TemporaryDirectory() as folder:
            path = write_photos(Path(folder) / kind, kind, ROWS)
            checked = min(_seconds(lambda path=path: read_manifest(path)) for _ in range(3)) / ROWS
            data = TrainingData(ManifestSource(path), RESOLUTION, RESOLUTION)
            draws = [draw for step in range(ROWS // BATCH) for draw in data.batch(step, BATCH)]
            loaded = statistics.median(_seconds(lambda draw=draw, data=data: data.load(draw)) for draw in draws)
            share = waiting_share(data)
        row = f"one row of a {SIZE} x {SIZE} {kind} target and reference"
        found += [
            Row(f"training_data.check_{kind}", f"checking {row}", "ms", 1000 * checked, PROMISED_CHECK_MS[kind]),
            Row(
                f"training_data.load_{kind}",
                f"loading {row} at resolution {RESOLUTION}",
                "ms",
                1000 * loaded,
                PROMISED_LOAD_MS[kind],
            ),
            Row(
                f"training_data.wait_{kind}",
                f"a {STEP_SECONDS:g} s step of {BATCH} {kind} rows waits for them",
                SHARE,
                share,
                PROMISED_WAIT,
            ),
        ]
    return found


def waiting_share(data: TrainingData) -> float:
    """The share of the time that steps wait for samples whose encodings are kept: they are loaded and recognised."""
    cache = EncodedCache("none")

    def prepare(draw: Draw) -> list[torch.Tensor]:
        sample = data.load(draw)
        pictures = [sample.target, *(subject.reference for subject in sample.subjects)]
        return [cache(_digest(picture), lambda: {"latent": torch.zeros(16, 64, 64)})["latent"] for picture in pictures]

    with Prefetch(prepare, (data.batch(number, BATCH) for number in range(STEPS)), WORKERS) as batches:
        next(batches)  # nothing can be ready for the first step
        before, start = batches.waited, time.perf_counter()
        for _ in batches:
            time.sleep(STEP_SECONDS)
        return (batches.waited - before) / (time.perf_counter() - start)


def _digest(picture: torch.Tensor) -> str:
    content: Any = picture.numpy()
    return hashlib.blake2b(content).hexdigest()


def write_photos(folder: Path, kind: str, count: int) -> Path:
    """A manifest of pictures that compress as photos do: smooth shapes with a little noise."""
    random = np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for number in range(count):
        for name in ("target", "reference"):
            shapes = Image.fromarray(random.integers(0, 256, (SIZE // 16, SIZE // 16, 3), dtype=np.uint8))
            smooth = np.asarray(shapes.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(np.int16)
            pixels = (smooth + random.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}_{name}.{kind}")
        subject = {
            "reference": f"{number}_reference.{kind}",
            "name": "rex",
            "description": "a dog",
            "category": "animal",
        }
        lines.append(json.dumps({"target": f"{number}_target.{kind}", "caption": "a dog", "subjects": [subject]}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _seconds(call: Any) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started
