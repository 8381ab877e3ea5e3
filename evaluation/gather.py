"""What is to be measured: pictures, and what each was to show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .benchmarks.folder import ABOUT, PICTURES, pictures_in, read_benchmark
from .benchmarks.queues import KEY
from .cases import Case, CaseSubject, check_files, check_keys, inside, read_cases
from .errors import EvaluationError
from .report_summary import Context

BATCH_MANIFEST = "manifest.jsonl"  # in the folder that `batch` writes


@dataclass(frozen=True)
class Gathered:
    """Pictures and their cases.

    Attributes:
        folder: what file names in the cases are seen from.
        pictures: key -> the picture's file; a case without one has not been made.
        papers: the benchmark, as `paper_tables` calls it; empty for none.
    """

    folder: Path
    cases: list[Case]
    pictures: Mapping[str, Path]
    papers: str = ""
    given: Mapping[str, Path] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """A file that a case names; `EvaluationError` where it is not there."""
        return self.given[name] if name in self.given else inside(self.folder, name)

    def context(self) -> Context:
        """What a report needs to know of them."""
        groups = {case.key: case.group for case in self.cases if case.group}
        parts = {case.key: case.part for case in self.cases if case.part}
        return Context(self.papers, groups or None, parts or None)


def gather(source: Path, made: Sequence[Path], references: Mapping[str, Path]) -> Gathered:
    """The pictures of a benchmark, of a manifest (JSONL, every line with its `picture`), or of a folder.

    Args:
        source: the benchmark's folder, the manifest, or the folder of pictures, each with its prompt in a text file of its name
            where it has one.
        made: folders with the benchmark's pictures: those that `batch` wrote, or pictures called by their keys.
        references: subjects of every picture of a folder: name -> picture.

    Raises:
        EvaluationError: one sentence.
    """
    if (source / ABOUT).is_file():
        _refuse(references, "--reference", "a benchmark has its own references")
        benchmark = read_benchmark(source)
        check_files(benchmark.cases, source)
        keys = {case.key for case in benchmark.cases}
        return Gathered(source, benchmark.cases, _made_pictures(made, keys), benchmark.papers)
    _refuse(made, "folders of pictures", f"{source} is no benchmark")
    if source.is_dir():
        return _folder(source, references)
    _refuse(references, "--reference", "a manifest has its own references")
    cases = read_cases(source)
    check_files(cases, source.parent)
    without = next((case.key for case in cases if not case.picture), None)
    if without is not None:
        raise EvaluationError(f"'{without}' of {source} has no picture; give every line of the manifest its 'picture'")
    return Gathered(source.parent, cases, {case.key: inside(source.parent, case.picture) for case in cases})


def _refuse(things: Any, what: str, why: str) -> None:
    if things:
        raise EvaluationError(f"{what} cannot be given here because {why}; leave them out")


def _folder(source: Path, references: Mapping[str, Path]) -> Gathered:
    pictures = {path.stem: path for path in pictures_in(source, "give a folder with pictures")}
    subjects = tuple(CaseSubject(name, "", "other", (name,)) for name in references)
    for name, path in references.items():
        if not path.is_file():
            raise EvaluationError(f"--reference {name}: there is no file {path}; check its name")
    cases = [Case(key, _words(path), subjects) for key, path in pictures.items()]
    check_keys(cases)
    return Gathered(source, cases, pictures, given=references)


def _words(picture: Path) -> str:
    path = picture.with_suffix(".txt")
    return " ".join(_read(path).split()) if path.is_file() else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise EvaluationError(f"{path} is not UTF-8; save it as UTF-8 text") from None


def _made_pictures(folders: Sequence[Path], keys: set[str]) -> dict[str, Path]:
    if not folders:
        raise EvaluationError("the benchmark's pictures are missing; give the folders that `batch` wrote them to")
    found: dict[str, Path] = {}
    for folder in folders:
        pictures = list(_pictures_of(folder))
        for key, path in pictures:
            if key in keys and found.setdefault(key, path) != path:
                raise EvaluationError(
                    f"'{key}' has two pictures, {found[key]} and {path}; give one of their folders only"
                )
        if not any(key in keys for key, _path in pictures):
            raise EvaluationError(f"no picture in {folder} is of this benchmark; give the folder that `batch` wrote")
    return found


def _pictures_of(folder: Path) -> Iterable[tuple[str, Path]]:
    """(key, picture): by the manifest that `batch` wrote, of each job the first; or else by their names."""
    manifest = folder / BATCH_MANIFEST
    if not manifest.is_file():
        return [(path.stem, path) for path in pictures_in(folder, "give the folder that `batch` wrote")]
    found: dict[str, Path] = {}
    for number, line in enumerate(_read(manifest).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key, file = row["cells"][KEY], str(row["file"])
        except (ValueError, KeyError, TypeError):
            raise EvaluationError(
                f"line {number} of {manifest} is not of a benchmark's job; give another folder"
            ) from None
        if Path(file).suffix.lower() in PICTURES:
            found.setdefault(str(key), inside(folder, file))
    return found.items()
