"""Samples at the sizes a training uses: pictures, masks, boxes and poses moved alike.

A picture is enlarged or shrunk as a whole until it covers its bucket, and what stands over is cut off evenly on both sides.
Coordinates count from a picture's upper left corner; pixel (x, y) covers [x, x + 1) x [y, y + 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import interpolate

from .buckets import Size, nearest_bucket, reference_size
from .sample import TrainingSample, TrainingSubject

KEYPOINTS_SUFFIX = "keypoints_2d"  # of an OpenPose person's lists
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Fit:
    """A picture of size `source` enlarged or shrunk to `whole`, of which the part of size `bucket` at `offset` is kept."""

    source: Size
    whole: Size
    offset: tuple[int, int]  # left, top
    bucket: Size

    @property
    def scale(self) -> tuple[float, float]:
        """Of x and of y; they differ by less than a pixel over the whole picture."""
        return self.whole[0] / self.source[0], self.whole[1] / self.source[1]


def cover(source: Size, bucket: Size) -> Fit:
    """How a picture of size `source` covers `bucket`."""
    scale = max(bucket[0] / source[0], bucket[1] / source[1])
    whole = max(bucket[0], round(source[0] * scale)), max(bucket[1], round(source[1] * scale))
    return Fit(source, whole, ((whole[0] - bucket[0]) // 2, (whole[1] - bucket[1]) // 2), bucket)


def fit_picture(picture: torch.Tensor, fit: Fit) -> torch.Tensor:
    """(h, w, 3) -> float32 (bucket's h, w, 3); a picture of the right size already comes back bit for bit."""
    return _part(resize(picture, fit.whole, "bicubic"), fit)


def fit_mask(mask: torch.Tensor, fit: Fit) -> torch.Tensor:
    """(h, w) -> float32 (bucket's h, w); edges become soft where the mask is shrunk or enlarged."""
    return _part(resize(mask[..., None], fit.whole, "bilinear"), fit)[..., 0]


def _part(picture: torch.Tensor, fit: Fit) -> torch.Tensor:
    (left, top), (width, height) = fit.offset, fit.bucket
    return picture[top : top + height, left : left + width].contiguous()


def resize(picture: torch.Tensor, size: Size, mode: str) -> torch.Tensor:
    """(h, w, channels) -> float32 (size's h, w, channels) in [0, 1], without aliasing.

    Args:
        picture: floats in [0, 1] or bytes; bytes are several times as fast.
    """
    if (picture.shape[1], picture.shape[0]) == size:
        return as_float(picture)
    # Channels stand last in memory, which is the layout that the resampling is fast in.
    resized = interpolate(picture.movedim(-1, 0)[None], size=(size[1], size[0]), mode=mode, antialias=True)
    return as_float(resized[0].movedim(0, -1)).clamp_(0, 1)


def as_float(picture: torch.Tensor) -> torch.Tensor:
    """Bytes as floats in [0, 1]; floats as they are."""
    return picture.float().div_(255) if picture.dtype == torch.uint8 else picture


def fit_box(box: Box, fit: Fit) -> Box | None:
    """Left, top, right, bottom of what is left of a box; None where nothing is."""
    x0, y0 = _moved(box[0], box[1], fit)
    x1, y1 = _moved(box[2], box[3], fit)
    width, height = fit.bucket
    left, right = min(max(x0, 0.0), width), min(max(x1, 0.0), width)
    top, bottom = min(max(y0, 0.0), height), min(max(y1, 0.0), height)
    return (left, top, right, bottom) if right > left and bottom > top else None


def fit_person(person: Mapping[str, Any], fit: Fit) -> dict[str, Any] | None:
    """An OpenPose person; keypoints that are cut off become (0, 0, 0), "not there". None where no keypoint is left."""
    moved = {
        part: _fit_keypoints(values, fit) if part.endswith(KEYPOINTS_SUFFIX) and values else values
        for part, values in person.items()
    }
    seen = any(any(values[2::3]) for part, values in moved.items() if part.endswith(KEYPOINTS_SUFFIX) and values)
    return moved if seen else None


def _fit_keypoints(flat: Sequence[float], fit: Fit) -> list[float]:
    width, height = fit.bucket
    out: list[float] = []
    for x, y, confidence in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
        new_x, new_y = _moved(x, y, fit)
        there = confidence > 0 and 0 <= new_x <= width and 0 <= new_y <= height
        out += [new_x, new_y, confidence] if there else [0.0, 0.0, 0.0]
    return out


def _moved(x: float, y: float, fit: Fit) -> tuple[float, float]:
    return x * fit.scale[0] - fit.offset[0], y * fit.scale[1] - fit.offset[1]


def fit_sample(sample: TrainingSample, resolution: int, longer_reference_side: int) -> TrainingSample:
    """A sample with its target in its bucket and its references at their size; its key stays."""
    height, width = sample.target.shape[:2]
    fit = cover((width, height), nearest_bucket((width, height), resolution))
    subjects = tuple(_fit_subject(subject, fit, longer_reference_side) for subject in sample.subjects)
    return replace(sample, target=fit_picture(sample.target, fit), subjects=subjects)


def _fit_subject(subject: TrainingSubject, fit: Fit, longer_reference_side: int) -> TrainingSubject:
    height, width = subject.reference.shape[:2]
    size = reference_size((width, height), longer_reference_side)
    return replace(
        subject,
        reference=resize(subject.reference, size, "bicubic").contiguous(),
        reference_mask=resize(subject.reference_mask[..., None], size, "bilinear")[..., 0].contiguous(),
        mask=None if subject.mask is None else fit_mask(subject.mask, fit),
        box=None if subject.box is None else fit_box(subject.box, fit),
        person=None if subject.person is None else fit_person(subject.person, fit),
    )


def as_floats(sample: TrainingSample) -> TrainingSample:
    """A sample whose pictures and masks may be bytes, as one whose are floats."""
    subjects = tuple(
        replace(
            subject,
            reference=as_float(subject.reference),
            reference_mask=as_float(subject.reference_mask),
            mask=None if subject.mask is None else as_float(subject.mask),
        )
        for subject in sample.subjects
    )
    return replace(sample, target=as_float(sample.target), subjects=subjects)
