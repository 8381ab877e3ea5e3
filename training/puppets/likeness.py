"""Whether a picture's puppets are who they should be: identity, and leakage of one puppet's looks into another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .canvas import PARTS
from .colours import ALIKE, distance, lab, nearest, part_colours
from .identity import Puppet
from .scene import Scene, draw_scene

_SOFTNESS = (0.0, 0.8, 1.6)  # pixels: how blurred the truth may be to be compared with, the best of them counts
_STEPS = (0.0, -0.02, 0.02, -0.04, 0.04)  # statures that a part may be off on either axis, the best place counts
_LEAST_CLEAR = 0.05  # of a puppet's region, that must show one puppet's colours or the other's
_FEWEST = 10  # visible pixels of a part that can be judged
_QUANTILES = np.linspace(0.05, 0.95, 19)  # the rest may be of other things
_AXES = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 0), (0, 1, 1), (0, 1, -1)], dtype=np.float32)
_DIRECTIONS = _AXES / np.linalg.norm(_AXES, axis=1, keepdims=True)  # of CIELAB, (7, 3)


def core(scene: Scene, number: int, part: str) -> np.ndarray:
    """(H, W) bool: where a part of puppet `number` is visible, without dark edges, eyes and the like."""
    colours = part_colours(scene.puppets[number]).get(part)
    region = scene.mask(number, (part,))
    return region & (distance(lab(scene.picture), colours) < ALIKE / 2) if colours is not None else region & False


def part_scores(picture: np.ndarray, scene: Scene, number: int, steps: Sequence[float] = _STEPS) -> dict[str, float]:
    """For every visible part of puppet `number` how far its colours and pattern are the true ones, 0 to 1.

    The distributions of colours in the part's region are compared, so a pattern may be shifted, but not be of other
    colours or missing.

    Args:
        picture: (H, W, 3) of the scene's size, uint8 or floats in [0, 1].
        steps: statures that a part may be off on either axis; the best place counts.
    """
    values, pixels = lab(picture), [round(step * scene.sizes[number]) for step in steps]
    moved = [np.roll(values, (y, x), axis=(0, 1)) for y in pixels for x in pixels]
    truths = [lab(soft) for soft in _softened(scene.picture)]
    scores = {}
    for part in PARTS[1:]:
        region = core(scene, number, part)
        if region.sum() >= _FEWEST:
            found, expected = ([_profile(each[region]) for each in several] for several in (moved, truths))
            off = min(_difference(one, other) for one in found for other in expected)
            scores[part] = float(np.exp(-((off / ALIKE) ** 2)))
    return scores


def identity(picture: np.ndarray, scene: Scene, number: int, steps: Sequence[float] = _STEPS) -> float:
    """Mean of `part_scores`, each part by the square root of its area; nan where nothing of the puppet is visible."""
    scores = part_scores(picture, scene, number, steps)
    weights = [float(scene.mask(number, (part,)).sum()) ** 0.5 for part in scores]
    return float(np.average(list(scores.values()), weights=weights)) if scores else float("nan")


def recognised(picture: np.ndarray, scene: Scene, number: int, others: Sequence[Puppet]) -> float:
    """Share of other puppets that the picture's puppet `number` looks less like than like itself, 0 to 1; chance is 0.5.

    Args:
        others: distractors, who are drawn in its place one after the other.
    """
    own, beaten = identity(picture, scene, number, (0.0,)), 0.0
    for other in others:
        puppets = [other if index == number else one for index, one in enumerate(scene.puppets)]
        instead = draw_scene(puppets, scene.people, scene.picture, scene.sizes)
        theirs = identity(picture, instead, number, (0.0,))
        beaten += 1.0 if own > theirs else 0.5 if own == theirs else 0.0
    return beaten / len(others)


def leakage(picture: np.ndarray, scene: Scene, number: int) -> float:
    """Share of puppet `number`'s visible region whose colours are another puppet's of the scene and not its own.

    Only pixels count whose colour is that of one of them and not of the other; 0 where there are next to none.

    Args:
        picture: (H, W, 3) of the scene's size, uint8 or floats in [0, 1].
    """
    region = np.logical_or.reduce([core(scene, number, part) for part in PARTS[1:]])
    values = lab(picture)[region]
    others = [one for index, one in enumerate(scene.puppets) if index != number]
    if not len(values) or not others:
        return 0.0
    own = nearest(values, tuple(part_colours(scene.puppets[number]).values()))
    theirs = np.min([nearest(values, tuple(part_colours(other).values())) for other in others], axis=0)
    clear = (np.minimum(own, theirs) < ALIKE) & (np.abs(own - theirs) > ALIKE / 2)
    return float((theirs < own)[clear].mean()) if clear.mean() > _LEAST_CLEAR else 0.0


def _softened(picture: np.ndarray) -> list[np.ndarray]:
    import cv2

    return [cv2.GaussianBlur(picture, (0, 0), soft) if soft else picture for soft in _SOFTNESS]


def _profile(colours: np.ndarray) -> np.ndarray:
    """Quantiles of colours (n, 3) along some directions, (quantiles, directions)."""
    ordered = np.sort(colours @ _DIRECTIONS.T, axis=0)
    return ordered[np.rint(_QUANTILES * (len(ordered) - 1)).astype(np.int64)]


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Sliced Wasserstein distance of two sets of colours, given their profiles, CIELAB units."""
    # The mean over directions holds a third of a distance's square.
    return float(np.sqrt(3 * ((one - other) ** 2).mean()))
