"""Draws that a seed decides, alike on every machine."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Random choices of one purpose. Only `random.Random.random` is used: Python promises its numbers for all versions."""

    def __init__(self, *purpose: object) -> None:
        """The draws depend on nothing but `purpose`, such as a seed, a word and a number."""
        digest = hashlib.blake2b("/".join(map(str, purpose)).encode(), digest_size=8).digest()
        self._next = random.Random(int.from_bytes(digest, "little")).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        drawn = int(count * self._next())
        return drawn if drawn < count else count - 1  # where the product is rounded up

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def chance(self, share: float) -> bool:
        return self._next() < share

    def shuffled(self, items: Sequence[T]) -> list[T]:
        keys = [self._next() for _ in items]
        return [items[index] for index in sorted(range(len(items)), key=keys.__getitem__)]
