"""A finished job's files: which ones, what they are called here, and the lines of the manifest that say what made them."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..models_info.files import is_file_name, whole_file
from .errors import BatchError
from .jobs import Job
from .journal import Event
from .naming import numbered
from .plan import Plan
from .queue_client import QueueResult
from .records import FOLDER, pack_version

LONGEST_ENDING = 12  # letters


def kept_files(result: QueueResult) -> list[dict[str, str]]:
    """The files to bring home: what was saved, or else what was shown."""
    saved = [file for file in result.files if file.get("type") == "output"]
    return saved or result.files


def file_ending(name: str) -> str:
    """The ending of a file's name, if it is one that every system can have."""
    ending = Path(name).suffix
    return ending if is_file_name(f"x{ending}") and len(ending) <= LONGEST_ENDING else ".bin"


def manifest_row(plan: Plan, job: Job, sent: Event, history: dict[str, Any]) -> dict[str, Any]:
    """What made a job's files.

    Args:
        sent: the journal's event.
        history: what the server says of it.
    """
    prompt = job.prompt(plan.workflow, {})
    seeds = {address: prompt[node]["inputs"].get(name) for (node, name), address in plan.seeds.items()}
    return {
        "job": job.number,
        "line": job.line,
        "cells": job.cells,
        "seeds": {address: seed for address, seed in seeds.items() if isinstance(seed, int)},  # others are connected
        "files": sent["files"],
        "prompt": f"{FOLDER}/prompts/{sent['prompt']}.json",
        "prompt_sha256": sent["prompt"],
        "prompt_id": sent["prompt_id"],
        "server": sent["server"],
        "ensemble": pack_version(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": _seconds(history),
    }


def write_files(
    plan: Plan, job: Job, made_by: dict[str, Any], files: list[dict[str, str]], contents: list[bytes]
) -> list[dict[str, Any]]:
    """Write a job's files, each whole or not at all; returns their lines of the manifest.

    Raises:
        BatchError: a link in the output folder leads out of it.
        OSError: the disk does not take them.
    """
    rows = []
    for place, (file, content) in enumerate(zip(files, contents, strict=True)):
        name = numbered(plan.names[job.number - 1], place) + file_ending(file["filename"])
        _write(plan.wish.out, name, content)
        digest = hashlib.sha256(content).hexdigest()
        rows.append({"file": name, **made_by, "bytes": len(content), "sha256": digest})
    return rows


def _write(out: Path, name: str, content: bytes) -> None:
    path = out / name
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise BatchError(f"{path.parent} is a link that leaves the output folder; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def _seconds(history: dict[str, Any]) -> float | None:
    """How long the server worked on it."""
    times = {kind: details.get("timestamp") for kind, details in (history.get("status") or {}).get("messages") or ()}
    begun, ended = times.get("execution_start"), times.get("execution_success")
    return None if begun is None or ended is None else round((ended - begun) / 1000, 3)
