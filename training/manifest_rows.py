"""Rows of a manifest, to and from JSON, as far as that needs no file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..attention_patches.item_spans import find_descriptions
from .categories import CATEGORIES

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ManifestSubject:
    """One subject of a row. Paths are relative to the manifest's folder, with forward slashes."""

    reference: str
    name: str
    description: str
    category: str
    mask: str | None = None  # of the reference
    instance_mask: str | None = None  # in the target
    box: Box | None = None  # left, top, right, bottom in pixels of the target
    pose: Mapping[str, Any] | None = None  # one entry of an OpenPose frame's "people", in pixels of the target


@dataclass(frozen=True)
class ManifestRow:
    """One target picture and what is known of it."""

    target: str
    caption: str
    subjects: tuple[ManifestSubject, ...]


ROW_KEYS = ("target", "caption", "subjects")
NEEDED = ("reference", "name", "description", "category")
OPTIONAL = ("mask", "instance_mask", "box", "pose")


def row_to_json(row: ManifestRow) -> dict[str, Any]:
    """What `parse_row` reads back as an equal row."""
    subjects = [
        {key: value for key in (*NEEDED, *OPTIONAL) if (value := getattr(subject, key)) is not None}
        for subject in row.subjects
    ]
    return {"target": row.target, "caption": row.caption, "subjects": subjects}


def parse_row(value: Any) -> tuple[ManifestRow | None, list[str]]:
    """A row of the manifest, or None, and everything that is wrong with it."""
    if not isinstance(value, dict):
        return None, ["it is no JSON object"]
    problems = _unknown_keys(value, ROW_KEYS)
    target = _path(value, "target", problems)
    caption = _text(value, "caption", problems)
    listed = value.get("subjects")
    if not isinstance(listed, list) or not listed:
        problems.append("subjects is no list of at least one subject")
        return None, problems
    subjects = []
    for number, entry in enumerate(listed, start=1):
        subject, found = _parse_subject(entry)
        name = entry.get("name") if isinstance(entry, dict) else None
        called = f"subject '{name}'" if isinstance(name, str) and name else f"subject {number}"
        problems += [f"{called}: {problem}" for problem in found]
        if subject is not None:
            subjects.append(subject)
    problems += _twice([subject.name for subject in subjects]) + _undescribed(caption, subjects)
    return (None if problems else ManifestRow(target, caption, tuple(subjects))), problems


def _parse_subject(value: Any) -> tuple[ManifestSubject | None, list[str]]:
    if not isinstance(value, dict):
        return None, ["it is no JSON object"]
    problems = _unknown_keys(value, (*NEEDED, *OPTIONAL))
    reference = _path(value, "reference", problems)
    name, description = (_text(value, key, problems) for key in ("name", "description"))
    category = _text(value, "category", problems)
    if category and category not in CATEGORIES:
        problems.append(f"category '{category}' is unknown; choose one of {', '.join(CATEGORIES)}")
    mask = _path(value, "mask", problems) if value.get("mask") is not None else None
    instance = _path(value, "instance_mask", problems) if value.get("instance_mask") is not None else None
    box = _optional(value, "box", _box, problems)
    pose = _optional(value, "pose", _pose, problems)
    if problems:
        return None, problems
    return ManifestSubject(reference, name, description, category, mask, instance, box, pose), []


def _unknown_keys(value: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    return [f"'{key}' is no key of a manifest; known are {', '.join(known)}" for key in value if key not in known]


def _text(value: Mapping[str, Any], key: str, problems: list[str]) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        problems.append(f"{key} is missing" if text is None else f"{key} is no text or an empty one")
        return ""
    return text.strip()


def _path(value: Mapping[str, Any], key: str, problems: list[str]) -> str:
    text = _text(value, key, problems)
    if text and not stays_inside(text):
        problems.append(f"{key} '{text}' leads out of the manifest's folder; give a path below it")
        return ""
    return text


def stays_inside(text: str) -> bool:
    """Whether a relative path, read as Unix or as Windows does, names something below the folder it starts from."""
    return "\0" not in text and not any(
        path.drive or path.root or ".." in path.parts for path in (PurePosixPath(text), PureWindowsPath(text))
    )


def _optional(value: Mapping[str, Any], key: str, parse: Callable[[Any], Any], problems: list[str]) -> Any:
    if value.get(key) is None:
        return None
    try:
        return parse(value[key])
    except (TypeError, ValueError, OverflowError) as error:
        problems.append(f"{key} {error}")
        return None


def _box(value: Any) -> Box:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(_is_number(number) for number in numbers):
        raise ValueError("is not four numbers: left, top, right, bottom")
    left, top, right, bottom = map(float, numbers)
    if not (left < right and top < bottom):
        raise ValueError(f"{value} has no area; give left, top, right, bottom")
    return left, top, right, bottom


def _pose(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or "pose_keypoints_2d" not in value:
        raise ValueError("is no person of an OpenPose frame; give one entry of its people, with pose_keypoints_2d")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _twice(names: Sequence[str]) -> list[str]:
    return [f"two subjects have the name '{name}'" for name in dict.fromkeys(names) if names.count(name) > 1]


def _undescribed(caption: str, subjects: Sequence[ManifestSubject]) -> list[str]:
    """Subjects whose description is not found in the caption by the rules that inference finds it by."""
    if not caption:
        return []
    found = find_descriptions(caption, {subject.description: subject.description for subject in subjects}, [])
    described = {occurrence.name for occurrence in found}
    return [
        f"subject '{subject.name}': the caption does not say '{subject.description}', or only inside the words of another"
        " subject"
        for subject in subjects
        if subject.description not in described
    ]
