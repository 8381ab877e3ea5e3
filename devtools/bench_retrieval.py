"""How long the pack takes to be imported, and one retrieval over the bundled database."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
from comfyui_ensemble.models_info.registry import BUNDLED_POSES, PACK_FOLDER, find_minilm, register_folders
from comfyui_ensemble.pose_db.database import load_database
from comfyui_ensemble.pose_db.retriever import PoseRetriever

STARTS = 5
SEARCHES = 50
PROMISED_IMPORT = 0.3
PROMISED_LOAD_MS = 200.0
PROMISED_SEARCH_MS = 30.0

# The host is in memory before a pack is; only what the pack itself adds counts.
_IMPORT = """
import time
import comfy.options; comfy.options.enable_args_parsing(False)
import comfyui_ensemble.training
import comfy.sd, nodes, comfy_api.latest, asyncio
started = time.perf_counter()
import comfyui_ensemble
extension = comfyui_ensemble.comfy_entrypoint()
async def load():
    await extension.on_load()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()
asyncio.run(load())
print(time.perf_counter() - started)
"""


def rows() -> list[dict[str, Any]]:
    """Import, load and search: medians."""
    register_folders()
    imported = statistics.median(_import_seconds() for _ in range(STARTS))
    path = PACK_FOLDER / "pose_db" / "data" / BUNDLED_POSES.name
    loaded = statistics.median(_milliseconds(lambda: load_database(path)) for _ in range(STARTS))
    retriever = PoseRetriever(load_database(path), find_minilm())
    retriever.search("the first search loads the sentence model and builds the index", 1)
    prompts = [f"person number {number} waving at two friends across the street" for number in range(SEARCHES)]
    searched = statistics.median(
        _milliseconds(lambda prompt=prompt: retriever.search(prompt, 10)) for prompt in prompts
    )
    return [
        _row("the pack's own part of ComfyUI's start", "s", imported, PROMISED_IMPORT),
        _row(f"loading the bundled pose database ({len(retriever.database)} entries)", "ms", loaded, PROMISED_LOAD_MS),
        _row("one retrieval over it, after the first", "ms", searched, PROMISED_SEARCH_MS),
    ]


def _row(name: str, unit: str, value: float, promised: float) -> dict[str, Any]:
    return {
        "name": name,
        unit: value,
        "promised": f"under {promised:g} {unit}",
        "met": value < promised,
        "device": "cpu",
    }


def _import_seconds() -> float:
    answer = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def _milliseconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000.0
