"""How near people are to the pose they should have: COCO's object keypoint similarity (OKS), person by person.

For a found person d and a labelled one g, over the K keypoints that are labelled in g (all 17 where none is):

    OKS(d, g) = 1/K Σ_i exp(-e_i),   e_i = |d_i - g_i|² / (2 area_g (2 σ_i)²)

Where none is labelled, the distance is the one to g's box, grown by its own size on every side. Who is whom is settled as
COCO's evaluation does: the surest found person first takes the nearest person left, crowds may be taken again, people who
do not count are taken only when nobody else is left.

Source: Lin et al., "Microsoft COCO", ECCV 2014; cocodataset.org/#keypoints-eval. The numbers are those of pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..pose_db.exchange import COCO_KEYPOINTS, body_people
from ..pose_db.keypoints import KEYPOINT_INDEX, PoseFrame
from .errors import EvaluationError

_SIGMA = {"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062}
_SIGMA |= {"hip": 0.107, "knee": 0.087, "ankle": 0.089}
SIGMAS = np.array([_SIGMA[name.rpartition("_")[2]] for name in COCO_KEYPOINTS])  # (17,)
MOST_FOUND = 20  # of the people found in a picture the surest that count, as COCO has it
BODY_SHARE = 0.53  # of the box around keypoints that a body covers, where no area is known: CrowdPose's rule
SAME_SHAPE = 0.05  # by how much width / height of two canvases may differ
_FROM_BODY_18 = [KEYPOINT_INDEX[name] for name in COCO_KEYPOINTS]


@dataclass(frozen=True)
class Found:
    """People found in a picture, the surest first.

    Attributes:
        keypoints: (D, 17, 2) in pixels; (0, 0) for one that was not found, as in COCO's results.
        scores: (D,) how sure.
        order: (D,) which of the people given each one is.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, people: np.ndarray, scores: np.ndarray | None = None) -> Found:
        """From people (P, 17, 3) with confidences, whose mean is the score where none is given."""
        sure = people[..., 2].mean(axis=1) if scores is None else np.asarray(scores, dtype=np.float64)
        order = np.argsort(-sure, kind="stable")[:MOST_FOUND]
        positions = np.where(people[..., 2:] > 0, people[..., :2], 0.0)
        return cls(positions[order], sure[order], order)


@dataclass(frozen=True)
class Truth:
    """The people who should be in a picture.

    Attributes:
        keypoints: (G, 17, 3), the last being above 0 where labelled.
        areas: (G,) of their bodies in pixels.
        boxes: (G, 4) x, y, width and height.
        ignored: (G,) bool, people who do not count.
        crowd: (G,) bool, crowds, which several people may be found in.
    """

    keypoints: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class PersonScore:
    """How near a person of the reference came.

    Attributes:
        score: 0 where nobody was found for them; None where they do not count.
        found: which of the found people it was.
        note: why there is no score.
    """

    score: float | None
    found: int | None = None
    note: str = ""


def similarities(found: np.ndarray, truth: Truth) -> np.ndarray:
    """OKS of every found person (D, 17, 2) with every one of the truth: (D, G)."""
    scores = np.zeros((len(found), len(truth.areas)))
    for number, (keypoints, area, box) in enumerate(zip(truth.keypoints, truth.areas, truth.boxes, strict=True)):
        labelled = keypoints[:, 2] > 0
        away = found - keypoints[:, :2] if labelled.any() else _away_from(found, box)  # (D, 17, 2)
        error = (away**2).sum(axis=-1) / (2 * SIGMAS) ** 2 / (area + np.spacing(1)) / 2  # (D, 17)
        scores[:, number] = np.exp(-error[:, labelled if labelled.any() else slice(None)]).mean(axis=1)
    return scores


