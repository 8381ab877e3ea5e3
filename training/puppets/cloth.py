"""Patterns of cloth, in the coordinates of the part of the body that wears them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_CIRCLE = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=-1)


def spots(pattern: str, corners: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The second colour's polygons, (spots, points) complex, on a part of `rows` by `columns` cells.

    Args:
        pattern: ``striped``, ``checked`` or ``dotted``.
        corners: (4,) complex, both edges of the part at its start, then both at its end.
    """
    return _weights(pattern, rows, columns) @ corners


@lru_cache(maxsize=256)
def _weights(pattern: str, rows: int, columns: int) -> np.ndarray:
    """Every spot as corner weights (spots, points, 4), complex as the corners are: u runs along the part, v across."""
    shapes = {"striped": _stripes, "checked": _checks, "dotted": _dots}[pattern](rows, columns)
    u, v = shapes.clip(0, 1)[..., 0], shapes.clip(0, 1)[..., 1]
    return np.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v], axis=-1).astype(np.complex128)


def _box(u0: float, u1: float, v0: float, v1: float) -> list[tuple[float, float]]:
    return [(u0, v0), (u0, v1), (u1, v1), (u1, v0)]


def _stripes(rows: int, columns: int) -> np.ndarray:
    return np.array([_box((row + 0.3) / rows, (row + 0.75) / rows, 0, 1) for row in range(rows)])


def _checks(rows: int, columns: int) -> np.ndarray:
    return np.array(
        [
            _box(
                (row + 0.5 * (column % 2)) / rows,
                (row + 0.5 + 0.5 * (column % 2)) / rows,
                column / 2 / columns,
                (column + 1) / 2 / columns,
            )
            for row in range(rows)
            for column in range(2 * columns)
        ]
    )


def _dots(rows: int, columns: int) -> np.ndarray:
    middles = [
        ((row + 0.5) / rows, (column + 0.25 + 0.5 * (row % 2)) / columns)
        for row in range(rows)
        for column in range(columns)
    ]
    return np.array(middles)[:, None] + np.array([0.33 / rows, 0.27 / columns]) * _CIRCLE
