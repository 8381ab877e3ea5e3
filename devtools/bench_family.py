"""Measures one family in a process of its own, so that nothing of it is left to weigh on the next, and the run outlives it.

    python -m devtools.bench_family NAME FILE [--cpu]

writes the rows as JSON. With ``--cpu`` the host is told to leave the accelerator alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from devtools.bench_row import Row, failed, row_of


def measure(family: str, cpu: bool = False) -> list[Row]:
    """The rows of a family, measured in another process; one row that says why where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "devtools.bench_family", family, str(path), *(["--cpu"] if cpu else [])]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if not path.is_file():
            return [failed(family, f"its process ended with status {done.returncode}")]
        return [row_of(record) for record in json.loads(path.read_text(encoding="utf-8"))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m devtools.bench_family", description=__doc__)
    parser.add_argument("family")
    parser.add_argument("file", type=Path)
    parser.add_argument("--cpu", action="store_true")
    chosen = parser.parse_args()
    try:
        rows = _rows(chosen.family, chosen.cpu)
    except Exception as error:
        import traceback

        traceback.print_exc()  # whoever wrote the family wants to know where
        rows = [failed(chosen.family, f"{type(error).__name__}: {error}".strip().splitlines()[0])]
    chosen.file.write_text(json.dumps([row.record() for row in rows]), encoding="utf-8")


def _rows(family: str, cpu: bool) -> list[Row]:
    import comfy.options

    comfy.options.enable_args_parsing(False)  # the arguments are not the host's
    if cpu:
        from comfy.cli_args import args

        args.cpu = True
    import comfyui_ensemble.training  # noqa: F401 (tells the host where there is no accelerator)

    return list(importlib.import_module(f"devtools.bench_{family}").rows())


if __name__ == "__main__":
    main()
