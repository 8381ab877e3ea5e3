"""A run's folder: whose it is, what may be continued in it, and how another run begins there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .config import FREE_TO_CHANGE
from .errors import TrainingError

# The input that a part of a task's identity comes by; all else is about the model.
_INPUTS = {"vae": "vae", "text encoder": "clip", "CLIP vision": "clip_vision", "anystory": "anystory"}


def check_same(now: Mapping[str, Any], then: Mapping[str, Any], run: str) -> None:
    """Raise unless a checkpoint's run and this one have the same configuration, model and data."""
    remedy = "give this one another name (run), or begin afresh"
    for part in ("config", "task"):
        was, is_ = then.get(part, {}), now[part]
        # A setting that is free now may not have been when an older version wrote the checkpoint.
        free = FREE_TO_CHANGE if part == "config" else frozenset()
        for name in {**is_, **was}:  # a task's model first: what grows from it differs with it
            if name not in free and was.get(name) != is_.get(name):
                difference = f"{name} {was.get(name)}, not {is_.get(name)}"
                input_name = "config" if part == "config" else _INPUTS.get(name, "model")
                raise TrainingError(f"there is a run '{run}' already, with {difference}; {remedy}", input_name)
    if then.get("data") != now["data"]:
        raise TrainingError(f"there is a run '{run}' already, with other training data; {remedy}", "data")


def set_aside(out: Path) -> None:
    """Move an older run's files into a folder of their own."""
    files = [path for path in out.glob("*") if not path.name.startswith(("earlier-", "."))] if out.is_dir() else []
    if not files:
        return
    number = 1
    while (earlier := out / f"earlier-{number}").exists():
        number += 1
    earlier.mkdir()
    for path in files:
        path.rename(earlier / path.name)


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold a run's folder; the system lets go of it when the process ends in any way."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(
            f"another training writes to {out} at this moment; give this one another name (run)"
        ) from None
    try:
        yield
    finally:
        lock.release()
