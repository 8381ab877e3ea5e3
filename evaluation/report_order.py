"""Which pictures came out worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .results import Measurement


@dataclass(frozen=True)
class Shot:
    """A picture with all its scores.

    Attributes:
        standing: mean of its places among all pictures, metric for metric: 0 the worst of all, 1 the best of all.
    """

    key: str
    picture: str
    measurements: tuple[Measurement, ...]
    standing: float


def worst_first(measurements: Sequence[Measurement]) -> list[Shot]:
    """The pictures, those with the lowest places first; what could not be measured is below all that could."""
    shots: dict[tuple[str, str], list[Measurement]] = {}
    for each in measurements:
        shots.setdefault((each.key, each.picture), []).append(each)
    standings = _standings(list(shots.values()))
    found = [
        Shot(key, picture, tuple(chosen), standing)
        for ((key, picture), chosen), standing in zip(shots.items(), standings, strict=True)
    ]
    return sorted(found, key=lambda shot: shot.standing)  # stable: equals stay in their order


def _standings(shots: Sequence[Sequence[Measurement]]) -> list[float]:
    """For every picture the mean over its metrics of the place of its mean score, in [0, 1]."""
    metrics = dict.fromkeys(each.metric for shot in shots for each in shot)
    places = np.full((len(metrics), len(shots)), np.nan)
    for row, metric in enumerate(metrics):
        scores = [_score([each for each in shot if each.metric == metric]) for shot in shots]
        inside = [number for number, score in enumerate(scores) if score is not None]
        places[row, inside] = _places([score for score in scores if score is not None])
    return np.nanmean(places, axis=0).tolist()


def _score(measurements: Sequence[Measurement]) -> float | None:
    """A picture's mean score; -inf where somebody of it could not be measured, None where it has no such measurement."""
    if not measurements:
        return None
    there = [each.score for each in measurements if each.score is not None]
    return sum(there) / len(there) if len(there) == len(measurements) else -np.inf


def _places(scores: Sequence[float]) -> np.ndarray:
    """The place of every score among all, from 0 for the lowest to 1 for the highest; equal ones share theirs."""
    values = np.asarray(scores)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, "left")
    above = len(values) - np.searchsorted(ordered, values, "right")
    return (below + (len(values) - 1 - above)) / 2 / max(1, len(values) - 1)
