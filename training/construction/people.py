"""Whose pose is whose: the people that a pose detector found, given to the subjects that a captioner found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .boxes import Box, overlap

SEEN = 0.15  # confidence from which on a keypoint counts: hidden joints are found less surely
MIN_KEYPOINTS = 4
MIN_SHARE = 0.6  # of a person's keypoints that must lie in a subject's box
AROUND = 0.1  # of its size, by which the box around keypoints is grown: hair, hands and feet stand over


def owners(boxes: Sequence[Box], people: np.ndarray) -> list[int | None]:
    """For every box which of the people (P, 18, 3) is in it; nobody is in two.

    The assignment with the greatest sum, over its pairs, of the share of keypoints within the box times the overlap of the
    box with the one around the keypoints. The overlap tells two people apart whose boxes hold each other's keypoints.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    scores = np.array([[score(box, person) for person in people] for box in boxes]).reshape(len(boxes), len(people))
    rows, columns = linear_sum_assignment(scores, maximize=True)
    found: list[int | None] = [None] * len(boxes)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if scores[row, column] > 0:
            found[row] = column
    return found


def score(box: Box, person: np.ndarray) -> float:
    """How well a person (18, 3) fits a box, 0 to 1; 0 where most keypoints lie outside or few are seen."""
    points = person[person[:, 2] >= SEEN, :2]
    if len(points) < MIN_KEYPOINTS:
        return 0.0
    within = ((points >= box[:2]) & (points <= box[2:])).all(axis=1).mean()
    if within < MIN_SHARE:
        return 0.0
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    margin = AROUND * max(right - left, bottom - top)
    around = (float(left - margin), float(top - margin), float(right + margin), float(bottom + margin))
    return float(within) * overlap(box, around)
