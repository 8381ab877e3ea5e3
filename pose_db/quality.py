"""Is a detected pose good enough for the database? Two stages, as ASTRA checks its pose maps (section 3.1).

1. Confidence and visibility: enough keypoints that the detector is sure of, a torso among them, a person of some
   size, everything inside the canvas.
2. Anatomy: bones no longer than the rest of the body allows, joints that can bend so, left and right where they
   belong, nobody detected twice, and as many people as the prompt speaks of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .anatomy import anatomy_problems
from .exchange import body_people
from .keypoints import KEYPOINT_INDEX, KEYPOINTS, MIRRORED, PoseFrame
from .people_count import people_in_prompt

TORSO = tuple(KEYPOINT_INDEX[name] for name in ("neck", "right_shoulder", "left_shoulder", "right_hip", "left_hip"))

# Standard deviations of people's own clicks, as shares of the root of a person's area (COCO keypoint evaluation; its
# sigmas, with the shoulders' for the neck, which COCO does not have).
_SIGMA = {"nose": 0.026, "eye": 0.025, "ear": 0.035, "neck": 0.079, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062}
_SIGMA |= {"hip": 0.107, "knee": 0.087, "ankle": 0.089}
OKS_SIGMAS = np.array([_SIGMA[name.rpartition("_")[2]] for name in KEYPOINTS])


@dataclass(frozen=True)
class QualityLimits:
    """What still counts as good.

    Attributes:
        min_confidence: below it a keypoint is taken as not seen.
        min_mean_confidence: of the keypoints that are seen.
        min_keypoints: seen keypoints of 18.
        min_torso: seen keypoints of neck, shoulders and hips.
        min_size: a person's larger side, as a share of the canvas' larger side.
        max_bone_ratio: how much longer a bone may look than the rest of the body says.
        max_similarity: object keypoint similarity of two people above which they are one.
    """

    min_confidence: float = 0.3
    min_mean_confidence: float = 0.4
    min_keypoints: int = 8
    min_torso: int = 3
    min_size: float = 0.05
    max_bone_ratio: float = 2.0
    max_similarity: float = 0.85


@dataclass(frozen=True)
class Finding:
    """Something wrong. `person` counts from 1; None is the whole picture. `stage` is 1 or 2."""

    stage: int
    person: int | None
    problem: str

    def __str__(self) -> str:
        return self.problem if self.person is None else f"person {self.person}: {self.problem}"


def check_pose(
    frame: PoseFrame, prompt: str = "", people: int | None = None, limits: QualityLimits | None = None
) -> list[Finding]:
    """Everything that is wrong with a pose; nothing where it is good.

    Args:
        frame: an OpenPose frame.
        prompt: its text; the number of people is read from it where `people` is not given.
        people: how many there should be.
        limits: what still counts as good.

    Raises:
        ValueError: a person has not 18 keypoints, or a number that is not finite.
    """
    limits = limits or QualityLimits()
    found = body_people(frame)  # (P, 18, 3)
    canvas = (frame["canvas_width"], frame["canvas_height"])
    findings: list[Finding] = []
    for number, person in enumerate(found, start=1):
        problems = list(visibility_problems(person, canvas, limits))
        findings += [Finding(1, number, problem) for problem in problems]
        if not problems:  # anatomy of keypoints that are guesses says nothing
            findings += [
                Finding(2, number, problem)
                for problem in anatomy_problems(person, limits.min_confidence, limits.max_bone_ratio)
            ]
    findings += [Finding(2, None, problem) for problem in duplicate_problems(found, limits)]
    findings += [Finding(2, None, problem) for problem in count_problems(len(found), prompt, people)]
    return findings


def report(findings: Sequence[Finding], people: int) -> str:
    """The findings in words, one a line."""
    if not findings:
        return f"Passed: {people} {'person' if people == 1 else 'people'}."
    return "\n".join(["Rejected:", *(f"- {finding}" for finding in findings)])


# Stage 1


def visibility_problems(person: np.ndarray, canvas: tuple[float, float], limits: QualityLimits) -> Iterator[str]:
    """Confidence and visibility of one person, (18, 3) in pixels of a canvas (width, height)."""
    seen = person[:, 2] >= limits.min_confidence
    if seen.sum() < limits.min_keypoints:
        yield f"only {seen.sum()} of {len(KEYPOINTS)} keypoints are seen, {limits.min_keypoints} are needed"
        return
    if seen[list(TORSO)].sum() < limits.min_torso:
        yield f"only {seen[list(TORSO)].sum()} of neck, shoulders and hips are seen, {limits.min_torso} are needed"
    confidence = person[seen, 2].mean()
    if confidence < limits.min_mean_confidence:
        yield f"the detector is unsure (mean confidence {confidence:.2f}, {limits.min_mean_confidence:.2f} is needed)"
    points = person[seen, :2]
    outside = ((points < 0) | (points > canvas)).any(-1).sum()
    if outside:
        yield f"{outside} keypoints lie outside the canvas"
    if np.ptp(points, axis=0).max() < limits.min_size * max(canvas):
        yield f"the person is smaller than {limits.min_size:.0%} of the picture"


# Stage 2, of everybody together; for one person see ``anatomy``


def keypoint_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Object keypoint similarity of two people, (18, 3) each, over the keypoints that both have (COCO keypoint
    evaluation).

    OKS = mean_i exp(-d_i² / (2 s² k_i²)), k_i = 2 sigma_i, s² the area of the larger person's box.
    """
    both = (first[:, 2] > 0) & (second[:, 2] > 0)
    if not both.any():
        return 0.0
    area = max(float(np.ptp(person[person[:, 2] > 0, :2], axis=0).prod()) for person in (first, second))
    distance = ((first[both, :2] - second[both, :2]) ** 2).sum(-1)
    return float(np.exp(-distance / (2 * max(area, 1e-6) * (2 * OKS_SIGMAS[both]) ** 2)).mean())


def duplicate_problems(people: np.ndarray, limits: QualityLimits) -> Iterator[str]:
    """People who are there twice, (P, 18, 3)."""
    shown = people * (people[..., 2:] >= limits.min_confidence)
    for first in range(len(people)):
        for second in range(first + 1, len(people)):
            if _common(shown[first], shown[second]) < 5:
                continue
            # A detector that finds somebody twice sometimes takes the second for seen from behind.
            ways = (shown[second], shown[second][list(MIRRORED)])
            if max(keypoint_similarity(shown[first], other) for other in ways) > limits.max_similarity:
                yield f"people {first + 1} and {second + 1} are one person, found twice"


def _common(first: np.ndarray, second: np.ndarray) -> int:
    return int(((first[:, 2] > 0) & (second[:, 2] > 0)).sum())


def count_problems(found: int, prompt: str, people: int | None) -> Iterator[str]:
    """The number of people against what was asked for."""
    if found == 0:
        yield "nobody is in the picture"
        return
    wanted = people if people is not None else people_in_prompt(prompt)
    if wanted is not None and wanted != found:
        yield f"the picture has {found} {'person' if found == 1 else 'people'}, the prompt {wanted}"
