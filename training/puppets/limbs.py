"""Where a picture shows the limbs of known puppets, from its pixels alone.

A limb is looked for as a stamp: its colours inside, other colours around it, moved and turned about its expected place.
The stamp that fits best says how far the limb is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .canvas import PART, PERSON_STEP, Canvas
from .colours import ALIKE, Segment, distance, lab, part_colours
from .drawing import puppet_marks
from .scene import Scene

_BONES = {
    "upper arm": ("upper_arm", "short_sleeve", "upper_sleeve"),
    "lower arm": ("forearm", "lower_sleeve", "hand"),
    "upper leg": ("thigh", "upper_trouser", "short_trouser"),
    "lower leg": ("shank", "lower_trouser", "foot"),
}
_HEAD_PARTS = ("face", "hair", "hat")
LIMBS = ("head", "trunk", *(f"{side} {limb}" for limb in _BONES for side in ("right", "left")))
_NUMBER = {name: number for number, name in enumerate(LIMBS, start=1)}
_OF_BONE = {
    (bone, side): _NUMBER[f"{('right', 'left')[side]} {limb}"]
    for limb, bones in _BONES.items()
    for bone in bones
    for side in (0, 1)
}
REACH = 0.4  # statures: how far off a limb is looked for, and the error of one that is not found
_TURNS = (0.0, -20.0, 20.0, -40.0, 40.0)  # degrees
_WORKING_SIZE = 60  # pixels: the stature that larger puppets are shrunk to before
_RING = 0.05  # statures around a limb that should show other colours
_FEWEST = 8  # visible pixels of a limb that can be looked for
_FOUND = 0.45  # of the fit that the true picture gives: less is not found
_PATIENCE = 0.4  # fit that a stamp must gain for every REACH that it is farther away


@dataclass(frozen=True)
class _Stamp:
    """What to look for.

    Attributes:
        kernels: part -> (h, w), positive inside, negative around; over all parts they sum to 1 and to -1.
        corner: left and top of the kernels in the picture.
        middle: (2,) of the limb, in the kernels; arm: (2,) from there to its end, pixels.
    """

    kernels: dict[str, np.ndarray]
    corner: tuple[int, int]
    middle: np.ndarray
    arm: np.ndarray


def limb_map(scene: Scene, number: int) -> np.ndarray:
    """(H, W) uint8: 1 + index in `LIMBS` where a limb of puppet `number` is visible in the true picture, else 0."""
    canvas = Canvas(np.zeros((*scene.labels.shape, 3), dtype=np.uint8))
    for mark in puppet_marks(scene.puppets[number], scene.people[number], scene.sizes[number]):
        beyond = "head" if mark.part in _HEAD_PARTS else "trunk"
        canvas.draw([mark], _NUMBER[beyond] if mark.bone is None else _OF_BONE[mark.bone])
    return np.where(scene.mask(number), canvas.labels() // PERSON_STEP, np.uint8(0))


def limb_errors(picture: np.ndarray, scene: Scene, number: int) -> dict[str, float]:
    """How far off every limb of puppet `number` is that the true picture shows, in statures, at most `REACH`.

    Args:
        picture: (H, W, 3) of the scene's size, uint8 or floats in [0, 1].
    """
    import cv2

    scale = min(1.0, _WORKING_SIZE / scene.sizes[number])
    height, width = scene.labels.shape
    size = round(width * scale), round(height * scale)
    values, truth = (cv2.resize(lab(whole), size, interpolation=cv2.INTER_AREA) for whole in (picture, scene.picture))
    limbs, parts = (
        cv2.resize(whole, size, interpolation=cv2.INTER_NEAREST) for whole in (limb_map(scene, number), scene.parts)
    )
    colours = part_colours(scene.puppets[number])
    seen, expected = _likenesses(values, colours), _likenesses(truth, colours)
    stature = scene.sizes[number] * scale
    errors = {}
    for name, code in _NUMBER.items():
        stamp = _stamp(limbs == code, parts, expected, max(2, round(_RING * stature)))
        if stamp is not None:
            errors[name] = _error(seen, expected, stamp, stature)
    return errors


def _likenesses(values: np.ndarray, colours: Mapping[str, Segment]) -> dict[str, np.ndarray]:
    """For every part how alike its colours every pixel is, (H, W) in [0, 1]."""
    return {
        part: np.exp(-((distance(values, segment) / ALIKE) ** 2)).astype(np.float32)
        for part, segment in colours.items()
    }


def _stamp(inside: np.ndarray, parts: np.ndarray, expected: Mapping[str, np.ndarray], ring: int) -> _Stamp | None:
    """The stamp of a limb that is visible at `inside` (H, W); None where too little of it is."""
    import cv2

    around = cv2.dilate(inside.view(np.uint8), np.ones((2 * ring + 1, 2 * ring + 1), np.uint8)).view(bool) & ~inside
    kernels = {}
    for part, like in expected.items():
        own, other = inside & (parts == PART[part]) & (like > 0.5), around & (like < 0.3)
        if own.sum() >= _FEWEST / 2:
            kernels[part] = own - other * (own.sum() / max(other.sum(), 1))
    total = sum(kernel[inside].sum() for kernel in kernels.values())
    if total < _FEWEST:
        return None
    rows, columns = np.nonzero(inside | around)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    points = np.argwhere(inside)[:, ::-1].astype(np.float64)
    spread, axes = np.linalg.eigh(np.cov(points.T))
    return _Stamp(
        kernels={part: (kernel[top:bottom, left:right] / total).astype(np.float32) for part, kernel in kernels.items()},
        corner=(int(left), int(top)),
        middle=points.mean(axis=0) - (left, top),
        arm=np.sqrt(3 * max(float(spread[1]), 0.0)) * axes[:, 1],  # of a bar, half its length
    )


def _error(seen: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], stamp: _Stamp, stature: float) -> float:
    """Mean distance of a limb's two ends from where they should be, in statures."""
    reach = int(np.ceil(REACH * stature))
    best, fit, error = -np.inf, 0.0, REACH
    for turn in _TURNS:
        fits, off = _fits(seen, stamp, reach, turn), _moved(reach, stamp.arm, turn) / stature
        ranks = fits - _PATIENCE / REACH * off
        place = np.unravel_index(np.argmax(ranks), ranks.shape)
        if ranks[place] > best:
            best, fit, error = float(ranks[place]), float(fits[place]), float(off[place])
    found = fit >= _FOUND * float(_fits(expected, stamp, 0, 0.0)[0, 0])
    return min(error, REACH) if found else REACH


