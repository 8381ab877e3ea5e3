"""The file of ``dev.py bench --json``: every row with the commit, the versions and the machine that it was measured with.

JSON: ``{"format": "ensemble-bench", "version": 1, "rows": [...]}``. A row has the fields of ``bench_row.Row``, its promise in
words, whether it is met, its family, commit (with ``+`` behind it where the tree had changes), versions, and machine.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfyui_ensemble.models_info.files import whole_file
from devtools.bench_row import Row, row_of

FORMAT, VERSION = "ensemble-bench", 1
REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "safetensors", "faiss-cpu", "sentence-transformers", "transformers")
NOT_A_BENCHMARK = "it is not a file that `dev.py bench --json` wrote"


class BenchError(ValueError):
    """One sentence without its full stop, for the person at the terminal."""


@dataclass(frozen=True)
class Measured:
    """A row and what it was measured with.

    Attributes:
        family: module ``devtools.bench_FAMILY`` that measured it.
        commit: of the repository; ``+`` behind it says that files had changes.
        versions: of Python, ComfyUI and packages.
        machine: processor, cores, memory, system and, where there is one, accelerator.
    """

    row: Row
    family: str
    commit: str
    versions: dict[str, str]
    machine: dict[str, str]

    @property
    def key(self) -> tuple[str, str]:
        """What is compared with what: a thing on one kind of device."""
        return self.row.id, self.row.device.split(":")[0]


def measured_here(row: Row, family: str, accelerator: str = "") -> Measured:
    """A row that was measured just now."""
    return Measured(row, family, commit(), versions(), machine(accelerator))


def write_rows(path: Path, rows: Sequence[Measured]) -> None:
    """Write the file, wholly or not at all."""
    records = [
        {
            "family": one.family,
            **one.row.record(),
            "commit": one.commit,
            "versions": one.versions,
            "machine": one.machine,
        }
        for one in rows
    ]
    with whole_file(path) as temporary:
        text = json.dumps({"format": FORMAT, "version": VERSION, "rows": records}, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[Measured]:
    """The rows of a file.

    Raises:
        BenchError: it is not there, or something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if (data["format"], data["version"]) != (FORMAT, VERSION):
            raise BenchError(f"{path} is of another version of the benchmark; measure that commit again")
        return [
            Measured(row_of(record), *(record[name] for name in ("family", "commit", "versions", "machine")))
            for record in data["rows"]
        ]
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror})") from None
    except BenchError:
        raise
    except (ValueError, KeyError, TypeError):
        raise BenchError(f"{path} cannot be compared; {NOT_A_BENCHMARK}") from None


@functools.cache
def commit() -> str:
    """The repository's commit, with ``+`` where its files have changes; empty outside of a repository."""
    head = _git("rev-parse", "HEAD")
    return head + "+" if head and _git("status", "--porcelain", "--untracked-files=no") else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, ComfyUI, this pack, and the packages that the work is done by."""
    found = {"python": platform.python_version(), "comfyui": _comfyui_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _comfyui_version() -> str:
    try:
        import comfyui_version  # of the host
    except ImportError:
        return ""
    return str(comfyui_version.__version__)


def machine(accelerator: str = "") -> dict[str, str]:
    """Processor, cores, memory, system and accelerator."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": str(_cores()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerator": accelerator,
    }
    return {name: value for name, value in found.items() if value}


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _processor() -> str:
    lines = _lines(Path("/proc/cpuinfo"))
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@functools.cache
def _memory() -> str:
    total = next((line.split()[1] for line in _lines(Path("/proc/meminfo")) if line.startswith("MemTotal")), "")
    return f"{int(total) / 2**20:.0f} GiB" if total else ""


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
