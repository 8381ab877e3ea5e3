"""Means with confidence intervals, by the bootstrap.

What varies together is drawn together. `estimate` is for a table of seeds x scenes that all rows have in common: both are random
and neither lies within the other, so seeds and scenes are drawn anew, each for itself (the pigeonhole bootstrap, Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 1, 2007), which is on the safe side. `estimate_groups` is for scores that
come in groups of any size, such as the subjects of a picture: whole groups are drawn anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 4_000
LEVEL = 0.95
BLOCK = 2_000_000  # numbers drawn at once


@dataclass(frozen=True)
class Estimate:
    """A mean, and the ends of its interval; nan where nothing was measured, the ends also where one group alone was."""

    mean: float
    low: float
    high: float


NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


def estimate(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over seeds and scenes and its 95 % interval (percentiles of the bootstrap).

    Args:
        values: (seeds, scenes); nan where nothing could be measured, which counts for nothing.
    """
    there = ~np.isnan(values)
    if not there.any():
        return NOTHING
    plain = np.where(there, values, 0.0)
    random = np.random.default_rng(seed)
    seeds, scenes = (_counts(random, count, resamples) for count in values.shape)
    totals = np.einsum("rs,sn,rn->r", seeds, plain, scenes, optimize=True)
    numbers = np.einsum("rs,sn,rn->r", seeds, there.astype(np.float64), scenes, optimize=True)
    return _interval(float(plain.sum() / there.sum()), totals, numbers)


def estimate_groups(sums: np.ndarray, counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over all scores and its 95 % interval (percentiles of the bootstrap over groups).

    Args:
        sums: (groups,) of each group's scores.
        counts: (groups,) how many scores each has; one with none counts for nothing.
    """
    there = counts > 0
    if not there.any():
        return NOTHING
    sums, counts = sums[there], counts[there]
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    totals, numbers = np.empty(resamples), np.empty(resamples)
    step = max(1, BLOCK // len(sums))
    for start in range(0, resamples, step):
        block = slice(start, min(start + step, resamples))
        drawn = random.integers(len(sums), size=(block.stop - start, len(sums)))
        totals[block], numbers[block] = sums[drawn].sum(axis=1), counts[drawn].sum(axis=1)
    return _interval(mean, totals, numbers)


def _counts(random: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """How often each of `count` is drawn when so many are drawn with replacement, (resamples, count)."""
    return random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _interval(mean: float, totals: np.ndarray, numbers: np.ndarray) -> Estimate:
    """Of what was drawn: totals and numbers of scores, (resamples,) each."""
    means = totals[numbers > 0] / numbers[numbers > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high))
