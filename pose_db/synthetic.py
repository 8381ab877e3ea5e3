"""Vectors laid out as a pose database's embeddings, as many as somebody wants to measure with."""

from __future__ import annotations

import numpy as np

from .database import EMBEDDING_WIDTH, unit_length

VARIATIONS = 30  # of an action; and actions of a theme
_BLOCK = 4096  # entries whose random numbers are drawn together


class SyntheticEmbeddings:
    """Thirty variations around each action, thirty actions around each theme, all around one common direction.

    Two unrelated entries have a cosine near 0.2, two of one action near 0.7; a query has about 0.65 to its best entry, as a
    paraphrase has. Entries are the same whatever part of them is asked for.

    Args:
        count: entries.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        rng = np.random.default_rng([seed, 0])
        actions = max(1, count // VARIATIONS)
        themes = _directions(rng, max(1, actions // VARIATIONS))
        of_theme = themes[rng.integers(0, len(themes), actions)]
        self._centres = 0.5 * _directions(rng, 1) + 0.5 * of_theme + 0.7 * _directions(rng, actions)

    def entries(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, 384) float32, unit length."""
        blocks = [self._block(number) for number in range(start // _BLOCK, -(-stop // _BLOCK))]
        first = start // _BLOCK * _BLOCK
        return np.concatenate(blocks)[start - first : stop - first]

    def queries(self, count: int) -> np.ndarray:
        """(count, 384) float32, unit length."""
        rng = np.random.default_rng([self.seed, 2])
        return self._around(rng, rng.integers(0, len(self._centres), count), 0.9)

    def _block(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 1, number])
        return self._around(rng, np.arange(number * _BLOCK, (number + 1) * _BLOCK) % len(self._centres), 0.6)

    def _around(self, rng: np.random.Generator, chosen: np.ndarray, spread: float) -> np.ndarray:
        return unit_length(self._centres[chosen] + np.float32(spread) * _directions(rng, len(chosen)))


def _directions(rng: np.random.Generator, number: int) -> np.ndarray:
    return rng.standard_normal((number, EMBEDDING_WIDTH), dtype=np.float32) / np.float32(EMBEDDING_WIDTH**0.5)
