"""The folder of a benchmark: manifest, pictures, and queues for `comfyui-ensemble batch`.

benchmark.json            what it is, and how it was built; written last
manifest.jsonl            one line a picture that is to be made: `cases.Case`
references/, structures/  pictures that jobs load, all with an alpha channel
queues/NAME/              workflow.json and jobs.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ...models_info.files import whole_file
from ..cases import Case, check_keys, read_cases, write_cases
from ..errors import EvaluationError
from .queues import Queue

FORMAT, VERSION = "ensemble-benchmark", 1
ABOUT, MANIFEST, QUEUES = "benchmark.json", "manifest.jsonl", "queues"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that was built.

    Attributes:
        papers: what `paper_tables` calls it.
        queues: name -> number of jobs.
    """

    folder: Path
    papers: str
    cases: list[Case]
    queues: Mapping[str, int]


class Gallery:
    """Pictures that go into the folder, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: set[str] = set()

    def add(self, source: Path | Image.Image, name: str) -> str:
        """Write a picture as PNG with an alpha channel, so that Load Image gives a mask of its size; returns its name.

        Raises:
            EvaluationError: it is no picture.
        """
        file = f"{name}.png"
        if file in self._written:
            return file
        picture = source if isinstance(source, Image.Image) else read_picture(source)
        with whole_file(self.folder / file) as temporary:
            picture.convert("RGBA").save(temporary, "PNG", compress_level=1)
        self._written.add(file)
        return file


def read_picture(path: Path) -> Image.Image:
    """A picture, upright.

    Raises:
        EvaluationError: it is missing or damaged.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise EvaluationError(f"{path} is missing or no picture; get the dataset again") from None


def has_transparency(picture: Image.Image) -> bool:
    """Whether something of a picture is transparent, and something is not."""
    low, high = picture.convert("RGBA").getchannel("A").getextrema()
    return low < 128 <= high  # type: ignore[operator]


def pictures_in(folder: Path, remedy: str) -> list[Path]:
    """The pictures of a folder in alphabetical order.

    Raises:
        EvaluationError: it is missing or has none; ends with the remedy.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    pictures = [path for path in found if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    if not pictures:
        raise EvaluationError(f"there are no pictures in {folder}; {remedy}")
    return sorted(pictures, key=lambda path: path.name)


def words_beside(picture: Path, example: str) -> str:
    """The text of a picture, from the file of its name that ends with .txt.

    Raises:
        EvaluationError: there is none.
    """
    path = picture.with_suffix(".txt")
    try:
        words = " ".join(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError):
        words = ""
    if not words:
        raise EvaluationError(f"{picture} has no description; write it into {path.name} beside it, such as '{example}'")
    return words


def shuffled(things: Iterable[Any], seed: int, what: str) -> list[Any]:
    """Things in an order that depends on the seed and on them alone."""

    def place(thing: Any) -> bytes:
        return hashlib.sha256(f"{seed}/{what}/{thing}".encode()).digest()

    return sorted(things, key=place)


def write_benchmark(
    folder: Path, papers: str, settings: Mapping[str, Any], cases: Sequence[Case], queues: Sequence[Queue]
) -> Benchmark:
    """Write manifest and queues; the pictures are there already."""
    check_keys(cases)
    write_cases(cases, folder / MANIFEST)
    for queue in queues:
        _write_json(folder / QUEUES / queue.name / "workflow.json", queue.workflow)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in queue.rows)
        _write(folder / QUEUES / queue.name / "jobs.jsonl", lines)
    counts = {queue.name: len(queue.rows) for queue in queues}
    about = {"format": FORMAT, "version": VERSION, "papers": papers, "settings": dict(settings), "queues": counts}
    _write_json(folder / ABOUT, about)
    return Benchmark(folder, papers, list(cases), counts)


def check_free(folder: Path, settings: Mapping[str, Any]) -> None:
    """An EvaluationError where a benchmark of other settings is in the folder: its pictures would be taken for this one's."""
    if (folder / ABOUT).exists() and _read_about(folder).get("settings") != json.loads(json.dumps(settings)):
        raise EvaluationError(f"{folder} holds a benchmark of other settings; choose another --out")


def read_benchmark(folder: Path) -> Benchmark:
    """A benchmark that was built.

    Raises:
        EvaluationError: there is none.
    """
    about = _read_about(folder)
    return Benchmark(folder, about["papers"], read_cases(folder / MANIFEST), about["queues"])


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise EvaluationError(f"{folder} holds no benchmark; give the folder that `benchmark` wrote")
    return about


def _write_json(path: Path, content: Any) -> None:
    _write(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
