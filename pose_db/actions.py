"""The authored actions: reads and checks the JSON files in ``action_data``.

What every key of those files means is in ``README.md`` beside this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .scene import ANCHORS, PersonPose, Reach
from .skeleton import ANGLE_INDEX, ANGLES, ARM, LEG, SIDES, check_angles

ACTION_FOLDER = Path(__file__).parent / "action_data"
BASE_POSES = ACTION_FOLDER / "base_poses.json"

_ACTION_KEYS = {
    "id",
    "say",
    "people",
    "subjects",
    "places",
    "level",
    "crops",
    "view",
    "tilt",
    "cameras",
    "canvas",
    "calm",
}
_PERSON_KEYS = {"base", "pose", "at", "face"}
_GROUPS = {
    "root": ("root_yaw", "root_pitch", "root_roll"),
    "trunk": ("trunk_flexion", "trunk_bend", "trunk_twist"),
    "neck": ("neck_flexion", "neck_tilt", "neck_turn"),
    "shrug": ("left_shrug", "right_shrug"),
}
_LIMBS = tuple(f"{side}_{part}" for side in SIDES for part in ("arm", "leg", "hand", "foot"))
_PAIRS = {"arms": "arm", "legs": "leg", "hands": "hand", "feet": "foot"}
_POSE_KEYS = {*_GROUPS, *_LIMBS, *_PAIRS, "base", "mirror", "lift", "ride", "flexible"}
_OPPOSITE = {"arm": "hand", "hand": "arm", "leg": "foot", "foot": "leg"}
_ELBOW_HINTS = {
    "down": (0.3, -1.0, -0.2),
    "out": (1.0, -0.25, 0.0),
    "up": (0.6, 1.0, 0.0),
    "back": (0.4, -0.4, -1.0),
    "forward": (0.15, -0.3, 1.0),
}
_KNEE_HINTS = {
    "forward": (0.12, 0.2, 1.0),
    "out": (1.0, 0.3, 0.6),
    "in": (-0.5, 0.2, 1.0),
    "up": (0.1, 1.0, 0.3),
}
CAMERA_GROUPS = ("around", "behind", "side", "height", "crop")
CROPS = ("full", "wide", "knees", "waist")
CANVASES = ("tall", "wide", "square", "any")
POOLS = ("any", "adult", "young", "athlete", "child", "toddler", "man", "woman")
_SWAPPED = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Action:
    """One authored action.

    Attributes:
        id: stable name in snake_case.
        theme: name of the file it comes from.
        say: phrasings that follow the subject's name; ``{b}`` and ``{c}`` are the second and third person where each has a part.
        people: one pose a person.
        subjects: one pool of subjects a person (keys of ``variation_axes.SUBJECT_POOLS``), or a single pool for all together.
        places: natural environments.
        level: difficulty, 1 to 5.
        crops: crops that still show the action.
        view: middle and half width in degrees of the camera's azimuth where the prompt names none.
        tilt: middle and half width in degrees of the camera's elevation where the prompt names none.
        cameras: which groups of camera words fit.
        canvas: ``tall``, ``wide``, ``square`` or ``any``.
        calm: whether words such as "energetically" do not fit.
    """

    id: str
    theme: str
    say: tuple[str, ...]
    people: tuple[PersonPose, ...]
    subjects: tuple[str, ...]
    places: tuple[str, ...]
    level: int
    crops: tuple[str, ...]
    view: tuple[float, float]
    tilt: tuple[float, float]
    cameras: tuple[str, ...]
    canvas: str
    calm: bool

    @property
    def has_parts(self) -> bool:
        """Whether the people have different parts, so that the phrasings name each of them."""
        return "{b}" in self.say[0]


def swap_sides(text: str) -> str:
    """The text with the words "left" and "right" exchanged."""
    return re.sub(r"\b(left|right)\b", lambda match: _SWAPPED[match.group()], text)


def load_actions(folder: Path = ACTION_FOLDER) -> list[Action]:
    """Every action of every theme, sorted by theme and then as authored.

    Raises:
        ValueError: a file breaks the schema; the sentence names file, action and key.
    """
    bases = json.loads((folder / BASE_POSES.name).read_text(encoding="utf-8"))
    actions: list[Action] = []
    for path in sorted(folder.glob("*.json")):
        if path.name == BASE_POSES.name:
            continue
        theme = json.loads(path.read_text(encoding="utf-8"))
        for entry in theme["actions"]:
            try:
                actions.append(parse_action(path.stem, theme.get("defaults", {}) | entry, bases))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path.name}, action {entry.get('id')!r}: {error}") from error
    _check_unique(actions)
    return actions


def _check_unique(actions: Sequence[Action]) -> None:
    seen: dict[str, str] = {}
    for action in actions:
        for text in (action.id, *action.say):
            if text in seen:
                raise ValueError(f"{text!r} is used by {seen[text]!r} and by {action.id!r}")
            seen[text] = action.id


def parse_action(theme: str, entry: Mapping[str, Any], bases: Mapping[str, Any]) -> Action:
    """One action from its JSON object, with the file's defaults already merged in.

    Raises:
        ValueError: a key is unknown, a value has the wrong form or an angle is outside its limits.
    """
    solo = {key: entry[key] for key in _PERSON_KEYS if key in entry}
    _check_keys(entry, _ACTION_KEYS | _PERSON_KEYS)
    people = entry.get("people", [solo])
    if "people" in entry and solo:
        raise ValueError("it has people and also a pose of its own")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", entry["id"]):
        raise ValueError("its id is not snake_case")
    if len(entry["say"]) < 2:
        raise ValueError("it needs two phrasings or more")
    subjects = entry.get("subjects", ["any"])
    parts = {tuple(part in text for part in ("{b}", "{c}")) for text in entry["say"]}
    named = 1 + sum(min(parts))
    if len(parts) != 1 or named not in (1, len(people)) or len(subjects) != named:
        raise ValueError(f"it has {len(people)} people: every phrasing and subjects should name one or all of them")
    if not 1 <= entry["level"] <= 5:
        raise ValueError("its level is not 1 to 5")
    for key, known in (("cameras", CAMERA_GROUPS), ("crops", CROPS), ("subjects", POOLS)):
        for value in entry.get(key, []):
            _one_of(value, known, key)
    return Action(
        id=entry["id"],
        theme=theme,
        say=tuple(entry["say"]),
        people=tuple(parse_person(person, bases, len(people)) for person in people),
        subjects=tuple(subjects),
        places=tuple(entry["places"]),
        level=entry["level"],
        crops=tuple(entry.get("crops", ["full"])),
        view=_range(entry.get("view", [0, 35]), "view"),
        tilt=_range(entry.get("tilt", [4, 6]), "tilt"),
        cameras=tuple(entry.get("cameras", CAMERA_GROUPS)),
        canvas=_one_of(entry.get("canvas", "tall"), CANVASES, "canvas"),
        calm=entry.get("calm", False),
    )


def parse_person(entry: Mapping[str, Any], bases: Mapping[str, Any], people: int) -> PersonPose:
    """One person of an action: its base pose with the differences written for it.

    Raises:
        ValueError: as ``parse_action``.
    """
    _check_keys(entry, _PERSON_KEYS)
    pose = _merge(_base_pose(entry.get("base", "stand"), bases), entry.get("pose", {}))
    angles = np.zeros(len(ANGLES))
    for key, names in _GROUPS.items():
        angles[[ANGLE_INDEX[name] for name in names]] = _numbers(pose.get(key, [0] * len(names)), len(names), key)
    angles[ANGLE_INDEX["root_yaw"]] += entry.get("face", 0)
    reaches = []
    for limb in _LIMBS:
        if limb not in pose:
            continue
        side, kind = limb.split("_")
        if kind in ("arm", "leg"):
            columns = [ANGLE_INDEX[f"{side}_{name}"] for name in (ARM if kind == "arm" else LEG)]
            angles[columns] = _numbers(pose[limb], 4, limb)
        else:
            reaches.append(_parse_reach(side, kind, pose[limb], people))
    flexible = bool(pose.get("flexible", False))
    check_angles(angles, flexible)
    x, z = _numbers(entry.get("at", [0, 0]), 2, "at")
    return PersonPose(
        angles, tuple(reaches), float(pose.get("lift", 0)), (x, z), _parse_ride(pose.get("ride"), people), flexible
    )


def _check_keys(entry: Mapping[str, Any], known: set[str]) -> None:
    unknown = set(entry) - known
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")


def _numbers(values: Any, count: int, key: str) -> list[float]:
    if not isinstance(values, list) or len(values) != count or not all(isinstance(v, int | float) for v in values):
        raise ValueError(f"{key} should be a list of {count} numbers")
    return [float(value) for value in values]


def _one_of(value: Any, known: Sequence[str], key: str) -> Any:
    if value not in known:
        raise ValueError(f"{key} {value!r} is not one of {', '.join(known)}")
    return value


def _range(values: Any, key: str) -> tuple[float, float]:
    middle, half = _numbers(values, 2, key)
    return middle, half


def _base_pose(name: str, bases: Mapping[str, Any]) -> dict[str, Any]:
    if name not in bases:
        raise ValueError(f"there is no base pose {name!r}")
    pose = bases[name]
    return _merge(_base_pose(pose["base"], bases) if "base" in pose else {}, pose)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base pose with changes: pairs become two limbs, and an arm given by angles replaces a hand given by a target."""
    _check_keys(changes, _POSE_KEYS)
    merged = dict(base)
    if changes.get("mirror"):
        merged = _mirror(merged)
    for key, value in changes.items():
        if key in ("base", "mirror"):
            continue
        limbs = [f"{side}_{_PAIRS[key]}" for side in SIDES] if key in _PAIRS else [key]
        for limb in limbs:
            if limb in _LIMBS:
                side, kind = limb.split("_")
                merged.pop(f"{side}_{_OPPOSITE[kind]}", None)
            merged[limb] = [value, value] if limb == "shrug" and not isinstance(value, list) else value
    return merged


