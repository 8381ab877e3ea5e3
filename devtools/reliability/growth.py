"""Whether a row of readings grows."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000
TAIL = 0.025  # on either side: a 95 % interval


@dataclass(frozen=True)
class Growth:
    """How readings changed over a run.

    Attributes:
        first, last: medians of the first and of the last third.
        slope: the median of the slopes between all pairs of readings (Theil-Sen), per unit of their places.
        low, high: its 95 % interval, by resampling the readings.
    """

    first: float
    last: float
    slope: float
    low: float
    high: float

    @property
    def change(self) -> float:
        """From the first third to the last."""
        return self.last - self.first

    def grew(self, tolerated: float) -> bool:
        """Whether they rose by more than `tolerated`, and not by chance."""
        return self.change > tolerated and self.low > 0


def slope(places: Sequence[float], readings: Sequence[float]) -> float:
    """The median of the slopes between all pairs of readings at different places; 0 where there is no such pair."""
    pairs = [
        (readings[right] - readings[left]) / (places[right] - places[left])
        for left in range(len(places))
        for right in range(left + 1, len(places))
        if places[right] != places[left]
    ]
    return statistics.median(pairs) if pairs else 0.0


def growth(places: Sequence[float], readings: Sequence[float], seed: int = 0) -> Growth:
    """How readings, taken at increasing places, changed.

    Raises:
        ValueError: there are fewer than three readings.
    """
    if len(readings) < 3:
        raise ValueError(f"there are {len(readings)} readings; growth takes three")
    third = max(1, len(readings) // 3)
    generator = random.Random(seed)
    slopes = []
    for _ in range(RESAMPLES):
        chosen = generator.choices(range(len(readings)), k=len(readings))
        slopes.append(slope([places[n] for n in chosen], [readings[n] for n in chosen]))
    slopes.sort()
    cut = int(TAIL * RESAMPLES)
    return Growth(
        first=statistics.median(readings[:third]),
        last=statistics.median(readings[-third:]),
        slope=slope(places, readings),
        low=slopes[cut],
        high=slopes[-cut - 1],
    )