def _away_from(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Distance in x and y of points (..., 2) to a box that is grown by its own size on every side."""
    corner, size = box[:2], box[2:]
    return np.maximum(corner - size - points, 0) + np.maximum(points - (corner + 2 * size), 0)


def match(scores: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, threshold: float = 0.0) -> list[int | None]:
    """Who is whom, by COCO's rule.

    Args:
        scores: (D, G) similarities, the surest found person first.
        ignored, crowd: (G,) bool.
        threshold: the least similarity of a pair.

    Returns:
        For every found person one of the truth, or None.
    """
    order = np.argsort(ignored, kind="stable").tolist()
    taken: set[int] = set()
    matches: list[int | None] = []
    for row in scores:
        chosen = _nearest(row, [person for person in order if person not in taken or crowd[person]], ignored, threshold)
        matches.append(chosen)
        if chosen is not None:
            taken.add(chosen)
    return matches


def _nearest(row: np.ndarray, people: Sequence[int], ignored: np.ndarray, threshold: float) -> int | None:
    """Of equally near people the last; those who do not count, which come last, only where no other is near enough."""
    chosen, best = None, min(threshold, 1 - 1e-10)
    for person in people:
        if chosen is not None and not ignored[chosen] and ignored[person]:
            break
        if row[person] >= best:
            chosen, best = person, row[person]
    return chosen


def person_scores(found: Found, truth: Truth, notes: Sequence[str] = ()) -> list[PersonScore]:
    """The score of everybody in the truth.

    Args:
        notes: why a person does not count; one for each.
    """
    scores = similarities(found.keypoints, truth)
    pairs = {}
    for number, person in enumerate(match(scores, truth.ignored, truth.crowd)):
        if person is not None:
            pairs.setdefault(person, number)
    return [
        PersonScore(None, note=notes[person] if notes else "does not count")
        if truth.ignored[person]
        else _person_score(person, pairs.get(person), found, scores)
        for person in range(len(truth.areas))
    ]


def _person_score(person: int, number: int | None, found: Found, scores: np.ndarray) -> PersonScore:
    if number is None:
        return PersonScore(0.0, note="nobody was found for them")
    return PersonScore(float(scores[number, person]), int(found.order[number]))


def frame_scores(pose: PoseFrame, reference: PoseFrame) -> list[PersonScore]:
    """How near the people of a picture's pose come to those of a reference: one score for each of the reference's.

    Raises:
        EvaluationError: a frame is damaged, or the canvases are of different shapes; one sentence with its remedy.
    """
    truth, notes = read_truth(reference)
    return person_scores(read_found(pose, reference), truth, notes)


def read_found(pose: PoseFrame, reference: PoseFrame) -> Found:
    """The people of an OpenPose frame in pixels of the reference's canvas."""
    size, target = (np.array([frame["canvas_width"], frame["canvas_height"]], float) for frame in (pose, reference))
    shape = (size[0] / size[1]) / (target[0] / target[1])
    if not 1 - SAME_SHAPE <= shape <= 1 + SAME_SHAPE:
        raise EvaluationError(
            f"a pose on a {size[0]:.0f} x {size[1]:.0f} canvas cannot be compared with one on {target[0]:.0f} x"
            f" {target[1]:.0f}; make the picture in the reference's proportions"
        )
    people = coco_people(pose)
    people[..., :2] *= target / size
    return Found.of(people)


def coco_people(frame: PoseFrame) -> np.ndarray:
    """Everybody in an OpenPose frame with COCO's 17 keypoints, (P, 17, 3) in canvas pixels; the neck is dropped."""
    try:
        return body_people(frame)[:, _FROM_BODY_18]
    except ValueError as error:
        raise EvaluationError(str(error)) from None


def read_truth(frame: PoseFrame) -> tuple[Truth, list[str]]:
    """The people of a frame as a reference, and why those do not count who do not.

    A person may have COCO's own ``area``, ``bbox`` (both in canvas pixels) and ``iscrowd``. Otherwise the box is the one
    around the keypoints, and the area a share of it.
    """
    keypoints = coco_people(frame)
    facts = [_facts(person, values) for person, values in zip(frame["people"], keypoints, strict=True)]
    truth = Truth(
        keypoints,
        np.array([area for area, _, _ in facts], dtype=np.float64),
        np.array([box for _, box, _ in facts], dtype=np.float64).reshape(-1, 4),
        np.array([bool(note) for *_, note in facts], dtype=bool),
        np.array([bool(person.get("iscrowd")) for person in frame["people"]], dtype=bool),
    )
    return truth, [note for *_, note in facts]


def _facts(person: Mapping[str, Any], keypoints: np.ndarray) -> tuple[float, np.ndarray, str]:
    """Area, box and why the person does not count; the last is empty where they do."""
    labelled = keypoints[keypoints[:, 2] > 0, :2]
    corner, far = (labelled.min(axis=0), labelled.max(axis=0)) if len(labelled) else (np.zeros(2), np.zeros(2))
    box = _numbers(person, "bbox", 4)
    box = np.concatenate([corner, far - corner]) if box is None else box
    area = _numbers(person, "area", 1)
    size = float(area[0]) if area is not None else BODY_SHARE * float(box[2] * box[3])
    if person.get("iscrowd"):
        return size, box, "is a crowd"
    if not len(labelled):
        return size, box, "has no keypoints in the reference"
    return size, box, "" if size > 0 else "has too few keypoints in the reference to tell how large they are"


def _numbers(person: Mapping[str, Any], name: str, count: int) -> np.ndarray | None:
    """A field that COCO has and OpenPose has not; None where it is missing."""
    if person.get(name) is None:
        return None
    try:
        values = np.asarray(person[name], dtype=np.float64).reshape(count)
    except (TypeError, ValueError):
        values = np.full(count, np.nan)
    if not np.isfinite(values).all() or (values[-1] < 0):
        raise EvaluationError(f"a person's {name} is not {count} number{'s' * (count > 1)} as in COCO; leave it out")
    return values
