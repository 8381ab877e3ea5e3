"""The same subject in two pictures: found by CLIP, verified by colours or by a model for faces (One-for-All's data).

One-for-All has a vision-language model judge whether two pictures show the same subject. Here a pair is verified by
measures that run anywhere, and then, where there is a workflow for it, by such a model too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...pose_db.factory import seed_of
from .colours import in_common
from .judge import QUESTION, same_subject
from .mining import Pair, same_subject_pairs
from .models import Remote
from .phrases import FACE
from .references import Crops, Looks, Reference, as_png
from .seeing import Scene
from .settings import BuildConfig
from .steps import Report, Step, digest


@dataclass(frozen=True)
class Sighting:
    """A subject of a scene."""

    scene: Scene
    number: int


@dataclass(frozen=True)
class Match:
    """Two sightings of one subject, in different pictures."""

    first: Sighting
    second: Sighting
    category: str
    similarity: float


def find_matches(
    scenes: Sequence[Scene], looks: Mapping[str, Looks], config: BuildConfig
) -> tuple[list[Match], dict[str, int]]:
    """The verified matches of every category, and how many candidates of each were refused."""
    matches: list[Match] = []
    refused: dict[str, int] = {}
    pictures = {scene.key: number for number, scene in enumerate(scenes)}
    thumbnails = torch.stack([scene.shot.thumbnail for scene in scenes]) if scenes else torch.zeros(0, 768)
    for category in config.pair_categories:
        seen = [
            Sighting(scene, number)
            for scene in scenes
            for number, subject in enumerate(scene.subjects)
            if subject.item.category == category and not subject.item.shared
        ]
        if len(seen) < 2:
            continue
        found = same_subject_pairs(
            torch.stack([looks[one.scene.key].clip[one.number] for one in seen]),
            torch.tensor([pictures[one.scene.key] for one in seen]),
            thumbnails,
            config.pair_similarity,
            config.neighbours,
            config.duplicates,
        )
        for pair in found:
            if _verified(pair, category, seen, looks, config):
                matches.append(Match(seen[pair.first], seen[pair.second], category, pair.similarity))
            else:
                refused[category] = refused.get(category, 0) + 1
    return matches, refused


def _verified(
    pair: Pair, category: str, seen: Sequence[Sighting], looks: Mapping[str, Looks], config: BuildConfig
) -> bool:
    one, other = seen[pair.first], seen[pair.second]
    first, second = looks[one.scene.key], looks[other.scene.key]
    if category == FACE and first.faces is not None and second.faces is not None:
        return float(first.faces[one.number] @ second.faces[other.number]) >= config.face_similarity
    return in_common(first.colours[one.number].numpy(), second.colours[other.number].numpy()) >= config.colours


def judged(
    matches: Sequence[Match], crops: Crops, judge: Remote, config: BuildConfig, work: Path, report: Report
) -> tuple[list[Match], dict[str, int]]:
    """The matches that a vision-language model agrees with, and how many of each category it does not."""
    step = Step("verdicts", {"judge": judge.identity, "question": QUESTION, "seed": config.seed}, work)
    by_key = {digest([_name(crops, match.first), _name(crops, match.second)]): match for match in matches}

    def make(key: str) -> Mapping[str, Any]:
        match = by_key[key]
        pictures = (as_png(_crop(crops, match.first)), as_png(_crop(crops, match.second)))
        seed = seed_of(config.seed, int(key, 16), 0)
        return {"same": same_subject(judge.client, judge.workflow, judge.nodes, *pictures, match.category, seed)}

    verdicts = step.run(by_key, make, report)
    agreed = [match for key, match in by_key.items() if verdicts[key]["same"]]
    return agreed, Counter(match.category for key, match in by_key.items() if not verdicts[key]["same"])


def _crop(crops: Crops, seen: Sighting) -> Reference:
    return crops[seen.scene.key][seen.number]


def _name(crops: Crops, seen: Sighting) -> str:
    """Changes when the crop does: its folder is named by all that decides about it."""
    path = _crop(crops, seen).picture
    return f"{path.parent.name}/{path.name}"
