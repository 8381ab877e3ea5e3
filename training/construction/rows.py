"""Rows of the two manifests, from what was found in the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...attention_patches.item_spans import find_descriptions
from ..manifest_rows import ManifestRow, ManifestSubject
from .instances import Order, without_overlap
from .pairs import Match, Sighting
from .phrases import noun_of
from .references import Crops, Reference
from .seeing import Refused, Scene, write_mask
from .settings import BuildConfig
from .steps import Report, Step, digest


def subject_rows(
    scenes: Sequence[Scene],
    references: Mapping[tuple[str, int], Reference],
    config: BuildConfig,
    out: Path,
    step: Step,
    report: Report,
    refused: Refused,
) -> list[ManifestRow]:
    """A row for every picture with subjects of the manifest's categories, their masks without overlap.

    Args:
        references: by scene and subject; subjects without one are left out.
        out: the manifests' folder.
        step: makes the masks.
    """
    chosen: dict[str, tuple[Scene, list[int]]] = {}
    for scene in scenes:
        wanted = [
            number
            for number, subject in enumerate(scene.subjects)
            if subject.item.category in config.categories and (scene.key, number) in references
        ]
        if wanted:
            chosen[f"{scene.key}-{digest(wanted)}"] = scene, wanted
    made = step.run(chosen, lambda key: _separate(step.folder / key, *chosen[key], config.order), report)
    rows = []
    for key, event in made.items():
        scene, wanted = chosen[key]
        subjects = []
        for place, (number, visible) in enumerate(zip(wanted, event["visible"], strict=True)):
            if visible == 0 or visible < config.min_visible:
                refused.setdefault(scene.shot.name, []).append(
                    f"'{scene.subjects[number].item.words}' is hidden behind others"
                )
            else:
                mask = _instance(step.folder / key, place)
                subjects.append(_subject(Sighting(scene, number), references[scene.key, number], mask, out))
        rows += _row(scene, subjects, out, refused)
    return rows


def _separate(stem: Path, scene: Scene, numbers: Sequence[int], order: Order) -> Mapping[str, Any]:
    """Write the instance masks of some subjects of a scene; what share of its mask each of them keeps."""
    whole = np.stack([scene.subjects[number].read_mask() for number in numbers])
    parts = without_overlap(whole, order)
    for place, part in enumerate(parts):
        write_mask(_instance(stem, place), part)
    return {"visible": [float(now / was) for now, was in zip(parts.sum((1, 2)), whole.sum((1, 2)), strict=True)]}


def _instance(stem: Path, place: int) -> Path:
    return stem.with_name(f"{stem.name}_{place}.png")


def pair_rows(matches: Sequence[Match], crops: Crops, out: Path, refused: Refused) -> list[ManifestRow]:
    """Two rows a match: each sighting once as the target and once as the reference."""
    rows = []
    for match in matches:
        for target, other in ((match.first, match.second), (match.second, match.first)):
            reference = crops[other.scene.key][other.number]
            mask = target.scene.subjects[target.number].mask
            rows += _row(target.scene, [_subject(target, reference, mask, out)], out, refused)
    return rows


def _row(scene: Scene, subjects: Sequence[ManifestSubject], out: Path, refused: Refused) -> list[ManifestRow]:
    """The row of a picture; none where no subject is left whose words are its own."""
    words = {subject.description: subject.description for subject in subjects}
    described = {occurrence.name for occurrence in find_descriptions(scene.caption, words, [])}
    kept = [subject for subject in subjects if subject.description in described]
    for subject in subjects:
        if subject.description not in described:
            refused.setdefault(scene.shot.name, []).append(
                f"'{subject.description}' stands inside another subject's words"
            )
    if not kept:
        return []
    return [ManifestRow(_relative(scene.shot.path, out), scene.caption, tuple(_with_names(kept)))]


def _subject(seen: Sighting, reference: Reference, instance_mask: Path, out: Path) -> ManifestSubject:
    subject = seen.scene.subjects[seen.number]
    return ManifestSubject(
        reference=_relative(reference.picture, out),
        name=(noun_of(subject.item.words)[0].split() or [subject.item.category])[-1],
        description=subject.item.words,
        category=subject.item.category,
        mask=_relative(reference.mask, out),
        instance_mask=_relative(instance_mask, out),
        box=subject.box,
        pose=None if subject.person is None else {"pose_keypoints_2d": subject.person.reshape(-1).tolist()},
    )


def _with_names(subjects: Sequence[ManifestSubject]) -> list[ManifestSubject]:
    """The subjects with names of their own: dog, dog 2, dog 3."""
    named: list[ManifestSubject] = []
    for subject in subjects:
        taken = {other.name for other in named}
        names = [subject.name, *(f"{subject.name} {number}" for number in range(2, len(subjects) + 1))]
        named.append(replace(subject, name=next(name for name in names if name not in taken)))
    return named


def _relative(path: Path, out: Path) -> str:
    return path.relative_to(out).as_posix()
