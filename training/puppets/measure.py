"""Measures pictures of puppets against the truth, from their pixels alone.

Every number says something about one puppet of a `Scene`; a model is measured by the mean over puppets and scenes.
They compare with the scene's own pose, so they mean something for pictures that were to be made of this scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .identity import Puppet, puppet
from .likeness import identity, leakage, recognised
from .limbs import REACH, limb_errors
from .scene import Scene

_DISTRACTORS = tuple(range(2_000_000, 2_000_008))  # puppets that no source shows by itself


@dataclass(frozen=True)
class PuppetMeasures:
    """One puppet of one picture.

    Attributes:
        pose_error: how far its limbs are off, mean in statures, 0 to `limbs.REACH`; smaller is better.
        limbs_found: share of the limbs that are found at all, 0 to 1.
        identity: how far colours and patterns of its parts are its own, 0 to 1.
        recognised: share of other puppets that it looks less like than like itself; chance is 0.5.
        leakage: share of its region that shows another puppet's colours, 0 to 1; smaller is better.
    """

    pose_error: float
    limbs_found: float
    identity: float
    recognised: float
    leakage: float


def measure(picture: np.ndarray, scene: Scene, others: Sequence[Puppet] | None = None) -> list[PuppetMeasures]:
    """Measure every puppet of a picture that was to show `scene`.

    Args:
        picture: (H, W, 3) of the scene's size, uint8 or floats in [0, 1].
        others: distractors for `recognised`; None for eight of their own.

    Raises:
        ValueError: the picture has another size; one sentence.
    """
    if picture.shape != scene.picture.shape:
        (height, width), (high, wide) = picture.shape[:2], scene.labels.shape
        raise ValueError(f"the picture is {width} x {height} and the scene {wide} x {high}; scale the picture first")
    distractors = [puppet(seed) for seed in _DISTRACTORS] if others is None else others
    found = []
    for number in range(len(scene.puppets)):
        errors = list(limb_errors(picture, scene, number).values()) or [float("nan")]
        found.append(
            PuppetMeasures(
                pose_error=float(np.mean(errors)),
                limbs_found=float(np.mean([error < REACH for error in errors])),
                identity=identity(picture, scene, number),
                recognised=recognised(picture, scene, number, distractors),
                leakage=leakage(picture, scene, number),
            )
        )
    return found


def routing_iou(masks: np.ndarray, scene: Scene, threshold: float = 0.5) -> list[float]:
    """Intersection over union of every puppet's mask with the truth, at the masks' own resolution.

    Args:
        masks: (P, h, w), in the order of the scene's puppets; belongs where above `threshold`.
    """
    import cv2

    height, width = masks.shape[1:]
    scores = []
    for number, mask in enumerate(masks):
        whole = scene.mask(number).astype(np.float32)
        truth = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA) > 0.5
        given = mask > threshold
        scores.append(float((given & truth).sum() / max((given | truth).sum(), 1)))
    return scores
