"""Does a picture show what its prompt says? ASTRA's curation score (section 3.1).

    S = w_s S_subject + w_i S_interaction + w_d S_detail

A vision-language model answers a structured question with the three parts. The weights, non-negative and with sum 1,
are fitted by least squares to people's own scores, the threshold by the best F1 against people's own decisions.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PARTS = ("subject", "interaction", "detail")
# Starting values until somebody fits their own: who and what they do go before details, as the paper found.
DEFAULT_WEIGHTS = (0.4, 0.4, 0.2)
DEFAULT_THRESHOLD = 0.7
TOP_MARK = 10  # of the question's scale

QUESTION = """You check whether a picture shows what its prompt says.
Prompt: "%prompt%"

First describe in a few sentences what you see and what differs from the prompt. Then rate, each on a continuous scale
from 0 (not at all) to 10 (fully); decimals are welcome:
- subject: the right number of people or animals, of the right kind, age and sex, each one whole;
- interaction: they do what the prompt says, with each other and with things, in a way that is physically possible;
- detail: place, camera, clothing, objects and everything else the prompt names.
Do not let one rating influence another.

End with one line of JSON and nothing after it:
{"subject": <number>, "interaction": <number>, "detail": <number>}"""


def structured_question(prompt: str) -> str:
    """The question about one picture, for any model that sees pictures and writes text."""
    return QUESTION.replace("%prompt%", " ".join(prompt.split()).replace('"', "'"))


def parse_answer(text: str) -> tuple[float, float, float]:
    """Subject, interaction and detail, each 0 to 1, from a model's answer.

    The last JSON object that has all three counts; without one, the last "subject: 7", "Interaction - 8.5/10" and so
    on.

    Raises:
        ValueError: one is missing or not between 0 and 10; one sentence.
    """
    marks = _marks_in_json(text) or _marks_in_words(text)
    missing = [part for part in PARTS if part not in marks]
    if missing:
        raise ValueError(
            f"the answer gives no rating for {' and '.join(missing)}; ask the model the structured question"
        )
    for part in PARTS:
        if not 0 <= marks[part] <= TOP_MARK:
            raise ValueError(f"the answer rates {part} with {marks[part]:g}, which is not between 0 and {TOP_MARK}")
    return marks["subject"] / TOP_MARK, marks["interaction"] / TOP_MARK, marks["detail"] / TOP_MARK


def _marks_in_json(text: str) -> dict[str, float]:
    for candidate in reversed(re.findall(r"\{[^{}]*\}", text)):
        try:
            found = {str(key).strip().lower(): value for key, value in json.loads(candidate).items()}
            return {part: float(found[part]) for part in PARTS}
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return {}


def _marks_in_words(text: str) -> dict[str, float]:
    marks = {}
    for part in PARTS:
        pattern = rf"\b{part}\b[^\d\n-]*?[:=\-–]\s*\**\s*(-?\d+(?:\.\d+)?)\s*\**\s*(?:(?:/|out of)\s*(\d+))?"
        for value, scale in re.findall(pattern, text, re.IGNORECASE):
            marks[part] = float(value) * (TOP_MARK / float(scale) if scale and float(scale) > 0 else 1.0)
    return marks


def alignment_score(parts: np.ndarray | Sequence[float], weights: Sequence[float] = DEFAULT_WEIGHTS) -> np.ndarray:
    """S = w_s S_subject + w_i S_interaction + w_d S_detail; parts (..., 3) give (...)."""
    return np.asarray(parts, dtype=np.float64) @ np.asarray(weights, dtype=np.float64)


def parse_weights(text: str) -> tuple[float, float, float]:
    """ "0.4, 0.4, 0.2" as three weights with sum 1.

    Raises:
        ValueError: they are not three non-negative numbers of which one is more than 0; one sentence.
    """
    try:
        values = [float(word) for word in re.split(r"[,;\s]+", text.strip())]
    except ValueError:
        values = []
    if len(values) != len(PARTS) or not np.isfinite(values).all() or min(values) < 0 or sum(values) <= 0:
        raise ValueError(f"'{text}' is not three weights; write subject, interaction and detail as in 0.4, 0.4, 0.2")
    subject, interaction, detail = (value / sum(values) for value in values)
    return subject, interaction, detail


def fit_weights(parts: np.ndarray, human: np.ndarray) -> np.ndarray:
    """Weights w >= 0 with sum(w) = 1 that minimise |P w - h|², exactly.

    Every set of weights that may be positive is solved with the sum as an equality; the best solution without a
    negative weight is the optimum, because the optimum itself is the solution on its own set. For three weights these
    are seven small systems.

    Args:
        parts: P, (n, k) scores.
        human: h, (n,) scores of people on the same scale.

    Returns:
        (k,) weights.
    """
    parts, human = np.asarray(parts, dtype=np.float64), np.asarray(human, dtype=np.float64)
    count = parts.shape[1]
    best, smallest = np.zeros(count), np.inf
    for size in range(1, count + 1):
        for support in itertools.combinations(range(count), size):
            weights = np.zeros(count)
            weights[list(support)] = _solve_on(parts[:, support], human)
            error = float(((parts @ weights - human) ** 2).sum())
            if weights.min() >= 0 and error < smallest:
                best, smallest = weights, error
    return best


def _solve_on(parts: np.ndarray, human: np.ndarray) -> np.ndarray:
    """Least squares with sum(w) = 1: the last weight is 1 minus the others."""
    last = parts[:, -1]
    others = np.linalg.lstsq(parts[:, :-1] - last[:, None], human - last, rcond=None)[0]
    return np.append(others, 1.0 - others.sum())


@dataclass(frozen=True)
class F1Curve:
    """Precision, recall and F1 of "score >= threshold", (m,) each, at every threshold that changes a decision."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> int:
        """Position of the best F1; of equals the highest threshold, which is the more precise one."""
        return int(np.flatnonzero(self.f1 == self.f1.max())[-1])


