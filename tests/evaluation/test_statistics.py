"""Means and intervals against SciPy, closed forms and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from comfyui_ensemble.evaluation.statistics import estimate, estimate_groups


def test_one_seed_is_scipys_bootstrap_over_scenes() -> None:
    values = np.random.default_rng(1).exponential(size=40)
    found = estimate(values[None], resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_many_scenes_of_one_seed_have_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, size=400)
    found = estimate(values[None], resamples=20_000)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04 * half)


def test_seeds_and_scenes_vary_each_for_itself() -> None:
    """Of the additive table a_s + b_n the variance of the mean is var(a) / S + var(b) / N, whatever else is drawn."""
    random = np.random.default_rng(4)
    seeds, scenes = random.normal(0, 3.0, size=30), random.normal(0, 2.0, size=60)
    found = estimate(seeds[:, None] + scenes, resamples=20_000)
    deviation = (seeds.var() / 30 + scenes.var() / 60) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.05)


def test_missing_numbers_count_for_nothing() -> None:
    """Against the bootstrap written out in loops."""
    values = np.array([[1.0, np.nan, 3.0], [2.0, 5.0, np.nan]])
    found = estimate(values, resamples=20_000)
    assert found.mean == pytest.approx(11 / 4)
    random, means = np.random.default_rng(5), []
    while len(means) < 20_000:
        seeds, scenes = random.integers(2, size=2), random.integers(3, size=3)
        drawn = [values[seed, scene] for seed in seeds for scene in scenes if not np.isnan(values[seed, scene])]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05)


def test_the_same_numbers_give_the_same_interval() -> None:
    values = np.random.default_rng(6).normal(size=(3, 12))
    assert estimate(values) == estimate(values.copy())


def test_nothing_measured_is_said_so() -> None:
    assert np.isnan([estimate(np.full((2, 3), np.nan)).mean, estimate(np.full((2, 3), np.nan)).low]).all()


def test_groups_of_one_are_scipys_bootstrap() -> None:
    values = np.random.default_rng(7).exponential(size=60)
    found = estimate_groups(values, np.ones(60), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_groups_are_drawn_whole() -> None:
    """Against the bootstrap written out in loops, with groups of 0 to 3 scores."""
    groups = [[1.0], [2.0, 2.5, 9.0], [], [4.0, 1.0]]
    sums, counts = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    found = estimate_groups(sums, counts, resamples=20_000)
    assert found.mean == pytest.approx(19.5 / 6)
    random, means = np.random.default_rng(9), []
    filled = [group for group in groups if group]
    for _ in range(20_000):
        drawn = [score for number in random.integers(3, size=3) for score in filled[number]]
        means.append(sum(drawn) / len(drawn))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.06)


def test_copies_within_a_group_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(10).normal(size=50)
    once, often = estimate_groups(values, np.ones(50)), estimate_groups(7 * values, np.full(50, 7))
    assert (once.low, once.high) == pytest.approx((often.low, often.high))


def test_many_groups_need_little_memory_and_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(11).normal(2.0, 1.0, size=30_000)
    found = estimate_groups(values, np.ones(30_000), resamples=400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 30_000**0.5, rel=0.15)


def test_one_group_has_a_mean_and_no_interval() -> None:
    found = estimate_groups(np.array([3.0]), np.array([2]))
    assert found.mean == 1.5 and np.isnan([found.low, found.high]).all()
