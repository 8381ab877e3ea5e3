"""Growth told from noise."""

from __future__ import annotations

import random

import pytest

from devtools.reliability.growth import growth, slope

PLACES = [20 * number for number in range(1, 24)]


def readings(leak: float = 0.0, noise: float = 5.0, seed: int = 0) -> list[float]:
    """Memory in MiB with a leak of so many MiB a workflow."""
    generator = random.Random(seed)
    return [1000 + leak * place + generator.gauss(0, noise) for place in PLACES]


def test_slope_against_a_line():
    assert slope([0, 1, 3], [5.0, 7.0, 11.0]) == 2.0
    assert slope([1, 1], [5.0, 7.0]) == 0.0


def test_one_outlier_does_not_matter():
    values = readings(noise=0)
    values[11] += 500
    assert slope(PLACES, values) == 0 and growth(PLACES, values).change == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_leak_is_seen_and_noise_is_not(seed):
    assert growth(PLACES, readings(leak=0.2, seed=seed)).grew(tolerated=24)  # a fifth of a MiB a workflow, 60 in all
    assert not growth(PLACES, readings(seed=seed)).grew(tolerated=24)


def test_what_falls_or_rises_by_little_did_not_grow():
    assert not growth(PLACES, readings(leak=-1)).grew(tolerated=24)
    assert not growth(PLACES, readings(leak=0.01, noise=0)).grew(tolerated=24)


def test_two_readings_say_nothing():
    with pytest.raises(ValueError, match="there are 2 readings"):
        growth([1, 2], [1.0, 2.0])