def f1_curve(scores: np.ndarray, accepted: np.ndarray) -> F1Curve:
    """The curve of scores (n,) against decisions (n,) bool.

    Raises:
        ValueError: nothing was accepted, so that no threshold is right.
    """
    scores, accepted = np.asarray(scores, dtype=np.float64), np.asarray(accepted, dtype=bool)
    if not accepted.any():
        raise ValueError("nothing was accepted, so no threshold can be found; score some good ones too")
    thresholds = np.unique(scores)
    taken = scores[None] >= thresholds[:, None]  # (m, n)
    hits = (taken & accepted).sum(1)
    precision, recall = hits / taken.sum(1), hits / accepted.sum()
    return F1Curve(thresholds, precision, recall, 2 * hits / (taken.sum(1) + accepted.sum()))


@dataclass(frozen=True)
class AlignmentFit:
    """Fitted weights (3,) and threshold, with what they were fitted to: scores (n,), human (n,) and the F1 curve."""

    weights: np.ndarray
    threshold: float
    scores: np.ndarray
    human: np.ndarray
    curve: F1Curve


def fit_alignment(parts: np.ndarray, human: np.ndarray, accepted: np.ndarray) -> AlignmentFit:
    """Weights, then the threshold on the score they give.

    Args:
        parts: (n, 3) in [0, 1].
        human: (n,) in [0, 1].
        accepted: (n,) bool, what people would keep.
    """
    weights = fit_weights(parts, human)
    scores = alignment_score(parts, weights.tolist())
    curve = f1_curve(scores, accepted)
    return AlignmentFit(
        weights, float(curve.thresholds[curve.best()]), scores, np.asarray(human, dtype=np.float64), curve
    )


def read_scores(path: Path, scale: float = 1.0, accept_at: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts (n, 3), human scores (n,) and decisions (n,) from a CSV file.

    Args:
        path: columns subject, interaction, detail, human, and accepted (0 or 1) where people decided too.
        scale: the highest score of the file; everything is divided by it.
        accept_at: where there is no column accepted, people are taken to accept from this share of the scale on.

    Raises:
        ValueError: a column is missing, or a row holds no number or one outside the scale; one sentence.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = (*PARTS, "human")
    missing = [column for column in columns if not rows or rows[0].get(column) is None]
    if missing:
        raise ValueError(f"{path.name} has no column {' and '.join(missing)}; its first line must name the columns")
    decided = rows[0].get("accepted") is not None
    values = np.array(
        [_row(row, (*columns, *(["accepted"] if decided else [])), number, path) for number, row in enumerate(rows, 2)]
    )
    marks = values[:, :4] / scale
    if marks.min() < 0 or marks.max() > 1:
        raise ValueError(f"{path.name} has a score that is not between 0 and {scale:g}; say the scale with --scale")
    accepted = values[:, 4] > 0 if decided else marks[:, 3] >= accept_at
    return marks[:, :3], marks[:, 3], accepted


def _row(row: dict[str, str], columns: Sequence[str], number: int, path: Path) -> list[float]:
    try:
        values = [float(row[column]) for column in columns]
    except (TypeError, ValueError):
        values = [float("nan")]
    if not np.isfinite(values).all():
        raise ValueError(f"{path.name}, line {number}: a score is missing or not a number")
    return values
