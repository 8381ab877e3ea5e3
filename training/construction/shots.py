"""The pictures of a folder: found, read once, and given a place beside the manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...models_info.files import whole_file
from ..errors import TrainingError
from ..pictures import DataError, digest, read_picture
from .mining import thumbnail
from .steps import ItemError, Report, Step

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
PICTURES = "pictures"


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        key: tells its content from others'.
        name: of the file, from the folder given.
        source: the file there.
        path: the same file beside the manifest.
        thumbnail: (768,), see `mining.thumbnail`.
    """

    key: str
    name: str
    source: Path
    path: Path
    width: int
    height: int
    thumbnail: torch.Tensor

    def picture(self) -> torch.Tensor:
        """Its colours, (H, W, 3) float32 in [0, 1]."""
        return read_picture(self.path.read_bytes())[0].float() / 255


def find_files(folder: Path, out: Path) -> list[Path]:
    """The picture files of a folder and of those in it, in order, without hidden ones and without what is in `out`.

    Raises:
        TrainingError: the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise TrainingError(f"there is no folder {folder}; give one that holds pictures", "folder")
    without = out.resolve()
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and without not in path.resolve().parents
        and path.is_file()
    )
    if not found:
        raise TrainingError(f"{folder} holds no picture; put PNG, JPEG or WebP files into it", "folder")
    return found


def take_pictures(
    folder: Path, out: Path, work: Path, min_side: int, report: Report
) -> tuple[list[Shot], dict[str, str]]:
    """All pictures that can be used, each content once, and why the other files cannot."""
    files = {_version(path, folder): path for path in find_files(folder, out)}
    step = Step("pictures", {"min_side": min_side}, work)
    made = step.run(files, lambda key: _take(files[key], out, min_side), report)
    shots: dict[str, Shot] = {}
    problems: dict[str, str] = {}
    for key, event in made.items():
        name = files[key].relative_to(folder).as_posix()
        if "problem" in event:
            problems[name] = event["problem"]
        elif event["digest"] in shots:
            problems[name] = f"is the same picture as {shots[event['digest']].name}"
        else:
            shots[event["digest"]] = _shot(event, name, files[key], out)
    return list(shots.values()), problems


def _version(path: Path, folder: Path) -> str:
    """Changes when a file is written again."""
    state = path.stat()
    return f"{path.relative_to(folder).as_posix()}|{state.st_size}|{state.st_mtime_ns}"


def _take(path: Path, out: Path, min_side: int) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        picture = read_picture(data)[0]
    except DataError as error:
        raise ItemError(str(error)) from None
    height, width = picture.shape[:2]
    if min(height, width) < min_side:
        raise ItemError(f"is only {width} x {height}; the shorter side needs {min_side} pixels")
    name = digest(data)
    file = f"{PICTURES}/{name}{path.suffix.lower()}"
    _link(path, out / file)
    small = thumbnail(picture.float() / 255)
    return {"digest": name, "file": file, "width": width, "height": height, "thumbnail": _bytes(small).hex()}


def _link(source: Path, path: Path) -> None:
    """The same file under a second name, which says its content; a copy where the disk knows no such names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    try:
        os.link(source, path)
    except OSError:
        with whole_file(path) as temporary:
            shutil.copyfile(source, temporary)


def _bytes(values: torch.Tensor) -> bytes:
    """A thumbnail up to its length, a byte a number."""
    return (values / values.abs().max().clamp_min(1e-12) * 127).round().to(torch.int8).numpy().tobytes()


def _shot(event: Mapping[str, Any], name: str, source: Path, out: Path) -> Shot:
    small = torch.frombuffer(bytearray.fromhex(event["thumbnail"]), dtype=torch.int8).float()
    small = small / small.norm().clamp_min(1e-6)
    return Shot(event["digest"], name, source, out / event["file"], event["width"], event["height"], small)
