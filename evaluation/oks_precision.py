"""COCO's average precision and recall of poses, over many pictures.

A found person is right at a threshold t where OKS with the person that they are matched with is at least t. Precision at
101 recalls, and recall, are averaged over t = 0.50, 0.55, ..., 0.95.

Source: cocodataset.org/#keypoints-eval. The numbers are those of pycocotools for people of all sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import EvaluationError
from .oks import Found, Truth, match, similarities
from .results import Measurement

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
NAMES = ("AP", "AP50", "AP75", "AR", "AR50", "AR75")  # over all thresholds, at 0.5, at 0.75


@dataclass(frozen=True)
class People:
    """Everybody in a picture: who was found, against who should be there.

    Attributes:
        scores: (D,) how sure each found person is, the surest first.
        similarities: (D, G) OKS of every found person with everybody who should be there.
        ignored: (G,) bool, people who do not count.
        crowd: (G,) bool, crowds, which several people may be found in.
    """

    scores: np.ndarray
    similarities: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, found: Found, truth: Truth) -> People:
        return cls(found.scores, similarities(found.keypoints, truth), truth.ignored, truth.crowd)

    @classmethod
    def read(cls, values: Mapping[str, Any], key: str) -> People:
        """What `written` wrote with a picture.

        Raises:
            EvaluationError: somebody changed it.
        """
        try:
            ignored, crowd = (np.array(values[name], dtype=bool).reshape(-1) for name in ("ignored", "crowd"))
            scores = np.array(values["scores"], dtype=np.float64).reshape(-1)
            matrix = np.array(values["similarities"], dtype=np.float64).reshape(len(scores), len(ignored))
            sound = len(crowd) == len(ignored) and np.isfinite(scores).all() and np.isfinite(matrix).all()
        except (KeyError, TypeError, ValueError, OverflowError):
            sound = False
        if not sound:
            raise EvaluationError(f"the people of the picture '{key}' are damaged; measure it again")
        return cls(scores, matrix, ignored, crowd)

    def written(self) -> dict[str, Any]:
        """As a measurement carries it."""
        return {name: values.tolist() for name, values in vars(self).items()}


def precision_of(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Average precision and recall by their `NAMES` of measurements of OKS; empty where not all of them came with their people."""
    pictures = [People.read(each.people, each.key) for each in measurements if each.people is not None]
    counting = sum(int((~picture.ignored).sum()) for picture in pictures)
    return average_precision(pictures) if counting == sum(each.score is not None for each in measurements) else {}


def average_precision(pictures: Sequence[People]) -> dict[str, float]:
    """Over pictures, by `NAMES`; empty where nobody counts."""
    people = sum(int((~picture.ignored).sum()) for picture in pictures)
    if not people:
        return {}
    order = np.argsort(-np.concatenate([picture.scores for picture in pictures]), kind="stable")
    judged = [_judge(picture) for picture in pictures]
    right, left_out = (np.concatenate(each, axis=1)[:, order] for each in zip(*judged, strict=True))
    curves = [_curve(hits[~out], people) for hits, out in zip(right, left_out, strict=True)]
    precisions, recalls = np.array([curve[0].mean() for curve in curves]), np.array([curve[1] for curve in curves])
    values = [each for row in (precisions, recalls) for each in (row.mean(), row[0], row[5])]
    return dict(zip(NAMES, map(float, values), strict=True))


def _judge(picture: People) -> tuple[np.ndarray, np.ndarray]:
    """Whether the found people of a picture are right, and whether they are left out, (T, D) bool each."""
    right, left_out = np.zeros((2, len(THRESHOLDS), len(picture.scores)), dtype=bool)
    for row, threshold in enumerate(THRESHOLDS):
        for column, person in enumerate(match(picture.similarities, picture.ignored, picture.crowd, threshold)):
            left_out[row, column] = person is not None and picture.ignored[person]
            right[row, column] = person is not None and not picture.ignored[person]
    return right, left_out


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
