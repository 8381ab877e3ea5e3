"""OKS of a picture as measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..pose_db.keypoints import PoseFrame
from .oks import person_scores, read_found, read_truth
from .oks_precision import People
from .results import Measurement


def oks_rows(blank: Measurement, names: Sequence[str], pose: PoseFrame, reference: PoseFrame) -> list[Measurement]:
    """One measurement for everybody in the reference; the first carries all people, for average precision.

    Args:
        blank: of the picture, without a score.
        names: of the reference's people, in their order; may be fewer.

    Raises:
        EvaluationError: see `oks.frame_scores`.
    """
    truth, notes = read_truth(reference)
    found = read_found(pose, reference)
    rows = [
        replace(blank, subject=_name(names, number), score=person.score, note=person.note)
        for number, person in enumerate(person_scores(found, truth, notes))
    ]
    first, *others = rows or [replace(blank, note="nobody is in the reference")]
    return [replace(first, people=People.of(found, truth).written()), *others]


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else f"person {number + 1}"
