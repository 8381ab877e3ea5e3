"""Numbers of a test picture, from its pixels alone: means over its puppets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from ..puppets import Scene, measure, routing_iou
from ..puppets.likeness import part_scores
from ..puppets.references import ITEM_PARTS
from .table import Drawn


def puppet_measures(drawn: Drawn) -> dict[str, float]:
    """`puppets.measure`, and routing IoU where routers said where everybody is."""
    found = [asdict(each) for each in measure(drawn.picture, drawn.truth)]
    means = {name: mean([each[name] for each in found]) for name in found[0]}
    if drawn.masks is not None:
        means["routing_iou"] = mean(routing_iou(drawn.masks, drawn.truth))
    return means


def thing_measures(drawn: Drawn, categories: Sequence[str]) -> dict[str, float]:
    """Likeness of the face and of the other things of the scene's one puppet, of those categories that were given as references."""
    scores = part_scores(drawn.picture, drawn.truth, 0)
    found = {
        category: mean([scores[part] for part in ITEM_PARTS[category] if part in scores]) for category in categories
    }
    return {
        "face": found.get("face", float("nan")),
        "garments": mean([value for category, value in found.items() if category != "face"]),
    }


def part_measures(drawn: Drawn, changed: str) -> dict[str, float]:
    """Likeness of one part of the scene's one puppet, and of the others, each by the square root of its area."""
    scores = part_scores(drawn.picture, drawn.truth, 0)
    kept = {part: score for part, score in scores.items() if part != changed}
    return {"changed": scores.get(changed, float("nan")), "kept": _by_size(kept, drawn.truth)}


def mean(values: Sequence[float]) -> float:
    """Of what is there; nan where nothing is."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")


def _by_size(scores: Mapping[str, float], scene: Scene) -> float:
    if not scores:
        return float("nan")
    weights = [float(scene.mask(0, (part,)).sum()) ** 0.5 for part in scores]
    return float(np.average(list(scores.values()), weights=weights))
