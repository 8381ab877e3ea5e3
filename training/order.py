"""In which order a training sees its samples: functions of the seed and of a number, without lists of what came before.

Nothing here keeps a count that a resumed run would have to restore, and nothing grows with the number of samples, so an
endless source is shuffled as well as four pictures.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

ROUNDS = 8
_MASK = 2**64 - 1


class Permutation:
    """A shuffled order of the numbers 0 <= i < size, computed number by number.

    A Feistel network permutes the next larger even power of two; numbers that fall outside the size are put through it
    again until they fall inside ("cycle walking").
    """

    def __init__(self, size: int, seed: int, purpose: str) -> None:
        self.size = size
        self._bits = max(1, ((size - 1).bit_length() + 1) // 2)  # of one half
        digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8 * ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * number : 8 * number + 8], "little") for number in range(ROUNDS)]

    def __call__(self, number: int) -> int:
        while True:
            number = self._network(number)
            if number < self.size:
                return number

    def _network(self, number: int) -> int:
        half = (1 << self._bits) - 1
        left, right = number >> self._bits, number & half
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & half)
        return left << self._bits | right


def _mixed(number: int) -> int:
    """A 64-bit number whose every bit depends on every bit of `number` (the finaliser of splitmix64)."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


@lru_cache(maxsize=1024)
def _permutation(size: int, seed: int, purpose: str) -> Permutation:
    return Permutation(size, seed, purpose)


def endless(size: int, seed: int, purpose: str, place: int) -> int:
    """What stands at `place` of an endless row: all numbers below `size` in shuffled order, then all of them again."""
    epoch, number = divmod(place, size)
    return _permutation(size, seed, f"{purpose}/{epoch}")(number)


def batch_place(counts: Sequence[int], seed: int, step: int, size: int) -> tuple[int, int]:
    """Batch number `step` when every batch is of one group: which group, and from which place of its endless row on.

    Each group of n members has floor((e + 1) n / size) - floor(e n / size) batches in epoch e, so it is never more than one
    batch behind n members an epoch, and no member waits while another of its group is taken twice. The batches of an
    epoch are shuffled.

    Args:
        counts: members of each group, none of them 0.
        size: of a batch.
    """

    def batches_before(epoch: int) -> int:
        return sum(epoch * count // size for count in counts)

    last = (step + len(counts)) * size // sum(counts) + 1  # an epoch that certainly starts after this step
    epoch = bisect_right(range(last + 1), step, key=batches_before) - 1
    first = batches_before(epoch)
    total = batches_before(epoch + 1) - first
    number = _permutation(total, seed, f"batches/{size}/{epoch}")(step - first)
    for group, count in enumerate(counts):
        before, after = epoch * count // size, (epoch + 1) * count // size
        if number < after - before:
            return group, (before + number) * size
        number -= after - before
    raise AssertionError("the batches of an epoch are those of its groups")


def dealt(weights: Sequence[int], seed: int, place: int) -> tuple[int, int]:
    """Which of several kinds stands at `place` of an endless row, and how many of its kind stand before it.

    Every sum(weights) places, counted from the first, hold each kind exactly as often as its weight says, shuffled.
    """
    deal, number = divmod(place, sum(weights))
    number = _permutation(sum(weights), seed, f"deals/{deal}")(number)
    for kind, weight in enumerate(weights):
        if number < weight:
            return kind, deal * weight + number
        number -= weight
    raise AssertionError("a deal is as long as its weights say")
