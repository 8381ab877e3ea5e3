"""The order of samples: what holds of a shuffled order, checked by counting."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from comfyui_ensemble.training.order import Permutation, batch_place, dealt, endless


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097])
def test_a_permutation_has_every_number_once(size: int):
    order = Permutation(size, 3, "test")
    assert sorted(map(order, range(size))) == list(range(size))


def test_permutations_differ_by_seed_and_purpose_and_repeat_otherwise():
    def order(seed: int, purpose: str) -> list[int]:
        return list(map(Permutation(50, seed, purpose), range(50)))

    assert order(0, "a") == order(0, "a")
    assert len({tuple(order(seed, purpose)) for seed in range(5) for purpose in "ab"}) == 10


@pytest.mark.parametrize("size", [3, 4])
def test_all_orders_of_a_few_are_equally_likely(size: int):
    runs = 6000
    counts = Counter(tuple(map(Permutation(size, seed, "x"), range(size))) for seed in range(runs))
    expected = runs / math.factorial(size)
    assert len(counts) == math.factorial(size)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = math.factorial(size) - 1
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [7, 16, 33])
def test_every_number_is_equally_likely_at_every_place(size: int):
    runs = 3000
    orders = [[*map(Permutation(size, seed, "x"), range(size))] for seed in range(runs)]
    counts = Counter((place, value) for order in orders for place, value in enumerate(order))
    expected = runs / size
    chi_squared = sum(
        (counts[place, value] - expected) ** 2 / expected for place in range(size) for value in range(size)
    )
    freedom = (size - 1) ** 2
    assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)


def test_neighbours_are_not_kept_together():
    order = [*map(Permutation(1000, 0, "x"), range(1000))]
    steps = Counter(after - before for before, after in itertools.pairwise(order))
    assert max(steps.values()) < 12


def test_an_endless_row_is_epochs_in_new_orders():
    row = [endless(10, 5, "rows", place) for place in range(50)]
    epochs = [row[start : start + 10] for start in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_a_source_without_end_costs_nothing():
    size = 10**18
    seen = [endless(size, 0, "rows", place) for place in range(100)]
    assert len(set(seen)) == 100 and min(seen) < size / 4 and max(seen) > size * 3 / 4


def brute_force(counts: list[int], size: int, steps: int) -> list[Counter]:
    """How many batches of each group lie in each epoch, by walking through the epochs."""
    epochs, done, epoch = [], [0] * len(counts), 0
    while sum(map(sum, (counter.values() for counter in epochs))) < steps:
        epoch += 1
        now = [epoch * count // size for count in counts]
        epochs.append(
            Counter({group: now[group] - done[group] for group in range(len(counts)) if now[group] > done[group]})
        )
        done = now
    return epochs


def test_batches_are_of_one_group_and_take_its_members_in_turn():
    draw = random.Random(0)
    for _ in range(40):
        counts = [draw.randint(1, 40) for _ in range(draw.randint(1, 6))]
        size, steps = draw.randint(1, 12), 150
        places = [batch_place(tuple(counts), 7, step, size) for step in range(steps)]
        for group in range(len(counts)):
            starts = sorted(start for its, start in places if its == group)
            assert all(start % size == 0 for start in starts) and len(set(starts)) == len(starts)
        start = 0
        for epoch in brute_force(counts, size, steps):
            length = sum(epoch.values())
            if start + length > steps:
                break
            assert Counter(group for group, _ in places[start : start + length]) == epoch
            start += length


def test_every_member_comes_once_an_epoch_as_nearly_as_the_groups_allow():
    counts, size, epochs = (23, 9, 1, 40), 4, 30
    steps = sum(epochs * count // size for count in counts)
    seen: Counter = Counter()
    for step in range(steps):
        group, start = batch_place(counts, 1, step, size)
        seen.update((group, endless(counts[group], 1, f"rows/{group}", place)) for place in range(start, start + size))
    for group, count in enumerate(counts):
        assert all(epochs - math.ceil(size / count) <= seen[group, member] <= epochs for member in range(count))


def test_the_order_of_an_epochs_batches_is_shuffled():
    groups = [batch_place((400, 400), 0, step, 4)[0] for step in range(200)]
    runs = sum(1 for one, other in itertools.pairwise(groups) if one != other)
    assert 70 < runs < 130


def test_a_deal_holds_every_kind_as_often_as_its_weight():
    weights = (2, 2, 2, 1)
    row = [dealt(weights, 9, place) for place in range(7 * 40)]
    deals = [row[start : start + 7] for start in range(0, len(row), 7)]
    assert all(Counter(kind for kind, _ in deal) == Counter({0: 2, 1: 2, 2: 2, 3: 1}) for deal in deals)
    assert len({tuple(kind for kind, _ in deal) for deal in deals}) > 30
    for kind in range(4):
        numbers = [number for its, number in row if its == kind]
        assert sorted(numbers) == list(range(len(numbers)))  # each of its kind is counted once
