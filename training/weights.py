"""A training's result as files in ComfyUI's models folders, where the loader nodes find them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import folder_paths
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..models_info.files import is_file_name, whole_file
from .checkpoint import system_reason
from .errors import TrainingError
from .task import WeightFile, Weights


def check_name(name: str) -> str:
    """The name without its ending.

    Raises:
        TrainingError: it is empty, or could lead out of the folder.
    """
    stem = name.strip().removesuffix(".safetensors")
    if not stem:
        raise TrainingError("it is empty; give the weights a name", "name")
    if not is_file_name(stem):
        raise TrainingError(
            f"'{name.strip()}' cannot be a file's name; use letters, digits, spaces, - and _, no folders", "name"
        )
    return stem


def models_folder(folder: str) -> Path:
    """Where new files of one of the host's model folders go, such as "loras"."""
    return Path(folder_paths.get_folder_paths(folder)[0])


def free_name(name: str, parts: list[tuple[Path, str]], overwrite: bool = False) -> list[Path]:
    """Paths for the files of one result, each a folder and a suffix; a number is added to `name` where one of them is taken."""
    number, chosen = 1, name
    while True:
        paths = [folder / f"{chosen}{suffix}.safetensors" for folder, suffix in parts]
        if overwrite or not any(path.exists() for path in paths):
            return paths
        number += 1
        chosen = f"{name}_{number:05d}"


def save_weights(
    weights: Weights, name: str, overwrite: bool = False, place: Callable[[str], Path] = models_folder
) -> list[Path]:
    """Write the files of a training's result, all of them or none.

    Args:
        name: of the files; each adds its suffix.
        overwrite: replace files of that name; otherwise a number is added to the name.
        place: the folder of each kind of file.

    Raises:
        TrainingError: the name will not do, or a file cannot be written.
    """
    parts = [(place(file.folder), file.suffix) for file in weights.files]
    paths = free_name(check_name(name), parts, overwrite)
    try:
        with ExitStack() as stack:
            for file, path in zip(weights.files, paths, strict=True):
                _write(file, stack.enter_context(whole_file(path)))
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"'{name}' cannot be written to {paths[0].parent} ({system_reason(error)}); make room there", "name"
        ) from None
    return paths


def _write(file: WeightFile, path: Path) -> None:
    save_file({name: value.contiguous() for name, value in file.tensors.items()}, path, metadata=file.metadata)
