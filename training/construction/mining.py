"""Which crops of different pictures show the same subject: mutual nearest neighbours above a threshold.

Two crops i, j are a pair where each is among the other's k most similar ones, and both are at least as similar as the
threshold. Crops of one picture, or of two pictures that are nearly the same, are no candidates: a pair of those would
teach copying. Similarities are made in blocks, never as a whole matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

BLOCK = 1024  # rows of similarities at once
GATHERED = 1 << 15  # pairs of thumbnails at once
THUMBNAIL = 16  # side of the small picture by which pictures are compared


@dataclass(frozen=True)
class Pair:
    """Crops `first` < `second` and the cosine between their embeddings."""

    first: int
    second: int
    similarity: float


def thumbnail(picture: torch.Tensor) -> torch.Tensor:
    """What a picture (H, W, 3) looks like from afar, (768,) float32: without its mean brightness, of length 1.

    Zero for a picture of one colour. The product of two is the correlation of the pictures; copies that were scaled,
    compressed or made brighter keep it near 1.
    """
    small = torch.nn.functional.interpolate(picture.float().movedim(-1, 0)[None], (THUMBNAIL, THUMBNAIL), mode="area")
    values = small.flatten() - small.mean()
    length = values.norm()
    return values / length if length > 1e-3 * values.numel() ** 0.5 else torch.zeros_like(values)


def mirrored(thumbnails: torch.Tensor) -> torch.Tensor:
    """The thumbnails (N, 768) of the mirrored pictures."""
    return thumbnails.reshape(-1, 3, THUMBNAIL, THUMBNAIL).flip(-1).reshape(thumbnails.shape)


def same_subject_pairs(
    embeddings: torch.Tensor,
    pictures: torch.Tensor,
    thumbnails: torch.Tensor,
    threshold: float,
    neighbours: int = 1,
    duplicate: float = 0.985,
    block: int = BLOCK,
) -> list[Pair]:
    """Pairs of crops that are likely to show one subject.

    Args:
        embeddings: (N, d) float32 of unit length, of crops of one category.
        pictures: (N,) int64, the picture of every crop.
        thumbnails: (P, 768) of the pictures.
        threshold: lowest cosine.
        neighbours: k.
        duplicate: correlation of thumbnails from which on two pictures count as one; 1 leaves copies be.

    Returns:
        The pairs by their crops' numbers. Of equally similar neighbours the one with the lower number is nearer.
    """
    nearest: list[dict[int, float]] = [{} for _ in range(len(embeddings))]
    for start in range(0, len(embeddings), block):
        similarity = embeddings[start : start + block] @ embeddings.T  # (block, N)
        likely = (similarity >= threshold) & (pictures[start : start + block, None] != pictures)
        rows, columns = likely.nonzero(as_tuple=True)
        values = similarity[rows, columns]
        new = torch.ones_like(rows, dtype=torch.bool)
        if duplicate < 1:
            new = ~_near_duplicates(thumbnails, pictures[rows + start], pictures[columns], duplicate)
        _take_nearest(nearest, rows[new] + start, columns[new], values[new], neighbours)
    return [
        Pair(first, second, similarity)
        for first, row in enumerate(nearest)
        for second, similarity in sorted(row.items())
        if first < second and first in nearest[second]
    ]


def _near_duplicates(thumbnails: torch.Tensor, first: torch.Tensor, second: torch.Tensor, limit: float) -> torch.Tensor:
    """(M,) bool: whether the pictures first[m] and second[m] are nearly the same, mirrored or not."""
    found = torch.zeros(len(first), dtype=torch.bool)
    for part in torch.arange(len(first)).split(GATHERED):
        one, other = thumbnails[first[part]], thumbnails[second[part]]
        found[part] = torch.maximum((one * other).sum(dim=1), (mirrored(one) * other).sum(dim=1)) >= limit
    return found


def _take_nearest(
    nearest: list[dict[int, float]], rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, count: int
) -> None:
    """Add the `count` most similar columns of every row to `nearest`."""
    order = np.lexsort((columns.numpy(), -values.numpy(), rows.numpy()))
    for row, column, value in zip(rows[order].tolist(), columns[order].tolist(), values[order].tolist(), strict=True):
        if len(nearest[row]) < count:
            nearest[row][column] = value
