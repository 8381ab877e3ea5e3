"""Checkpoints on the disk: each is whole or not there, and the old one goes only when the new one is complete.

A checkpoint is a safetensors file ``step-00001000.safetensors`` whose metadata has the one key ``training``, a JSON object:
``format``, ``version``, ``step`` (steps done), ``checksum`` (CRC-32 of all tensors' bytes in the order of their names), and
whatever else the loop needs (see `state`).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..models_info.files import whole_file
from .errors import TrainingError

HEADER = "training"
FORMAT = {"format": "ensemble-training", "version": "1"}


@dataclass(frozen=True)
class Checkpoint:
    """A training after `step` steps: its tensors on the CPU, and the rest as JSON has it."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint into `folder`, then delete all but the newest `keep` there.

    Raises:
        TrainingError: it could not be written; those that were there still are.
    """
    header = {**FORMAT, "step": checkpoint.step, "checksum": _checksum(checkpoint.tensors), **checkpoint.state}
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    try:
        with whole_file(path) as temporary:
            # A convolution's weights may be in another memory format.
            tensors = {name: value.contiguous() for name, value in checkpoint.tensors.items()}
            save_file(tensors, temporary, metadata={HEADER: json.dumps(header)})
            _to_disk(temporary)
    except (OSError, SafetensorError) as error:
        raise TrainingError(_unwritten(checkpoint.step, folder, error)) from None
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def newest_checkpoint(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint of `folder` that is whole, or None where there is none at all; `tell` hears what was passed over.

    Raises:
        TrainingError: there are checkpoints and none of them is whole.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except TrainingError as error:
            tell(str(error))
    if paths:
        raise TrainingError(
            f"none of the checkpoints in {folder} can be read; begin afresh, or give the run another name"
        )
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file.

    Raises:
        TrainingError: the file is damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, ValueError):
        raise TrainingError(f"the checkpoint {path.name} is damaged and is passed over") from None
    if {name: state.get(name) for name in FORMAT} != FORMAT:
        raise TrainingError(f"the checkpoint {path.name} is of another version and is passed over")
    if state.get("checksum") != _checksum(tensors):
        raise TrainingError(f"the checkpoint {path.name} is damaged and is passed over")
    return Checkpoint(state["step"], tensors, state)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run had not finished writing."""
    for path in folder.glob(".step-*.partial"):
        path.unlink(missing_ok=True)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum


def _to_disk(path: Path) -> None:
    """Wait until the system has really written a file, so that a name never stands for one that a power cut took."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def system_reason(error: Exception) -> str:
    """Why the system did not write a file, whether Python or safetensors tells."""
    return getattr(error, "strerror", None) or str(error).rpartition("error: ")[2]


def _unwritten(step: int, folder: Path, error: Exception) -> str:
    there = checkpoints(folder)
    kept = f"{there[-1].name} is whole, and a new start continues from it" if there else "there is no earlier one"
    return f"the checkpoint of step {step} could not be written to {folder} ({system_reason(error)}); make room there; {kept}"
