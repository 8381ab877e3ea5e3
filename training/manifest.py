"""Manifests: which pictures a training learns from, one JSON object a line (JSONL, UTF-8).

A row::

    {"target": "pictures/0001.png",
     "caption": "a woman in a red coat walks a dog",
     "subjects": [
       {"reference": "references/anna.png",
        "name": "anna",
        "description": "a woman in a red coat",
        "category": "person",
        "mask": "references/anna_mask.png",            optional: where she is in the reference
        "instance_mask": "pictures/0001_anna.png",     optional: where she is in the target
        "box": [120, 40, 380, 760],                    optional: left, top, right, bottom in the target
        "pose": {"pose_keypoints_2d": [...]}}]}        optional: a person of an OpenPose frame, in pixels of the target

Paths are relative to the manifest's folder and never lead out of it. A description stands in its caption word for word.
Masks are white on the subject; where a reference has none its transparency counts, and without that all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..models_info.files import whole_file
from ..pose_db.people import read_people
from .buckets import Size
from .manifest_rows import ManifestRow, ManifestSubject, parse_row, row_to_json, stays_inside
from .pictures import DataError, PictureFacts, examine

INPUT = "manifest"  # of the node
FEWEST = 2  # rows: with one picture alone there is nothing to tell its subjects from
SHOWN = 20  # bad rows that a message describes; of the others it says the lines

Progress = Callable[[int, int], None]  # pictures examined, pictures in all; may raise to stop
Wanted = tuple[str, bool]  # a path, and whether it is read as a mask
Examined = Mapping[Wanted, PictureFacts | str]  # what is known of a file, or what is wrong with it


@dataclass(frozen=True)
class Manifest(Sequence[ManifestRow]):
    """A manifest all of whose rows have been found good.

    Attributes:
        path: of the file; its folder is what the rows' paths start from.
        rows: in the file's order.
        lines: each row's line, counted from 1.
        keys: equal for rows of equal content only.
        sizes: of the targets.
        digests: of the picture files.
    """

    path: Path
    rows: tuple[ManifestRow, ...]
    lines: tuple[int, ...]
    keys: tuple[str, ...]
    sizes: tuple[Size, ...]
    digests: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]


def read_manifest(path: Path, progress: Progress = lambda done, total: None) -> Manifest:
    """Read a manifest and examine every picture it names.

    Every file is decoded here, so nothing of what a damaged one would do is left for the training's first hours.

    Raises:
        DataError: any row is bad, or there are fewer than two; names each bad row.
    """
    bad: dict[int, list[str]] = {}
    rows: dict[int, ManifestRow] = {}  # by line
    for line, text in _lines(path):
        row, problems = _parse_line(text)
        if row is not None:
            rows[line] = row
        else:
            bad[line] = problems
    examined = _examine_all(path.parent, rows.values(), progress)
    keys: dict[str, int] = {}
    for line, row in rows.items():
        problems = _file_problems(row, examined)
        first = line if problems else keys.setdefault(_key(row, examined), line)
        if first != line:
            problems = [f"it is the same as line {first}"]
        if problems:
            bad[line] = problems
    if bad:
        raise DataError(_bad_rows(path, bad), INPUT)
    if len(rows) < FEWEST:
        holds = "only one row" if rows else "no row"
        raise DataError(f"{path.name} holds {holds}; a training needs at least {FEWEST} pictures", INPUT)
    facts = {wanted: fact for wanted, fact in examined.items() if isinstance(fact, PictureFacts)}
    return Manifest(
        path,
        tuple(rows.values()),
        tuple(rows),
        tuple(keys),
        tuple(facts[row.target, False].size for row in rows.values()),
        {name: fact.digest for (name, _), fact in facts.items()},
    )


def write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    """Write a manifest, whole or not at all. Its pictures are not looked at.

    Raises:
        DataError: a row's path leads out of the manifest's folder, or the file cannot be written.
    """
    for row in rows:
        for name, _ in _files(row):
            if not stays_inside(name):
                raise DataError(f"'{name}' leads out of the folder of {path.name}; give paths relative to it", INPUT)
    text = "".join(json.dumps(row_to_json(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); free some space or choose another folder", INPUT
        ) from None


def manifest_version(path: Path) -> list[tuple[str, int, int] | None]:
    """Changes when the manifest, or a picture that it names, is rewritten; looks at no file's content but the manifest's.

    Raises:
        DataError: the manifest cannot be read.
    """
    rows = [row for _, text in _lines(path) if (row := _parse_line(text)[0]) is not None]
    names = dict.fromkeys(name for row in rows for name, _ in _files(row))
    return [_version(file) for file in (path, *(path.parent / name for name in names))]


def _version(path: Path) -> tuple[str, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return str(path), stat.st_mtime_ns, stat.st_size


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a manifest, a .jsonl file", INPUT) from None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, line.decode("utf-8", errors="replace")


def _parse_line(text: str) -> tuple[ManifestRow | None, list[str]]:
    if "\N{REPLACEMENT CHARACTER}" in text:
        return None, ["it is no UTF-8 text; save the manifest as UTF-8"]
    try:
        return parse_row(json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number))
    except json.JSONDecodeError as error:
        return None, [f"it is no valid JSON: {error.msg} at column {error.colno}"]
    except RecursionError:
        return None, ["it is nested too deeply"]
    except ValueError as error:
        return None, [str(error)]


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' stands twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number that JSON knows")


def _files(row: ManifestRow) -> Iterator[Wanted]:
    yield row.target, False
    for subject in row.subjects:
        yield subject.reference, False
        yield from ((mask, True) for mask in (subject.mask, subject.instance_mask) if mask is not None)


def _examine_all(folder: Path, rows: Iterator[ManifestRow] | Any, progress: Progress) -> Examined:
    """Every file once, in as many threads as there are processors: decoding keeps the interpreter free."""
    wanted = list(dict.fromkeys(file for row in rows for file in _files(row)))
    found: dict[Wanted, PictureFacts | str] = {}
    root = folder.resolve()
    with ThreadPoolExecutor(os.cpu_count() or 1, "ensemble-manifest") as pool:
        try:
            for file, facts in zip(wanted, pool.map(lambda file: _examine(root, *file), wanted), strict=True):
                found[file] = facts
                progress(len(found), len(wanted))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _examine(root: Path, name: str, as_mask: bool) -> PictureFacts | str:
    try:
        path = (root / name).resolve(strict=True)
        if not path.is_relative_to(root):
            return "is a link that leads out of the manifest's folder; copy the file there"
        return examine(path, as_mask) if path.is_file() else "is no file"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except DataError as error:
        return str(error)


def _file_problems(row: ManifestRow, examined: Examined) -> list[str]:
    target = examined[row.target, False]
    if isinstance(target, str):
        return [f"target '{row.target}' {target}"]
    return [
        f"subject '{subject.name}': {problem}"
        for subject in row.subjects
        for problem in _subject_problems(subject, target.size, examined)
    ]


def _subject_problems(subject: ManifestSubject, size: Size, examined: Examined) -> Iterator[str]:
    reference = examined[subject.reference, False]
    if isinstance(reference, str):
        yield f"reference '{subject.reference}' {reference}"
    else:
        if subject.mask is None and reference.empty:
            yield f"reference '{subject.reference}' is all transparent"
        yield from _mask_problems("mask", subject.mask, "the reference", reference.size, examined)
    yield from _mask_problems("instance_mask", subject.instance_mask, "the target", size, examined)
    width, height = size
    if subject.box is not None:
        left, top, right, bottom = subject.box
        if left < 0 or top < 0 or right > width or bottom > height:
            yield f"box {list(subject.box)} reaches out of the target, which is {width} x {height}"
    if subject.pose is not None:
        try:
            keypoints_in_pixels(subject.pose, size)
        except ValueError as error:
            yield f"pose: {error}"


def _mask_problems(key: str, name: str | None, of: str, size: Size, examined: Examined) -> Iterator[str]:
    if name is None:
        return
    mask = examined[name, True]
    if isinstance(mask, str):
        yield f"{key} '{name}' {mask}"
    elif mask.size != size:
        yield f"{key} '{name}' is {mask.size[0]} x {mask.size[1]}, but {of} is {size[0]} x {size[1]}"
    elif mask.empty:
        yield f"{key} '{name}' is empty; paint the subject white"


def keypoints_in_pixels(pose: Mapping[str, Any], size: Size) -> dict[str, list[float]]:
    """An OpenPose person with its keypoints in pixels of a target; shares of the picture are read too.

    Raises:
        ValueError: it is none, or shows no keypoint.
    """
    width, height = size
    (person,) = read_people({"people": [pose], "canvas_width": width, "canvas_height": height})
    if not any((values[:, 2] > 0).any() for values in person.values()):
        raise ValueError("it shows no keypoint; detect it again or leave it out")
    return {part: (values * (width, height, 1)).reshape(-1).tolist() for part, values in person.items()}


def _key(row: ManifestRow, examined: Examined) -> str:
    """Of a good row: of its words and numbers, and of its pictures' bytes, not of their names."""
    digests = [facts.digest for file in _files(row) if isinstance(facts := examined[file], PictureFacts)]
    words = [
        (subject.name, subject.description, subject.category, subject.mask is None, subject.instance_mask is None)
        for subject in row.subjects
    ]
    places = [(subject.box, json.dumps(subject.pose, sort_keys=True)) for subject in row.subjects]
    return hashlib.blake2b(repr((digests, row.caption, words, places)).encode(), digest_size=16).hexdigest()


def _bad_rows(path: Path, bad: Mapping[int, Sequence[str]]) -> str:
    lines = sorted(bad)
    told = "; ".join(f"line {line}: {', and '.join(bad[line])}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        told += f"; and lines {_ranges(lines[SHOWN:])}"
    one = len(lines) == 1
    return (
        f"{path.name} has {len(lines)} bad {'row' if one else 'rows'}: {told}; mend or remove {'it' if one else 'them'}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """7, 8, 9, 12 -> "7-9, 12"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
