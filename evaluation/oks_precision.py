"""COCO's average precision and recall of poses, over many pictures.

A found person is right at a threshold t where OKS with the person that they are matched with is at least t. Precision at
101 recalls, and recall, are averaged over t = 0.50, 0.55, ..., 0.95.

Source: cocodataset.org/#keypoints-eval. The numbers are those of pycocotools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .oks import Found, Truth, match, similarities

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
ALL, MEDIUM, LARGE = (0.0, 1e10), (32.0**2, 96.0**2), (96.0**2, 1e10)  # areas in pixels


@dataclass(frozen=True)
class Precision:
    """Average precision and recall; None where nobody counts.

    Attributes:
        ap, ar: over all thresholds.
        ap50, ap75, ar50, ar75: at one.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ar: float | None
    ar50: float | None
    ar75: float | None


@dataclass(frozen=True)
class _Judged:
    """The found people of one picture: (D,) scores, (T, D) whether right, (T, D) whether left out; and how many count."""

    scores: np.ndarray
    right: np.ndarray
    left_out: np.ndarray
    counting: int


def average_precision(pictures: Sequence[tuple[Found, Truth]], areas: tuple[float, float] = ALL) -> Precision:
    """Over pictures, of people whose area lies in a range."""
    judged = [_judge(found, truth, areas) for found, truth in pictures]
    people = sum(picture.counting for picture in judged)
    if not people:
        return Precision(None, None, None, None, None, None)
    order = np.argsort(-np.concatenate([picture.scores for picture in judged]), kind="stable")
    right = np.concatenate([picture.right for picture in judged], axis=1)[:, order]
    left_out = np.concatenate([picture.left_out for picture in judged], axis=1)[:, order]
    curves = [_curve(hits[~out], people) for hits, out in zip(right, left_out, strict=True)]
    precisions, recalls = np.array([curve[0] for curve in curves]), np.array([curve[1] for curve in curves])
    return Precision(
        *(float(values.mean()) for values in (precisions, precisions[0], precisions[5])),
        *(float(values.mean()) for values in (recalls, recalls[0], recalls[5])),
    )


def _judge(found: Found, truth: Truth, areas: tuple[float, float]) -> _Judged:
    low, high = areas
    ignored = truth.ignored | (truth.areas < low) | (truth.areas > high)
    scores = similarities(found.keypoints, truth)
    right, left_out = np.zeros((2, len(THRESHOLDS), len(found.scores)), dtype=bool)
    sizes = np.ptp(found.keypoints, axis=1).prod(axis=1)  # (D,)
    for row, threshold in enumerate(THRESHOLDS):
        for column, person in enumerate(match(scores, ignored, truth.crowd, threshold)):
            out = not low <= sizes[column] <= high if person is None else bool(ignored[person])
            left_out[row, column] = out
            right[row, column] = person is not None and not out
    return _Judged(found.scores, right, left_out, int((~ignored).sum()))


def _curve(right: np.ndarray, people: int) -> tuple[np.ndarray, float]:
    """Precision at the 101 recalls (101,), and the recall, of found people (D,) bool, the surest first."""
    if not len(right):
        return np.zeros(len(RECALLS)), 0.0
    hits = np.cumsum(right)
    recall = hits / people
    precision = hits / (np.arange(1, len(right) + 1) + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the best at this recall or a higher one
    places = np.searchsorted(recall, RECALLS, side="left")
    return np.append(best, 0.0)[places], float(recall[-1])