def _moved(reach: int, arm: np.ndarray, turn: float) -> np.ndarray:
    """Mean distance that the two ends of a limb are moved at every shift, (2 reach + 1, 2 reach + 1) by y and x."""
    angle, shifts = np.radians(turn), np.arange(-reach, reach + 1)
    # Against the clock on the screen, as OpenCV turns.
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ arm - arm
    y, x = shifts[:, None], shifts[None, :]
    return (np.hypot(x + turned[0], y + turned[1]) + np.hypot(x - turned[0], y - turned[1])) / 2


def _fits(likenesses: Mapping[str, np.ndarray], stamp: _Stamp, reach: int, turn: float) -> np.ndarray:
    """How well the turned stamp fits at every shift, (2 reach + 1, 2 reach + 1) by y and x."""
    import cv2

    total = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    left, top = stamp.corner
    for part, kernel in stamp.kernels.items():
        height, width = kernel.shape
        pad = 0 if turn == 0 else max(height, width) // 4 + 1  # room for the corners of a turned stamp
        if pad:
            middle = (float(stamp.middle[0]) + pad, float(stamp.middle[1]) + pad)
            kernel = cv2.copyMakeBorder(kernel, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
            kernel = cv2.warpAffine(kernel, cv2.getRotationMatrix2D(middle, turn, 1.0), kernel.shape[::-1])
        rim = reach + pad
        room = cv2.copyMakeBorder(likenesses[part], rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=0)
        window = room[top : top + height + 2 * rim, left : left + width + 2 * rim]
        total += cv2.matchTemplate(window, kernel, cv2.TM_CCORR)
    return total
