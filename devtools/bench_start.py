"""How long it takes until something can be done: rows for ``dev.py bench``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from devtools.bench_row import Row
from devtools.environment import environment_key
from devtools.host import HOST

STARTS = 5
PROMISED_IMPORT = 0.3  # seconds
PROMISED_START = 3.0  # seconds
REPOSITORY = Path(__file__).resolve().parent.parent

# The host, its server included, is in memory before a pack is; only what the pack itself adds counts.
_IMPORT = """
import time
import comfy.options; comfy.options.enable_args_parsing(False)
import comfyui_ensemble.training
import asyncio, comfy.sd, comfy_api.latest, execution, server, nodes
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


def rows() -> list[Row]:
    """The pack's own part of ComfyUI's start, and a command of `dev.py` where everything is set up: the best of some."""
    imported = min(_import_seconds() for _ in range(STARTS))
    found = [Row("start.pack_import", "the pack's own part of ComfyUI's start", "s", imported, PROMISED_IMPORT)]
    if _set_up():
        started = min(_start_seconds() for _ in range(STARTS))
        found.append(Row("start.dev_again", "a command of dev.py where all is set up", "s", started, PROMISED_START))
    return found


def _import_seconds() -> float:
    answer = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def _set_up() -> bool:
    """Whether `dev.py` made this Python; otherwise it would begin to, with a download of gigabytes."""
    return Path(sys.prefix).name.startswith(environment_key(REPOSITORY / "requirements-dev.txt", HOST.sha256))


def _start_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, REPOSITORY / "dev.py", "python", "-c", "pass"], capture_output=True, check=True)
    return time.perf_counter() - start
