"""What the bundled pose database costs: loading it, and one retrieval over it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
from comfyui_ensemble.models_info.registry import BUNDLED_POSES, PACK_FOLDER, find_minilm, register_folders
from comfyui_ensemble.pose_db.database import load_database
from comfyui_ensemble.pose_db.evaluate import measure_time
from comfyui_ensemble.pose_db.retriever import PoseRetriever
from devtools.bench_row import Row

LOADS = 5
SEARCHES = 50
PROMISED_LOAD_MS = 200.0
PROMISED_SEARCH_MS = 30.0


def rows() -> list[Row]:
    """Load and search: medians."""
    register_folders()
    path = PACK_FOLDER / "pose_db" / "data" / BUNDLED_POSES.name
    loaded = statistics.median(_milliseconds(lambda: load_database(path)) for _ in range(LOADS))
    retriever = PoseRetriever(load_database(path), find_minilm())
    retriever.search("the first search loads the sentence model and builds the index", 1)
    prompts = [f"person number {number} waving at two friends across the street" for number in range(SEARCHES)]
    searched = statistics.median(
        _milliseconds(lambda prompt=prompt: retriever.search(prompt, 10)) for prompt in prompts
    )
    whole = measure_time(retriever, [f"masterpiece, best quality, {prompt}, golden hour" for prompt in prompts])
    title = f"loading the bundled pose database ({len(retriever.database)} entries)"
    return [
        Row("retrieval.load", title, "ms", loaded, PROMISED_LOAD_MS),
        Row("retrieval.search", "one retrieval over it, after the first", "ms", searched, PROMISED_SEARCH_MS),
        Row(
            "retrieval.prompt_to_pose", "the same, rules of Normalize Prompt included", "ms", whole, PROMISED_SEARCH_MS
        ),
    ]


def _milliseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000.0