def _mirror(pose: Mapping[str, Any]) -> dict[str, Any]:
    signs = {"root": (-1, 1, -1), "trunk": (1, -1, -1), "neck": (1, -1, -1)}
    mirrored = {}
    for key, value in pose.items():
        side, _, part = key.partition("_")
        if key in signs:
            value = [sign * number for sign, number in zip(signs[key], value, strict=True)]
        if key == "shrug":
            value = value[::-1]
        if part == "hand":
            value = [re.sub("left|right", lambda match: _SWAPPED[match.group()], value[0]), *value[1:]]
        mirrored[f"{_SWAPPED[side]}_{part}" if side in _SWAPPED else key] = value
    return mirrored


def _parse_reach(side: str, kind: str, value: Any, people: int) -> Reach:
    """``["near_hip", [out, up, forward], "out"]`` for a hand, ``[[out, up, forward], "forward"]`` for a foot."""
    if kind == "foot":
        offset, hint, person, anchor = value[0], value[1] if len(value) > 1 else "forward", None, "pelvis"
        hints, limb = _KNEE_HINTS, f"{side}_leg"
    else:
        offset = value[1] if len(value) > 1 else [0, 0, 0]
        hint = value[2] if len(value) > 2 else "down"
        person, anchor = _parse_anchor(value[0], side, people)
        hints, limb = _ELBOW_HINTS, f"{side}_arm"
    if isinstance(hint, str) and hint not in hints:
        raise ValueError(f"{hint!r} is not one of {', '.join(hints)}")
    direction = hints[hint] if isinstance(hint, str) else tuple(_numbers(hint, 3, "hint"))
    x, y, z = _numbers(offset, 3, f"the offset of {side}_{kind}")
    return Reach(limb, anchor, person, (x, y, z), direction)  # type: ignore[arg-type]


def _parse_anchor(text: str, side: str, people: int) -> tuple[int | None, str]:
    """``near_hip`` (own side), ``far_hip``, ``head``, or ``1.left_wrist`` for the person of that number, counted from 0."""
    owner, dot, name = text.rpartition(".")
    if owner == "meet":
        owner, name = name, owner
    if dot and not (owner.isdigit() and int(owner) < people):
        raise ValueError(f"{text!r} names person {owner!r}, but people are numbered from 0 to {people - 1}")
    person = int(owner) if dot else None
    name = name.replace("near_", f"{side}_").replace("far_", f"{_SWAPPED[side]}_")
    if name not in ANCHORS and not (name == "meet" and person is not None):
        raise ValueError(f"{text!r} is not a point of the body")
    return person, name


def _parse_ride(value: Any, people: int) -> tuple[int, str, tuple[float, float, float]] | None:
    if value is None:
        return None
    person, anchor = _parse_anchor(value[0], "left", people)
    if person is None:
        raise ValueError("ride should name the person who carries this one")
    x, y, z = _numbers(value[1], 3, "the offset of ride")
    return person, anchor, (x, y, z)
