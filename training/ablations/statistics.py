"""Means with confidence intervals over seeds and scenes.

All rows draw the same scenes with the same seeds, so a number is one of a table of seeds x scenes. Both are random and neither
lies within the other: the bootstrap draws seeds and scenes anew, each for itself (the pigeonhole bootstrap, Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 1, 2007), which is on the safe side. Differences of two rows are those of the
same seeds and scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 4_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and the ends of its interval; all nan where nothing was measured."""

    mean: float
    low: float
    high: float


def estimate(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean over seeds and scenes and its 95 % interval (percentiles of the bootstrap).

    Args:
        values: (seeds, scenes); nan where nothing could be measured, which counts for nothing.
    """
    there = ~np.isnan(values)
    if not there.any():
        return Estimate(float("nan"), float("nan"), float("nan"))
    plain = np.where(there, values, 0.0)
    random = np.random.default_rng(seed)
    seeds, scenes = (_counts(random, count, resamples) for count in values.shape)
    totals = np.einsum("rs,sn,rn->r", seeds, plain, scenes, optimize=True)
    numbers = np.einsum("rs,sn,rn->r", seeds, there.astype(np.float64), scenes, optimize=True)
    means = totals[numbers > 0] / numbers[numbers > 0]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(plain.sum() / there.sum()), float(low), float(high))


def _counts(random: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """How often each of `count` is drawn when so many are drawn with replacement, (resamples, count)."""
    return random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
