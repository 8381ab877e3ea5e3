"""Who describes the pictures: a Florence-2, or files that lie beside them."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from ...models_info.registry import CAPTIONERS, FLORENCE, find_folder, list_folders
from ..errors import TrainingError
from .described import Described, beside, read_description
from .florence import CaptionerError, Florence, captioner_identity, check_folder
from .steps import ItemError

FILES = "files"  # instead of a model's name: <picture>.json beside each picture


class Captioner(Protocol):
    identity: str  # tells it from others

    def version(self, path: Path) -> str:
        """Changes where the description of a picture does, though the picture does not."""
        ...

    def describe(self, path: Path, picture: torch.Tensor) -> Described:
        """The description of a picture (H, W, 3); `ItemError` where there is none."""
        ...


class FlorenceCaptioner:
    """A Florence-2 folder, read when the first picture needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identity = f"florence-{captioner_identity(folder)}"

    @cached_property
    def _model(self) -> Florence:
        try:
            return Florence(self.folder)
        except CaptionerError as error:
            raise _unusable(self.folder, error) from None

    def version(self, path: Path) -> str:
        return ""

    def describe(self, path: Path, picture: torch.Tensor) -> Described:
        described = self._model.describe(picture)
        if not described.caption:
            raise ItemError("the captioner has no words for it")
        return described


def find_captioner(name: str) -> Captioner:
    """Who describes the pictures: a model's folder by its path or by its name in ComfyUI's models folder, or `FILES`.

    Raises:
        TrainingError: there is none, or it is another model.
    """
    if name == FILES:
        return FileCaptioner()
    folder = Path(name) if Path(name).is_absolute() else find_folder(CAPTIONERS, name)
    if folder is None or not folder.is_dir():
        there = ", ".join(list_folders(CAPTIONERS)) or "none"
        raise TrainingError(f"there is no captioner '{name}' (there: {there}); {FLORENCE.missing()}", "captioner")
    try:
        check_folder(folder)
    except CaptionerError as error:
        raise _unusable(folder, error) from None
    return FlorenceCaptioner(folder)


def _unusable(folder: Path, error: CaptionerError) -> TrainingError:
    return TrainingError(f"the captioner's folder {folder.name} {error}", "captioner")


class FileCaptioner:
    """JSON files beside the pictures, such as another program or a person wrote."""

    def __init__(self) -> None:
        self.identity = "files"

    def version(self, path: Path) -> str:
        file = beside(path)
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else "missing"

    def describe(self, path: Path, picture: torch.Tensor) -> Described:
        return read_description(path)
