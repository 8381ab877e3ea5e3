"""What the loader nodes have in common: a file chosen from one of ComfyUI's models folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..models_info.registry import find_file, list_files
from .errors import InputError

Loaded = TypeVar("Loaded")


def file_version(folder: str, name: str) -> float:
    """What `fingerprint_inputs` returns, so that a file which was rewritten under the same name is loaded again."""
    path = find_file(folder, name)
    return path.stat().st_mtime if path is not None else float("nan")


def chosen_file(node: str, input_name: str, folder: str, name: str, remedy: str) -> Path:
    """The file `name` of a models folder.

    Raises:
        InputError: there is none; its remedy is `remedy`, then the names of those that are there.
    """
    path = find_file(folder, name)
    if path is None:
        there = ", ".join(list_files(folder)) or "none is there"
        raise InputError(node, input_name, f"there is no '{name}' in models/{folder}; {remedy} one of: {there}")
    return path


def load_chosen(node: str, input_name: str, name: str, load: Callable[[], Loaded], refused: type[ValueError]) -> Loaded:
    """What `load` makes of the chosen file `name`; where it raises `refused`, an `InputError` says why."""
    try:
        return load()
    except refused as error:
        raise InputError(node, input_name, f"'{name}' will not do: {error}") from None
