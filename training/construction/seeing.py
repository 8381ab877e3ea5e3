"""What is in the pictures: descriptions, poses and masks, a step each, and the subjects that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...models_info.files import whole_file
from ...models_info.sam_masks import look_at, prompted_logits, without_specks
from .boxes import Box, area, box_of_mask
from .described import Described, from_json
from .items import Item, find_items, with_faces
from .models import Models
from .people import owners
from .phrases import PERSON
from .settings import BuildConfig
from .shots import Shot
from .steps import ItemError, Report, Step, digest

Refused = dict[str, list[str]]  # why, by the picture's name


@dataclass(frozen=True)
class Subject:
    """One subject of a picture.

    Attributes:
        item: its words, category and the box it was found by.
        mask: file, white on it, of the picture's size.
        box: around the mask.
        pixels: of the mask.
        person: (18, 3), whose pose it is; None for things and for people without a pose.
    """

    item: Item
    mask: Path
    box: Box
    pixels: int
    person: np.ndarray | None

    def read_mask(self) -> np.ndarray:
        """(H, W) bool."""
        return read_mask(self.mask)


@dataclass(frozen=True)
class Scene:
    """A picture with its caption and its subjects, in the caption's order. `key` changes when any of them would."""

    shot: Shot
    caption: str
    subjects: tuple[Subject, ...]
    key: str


def read_mask(path: Path) -> np.ndarray:
    """(H, W) bool."""
    with Image.open(path) as image:
        return np.array(image.convert("1"))


def write_mask(path: Path, mask: np.ndarray) -> None:
    """One bit a pixel."""
    with whole_file(path) as temporary:
        Image.fromarray(mask).save(temporary, format="PNG")


def describe(
    shots: Sequence[Shot], models: Models, work: Path, report: Report, refused: Refused
) -> list[tuple[Shot, Described]]:
    """The description of every picture that has one."""
    step = Step("captions", {"captioner": models.captioner.identity}, work)
    keys = {f"{shot.key}{models.captioner.version(shot.source)}": shot for shot in shots}

    def make(key: str) -> Mapping[str, Any]:
        shot = keys[key]
        return models.captioner.describe(shot.source, shot.picture()).as_json()

    found = []
    for key, event in step.run(keys, make, report).items():
        if "problem" in event:
            refused.setdefault(keys[key].name, []).append(event["problem"])
        else:
            found.append((keys[key], from_json(event)))
    return found


def find_poses(shots: Sequence[Shot], models: Models, work: Path, report: Report) -> dict[str, np.ndarray]:
    """The people of every picture, (P, 18, 3), by its key; none where nobody looks for them."""
    finder = models.poses
    if finder is None:
        return {}
    step = Step("poses", {"network": finder.identity}, work)
    by_key = {shot.key: shot for shot in shots}
    made = step.run(by_key, lambda key: {"people": finder.people(by_key[key].picture()).round(2).tolist()}, report)
    return {key: np.array(event["people"], dtype=np.float64).reshape(-1, 18, 3) for key, event in made.items()}


@dataclass(frozen=True)
class Found:
    """The items of a picture before they are masked; `people` has one entry an item."""

    shot: Shot
    caption: str
    items: tuple[Item, ...]
    people: tuple[np.ndarray | None, ...]

    @property
    def key(self) -> str:
        return f"{self.shot.key}-{digest([item.box for item in self.items])}"


def find_subjects(shot: Shot, described: Described, people: np.ndarray, config: BuildConfig, refused: Refused) -> Found:
    """Which items of a picture are wanted, the largest of them, with people's poses and faces."""
    items, problems = find_items(described, shot.width, shot.height, config.min_subject)
    if problems:
        refused.setdefault(shot.name, []).extend(problems)
    if config.faces:
        theirs = _owners(items, people)
        items = with_faces(items, people, theirs, shot.width, shot.height, config.min_subject)
    wanted = {*config.categories, *config.pair_categories}
    largest = sorted((item for item in items if item.category in wanted), key=lambda item: -area(item.box))
    kept = [item for item in items if item in largest[: config.max_subjects]]
    whose = [None if owner is None else people[owner] for owner in _owners(kept, people)]
    return Found(shot, described.caption, tuple(kept), tuple(whose))


def _owners(items: Sequence[Item], people: np.ndarray) -> list[int | None]:
    """Whose of the people each item is; things are nobody's."""
    persons = [number for number, item in enumerate(items) if item.category == PERSON]
    found: list[int | None] = [None] * len(items)
    if len(people):
        for number, owner in zip(persons, owners([items[number].box for number in persons], people), strict=True):
            found[number] = owner
    return found


def mask_subjects(
    found: Sequence[Found], models: Models, config: BuildConfig, work: Path, report: Report, refused: Refused
) -> tuple[Step, list[Scene]]:
    """The pictures with a mask for every item that SAM finds in its box."""
    step = Step("masks", {"sam": models.sam_identity}, work)
    by_key = {each.key: each for each in found if each.items}

    def make(key: str) -> Mapping[str, Any]:
        each = by_key[key]
        masks = _masks(models, each)
        for number, mask in enumerate(masks):
            write_mask(step.folder / f"{key}_{number}.png", mask)
        return {"masks": [{"box": box_of_mask(mask), "pixels": int(mask.sum())} for mask in masks]}

    scenes = []
    for key, event in step.run(by_key, make, report).items():
        name = by_key[key].shot.name
        if "problem" in event:
            refused.setdefault(name, []).append(event["problem"])
            continue
        subjects = _subjects(by_key[key], event["masks"], step.folder, config, refused.setdefault(name, []))
        if subjects:
            shown = [[subject.item.words, subject.item.category, subject.mask.name] for subject in subjects]
            scenes.append(
                Scene(by_key[key].shot, by_key[key].caption, subjects, f"{by_key[key].shot.key}-{digest(shown)}")
            )
    return step, scenes


def _masks(models: Models, found: Found) -> list[np.ndarray]:
    """What SAM shows in every item's box and nowhere else, (H, W) bool each."""
    try:
        seen = look_at(models.sam, found.shot.picture())
    except ValueError as error:
        raise ItemError(str(error)) from None
    masks = []
    for item in found.items:
        mask = prompted_logits(models.sam, seen, item.box) > 0
        within = torch.zeros_like(mask)
        left, top, right, bottom = (round(side) for side in item.box)
        within[top:bottom, left:right] = True
        mask = mask & within
        masks.append((without_specks(mask) if mask.any() else mask).cpu().numpy())
    return masks


def _subjects(
    found: Found, masks: Sequence[Mapping[str, Any]], folder: Path, config: BuildConfig, refused: list[str]
) -> tuple[Subject, ...]:
    subjects = []
    for number, (item, mask, person) in enumerate(zip(found.items, masks, found.people, strict=True)):
        if mask["box"] is None or mask["pixels"] < config.min_filled * area(item.box):
            refused.append(f"'{item.words}' was not found in its box")
        elif mask["pixels"] < config.min_subject * found.shot.width * found.shot.height:
            refused.append(f"'{item.words}' is too small")
        else:
            path = folder / f"{found.key}_{number}.png"
            subjects.append(Subject(item, path, tuple(mask["box"]), mask["pixels"], person))
    return tuple(subjects)
