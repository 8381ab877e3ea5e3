"""What a picture was to show, and whom: everything that measuring it needs. One JSON line a picture (`manifest.jsonl`).

File names in it are seen from its folder, which they never leave.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..models_info.files import is_file_name, whole_file
from .errors import EvaluationError

Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the picture's width and height


@dataclass(frozen=True)
class CaseSubject:
    """One who is to be in the picture.

    Attributes:
        name: unique in the picture.
        description: the words for it in the prompt; may be empty.
        category: as the Subject node has it.
        references: pictures of it; the first is the one that was given to the model.
        box: where it is to be; None where that is free.
        mask: a picture of that picture's size, white on it and black elsewhere; empty where there is none.
    """

    name: str
    description: str
    category: str
    references: tuple[str, ...]
    box: Box | None = None
    mask: str = ""


@dataclass(frozen=True)
class Case:
    """One picture.

    Attributes:
        key: names it, also as a file.
        prompt: all that it is to show, in words; may be empty.
        group: pictures of one group vary together.
        part: of the benchmark.
        width, height: in pixels; 0 where the workflow decides.
        pose: who is to stand how, an OpenPose frame.
        structure: the picture whose structure is to be kept.
        picture: the picture itself where it is there already.
    """

    key: str
    prompt: str
    subjects: tuple[CaseSubject, ...] = ()
    group: str = ""
    part: str = ""
    seed: int = 0
    width: int = 0
    height: int = 0
    pose: Mapping[str, Any] | None = None
    structure: str = ""
    picture: str = ""


def write_cases(cases: Iterable[Case], path: Path) -> None:
    """Write a manifest, whole or not at all."""
    lines = (json.dumps(asdict(case), ensure_ascii=False) + "\n" for case in cases)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


def read_cases(path: Path) -> list[Case]:
    """The cases of a manifest.

    Raises:
        EvaluationError: it is missing, empty or damaged, or two cases have one key; says which line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise EvaluationError(f"{path} cannot be read; give the folder that `benchmark` wrote") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    cases = [_case(line, f"line {number} of {path}") for number, line in lines]
    if not cases:
        raise EvaluationError(f"{path} is empty; build the benchmark again")
    check_keys(cases)
    return cases


def check_keys(cases: Sequence[Case]) -> None:
    """An EvaluationError where two cases have one key, or one has a key that no file can be called by."""
    seen: set[str] = set()
    for case in cases:
        if not is_file_name(case.key) or case.key.casefold() in seen:
            raise EvaluationError(
                f"the key '{case.key}' is there twice or no name for a file; give every picture its own"
            )
        seen.add(case.key.casefold())


def inside(folder: Path, name: str) -> Path:
    """A file of a manifest's folder.

    Raises:
        EvaluationError: the name leaves the folder, or there is no such file.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EvaluationError(f"the file name '{name}' leaves {folder}; keep all files of a manifest beside it")
    if not path.is_file():
        raise EvaluationError(f"there is no file {path}; put it there, or correct its name in the manifest")
    return path


def check_files(cases: Sequence[Case], folder: Path) -> None:
    """An EvaluationError where a file that cases name for comparing is not in their folder."""
    names = {name for case in cases for each in case.subjects for name in (*each.references, each.mask)}
    names.update(case.structure for case in cases)
    for name in sorted(names - {""}):
        inside(folder, name)


def _case(line: str, where: str) -> Case:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise EvaluationError(f"{where} is not JSON; build the benchmark again") from None
    problem = _problem(
        values, Case, {"key": str, "prompt": str}, {"subjects": list, "seed": int, "width": int, "height": int}
    )
    if problem:
        raise EvaluationError(f"{where} {problem}")
    subjects = tuple(_subject(each, where) for each in values.get("subjects", []))
    if len({each.name for each in subjects}) < len(subjects):
        raise EvaluationError(f"{where} has two subjects of one name; name them apart")
    return Case(**{**values, "subjects": subjects})


def _subject(values: Any, where: str) -> CaseSubject:
    needed = {"name": str, "description": str, "category": str, "references": list}
    problem = _problem(values, CaseSubject, needed, {"box": (list, type(None))})
    if problem:
        raise EvaluationError(f"a subject of {where} {problem}")
    if not all(isinstance(name, str) for name in values["references"]):
        raise EvaluationError(f"a subject of {where} has a reference that is not a file's name")
    box = values.get("box")
    if box is not None and not _is_box(box):
        raise EvaluationError(f"a subject of {where} has a box that is not four shares of the picture")
    return CaseSubject(
        **{**values, "references": tuple(values["references"]), "box": None if box is None else tuple(box)}
    )


def _is_box(box: list[Any]) -> bool:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box)
    return len(box) == 4 and numbers and all(0 <= value <= 1 for value in box)


def _problem(values: Any, kind: type, needed: Mapping[str, Any], optional: Mapping[str, Any]) -> str:
    """What keeps JSON from being a `kind`; fields that are not named are texts, or objects for `pose`."""
    if not isinstance(values, dict) or not needed.keys() <= values.keys():
        return f"lacks one of {', '.join(needed)}"
    types = {field.name: str for field in fields(kind)} | {"pose": (dict, type(None))} | dict(optional) | dict(needed)
    for name, value in values.items():
        if name not in {field.name for field in fields(kind)}:
            return f"has an unknown field '{name}'"
        if not isinstance(value, types[name]) or isinstance(value, bool):
            return f"has a '{name}' of the wrong kind"
    return ""
