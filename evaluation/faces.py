"""Faces as ArcFace-class networks see them, and what the network makes of them.

Five points of the face (eyes, nose, corners of the mouth) are brought onto their places in a 112 x 112 picture by the
similarity (rotation, scale, translation) with the least squared error, as such networks were trained. A pose without a
detailed face has three of the points: eyes and nose. Without any, a crop of the face is shown as it is.

Sources: Deng et al., "ArcFace", CVPR 2019; the five places are InsightFace's. Umeyama, "Least-Squares Estimation of
Transformation Parameters Between Two Point Patterns", 1991.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate

from ..pose_db.keypoints import KEYPOINT_INDEX
from ..pose_db.people import BODY, FACE, Person
from .encoders import in_batches
from .errors import EvaluationError

SIDE = 112
# x, y of the eye on the left of the picture, the other eye, the nose, the corners of the mouth.
PLACES = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
_LANDMARKS = ([*range(36, 42)], [*range(42, 48)], [30], [48], [54])  # of the 68 of a face; several are averaged
_ON_BODY = [KEYPOINT_INDEX[name] for name in ("right_eye", "left_eye", "nose")]


@dataclass(frozen=True)
class Face:
    """A face as the network is shown it.

    Attributes:
        picture: (112, 112, 3).
        note: how it came to be so.
    """

    picture: torch.Tensor
    note: str


def posed_face(picture: torch.Tensor, person: Person) -> Face | None:
    """The face of a person of a picture (H, W, 3), by the keypoints in shares of the picture; None where they are not there,
    or lie within one pixel."""
    shares = face_points(person)
    if shares is None:
        return None
    points = shares * (picture.shape[1], picture.shape[0])
    if np.ptp(points, axis=0).max() < 1:
        return None
    return Face(aligned(picture, points), "aligned by five points" if len(points) == 5 else "aligned by eyes and nose")


def cropped_face(crop: torch.Tensor) -> Face:
    """A crop (H, W, 3) of a face, which nothing is known of, at the network's size."""
    small = interpolate(crop[None, ..., :3].movedim(-1, 1), (SIDE, SIDE), mode="bilinear", antialias=True)
    return Face(small[0].movedim(0, -1), "not aligned: no keypoints of the face")


def face_points(person: Person) -> np.ndarray | None:
    """Five points of a face (5, 2), or three (3, 2): eyes and nose; None where not even these are there."""
    face = person.get(FACE)
    if face is not None and len(face) > max(map(max, _LANDMARKS)):
        parts = [face[part] for part in _LANDMARKS]
        if all((part[:, 2] > 0).all() for part in parts):
            return np.array([part[:, :2].mean(axis=0) for part in parts])
    body = person[BODY][_ON_BODY]
    return body[:, :2] if (body[:, 2] > 0).all() else None


def aligned(picture: torch.Tensor, points: np.ndarray) -> torch.Tensor:
    """The face of a picture (H, W, 3) with its points (P, 2) in pixels, in order of `PLACES`, on their places: (112, 112, 3)."""
    factor, offset = similarity(PLACES[: len(points)], points)
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    source = factor * (across + 1j * down) + offset  # (112, 112), x + iy in pixels
    height, width = picture.shape[:2]
    grid = np.stack([source.real / max(width - 1, 1), source.imag / max(height - 1, 1)], axis=-1) * 2 - 1
    pixels = picture[None, ..., :3].movedim(-1, 1).float().cpu()
    seen = grid_sample(pixels, torch.from_numpy(grid[None]).float(), mode="bilinear", align_corners=True)
    return seen[0].movedim(0, -1)


def similarity(points: np.ndarray, targets: np.ndarray) -> tuple[complex, complex]:
    """The similarity that brings points (P, 2) nearest to their targets (P, 2): z -> factor z + offset for z = x + iy."""
    source, target = (values[:, 0] + 1j * values[:, 1] for values in (points, targets))
    away = source - source.mean()
    factor = complex((np.conj(away) * (target - target.mean())).sum() / (np.abs(away) ** 2).sum())
    return factor, complex(target.mean() - factor * source.mean())


class FaceEncoder:
    """A face recognition network in an ONNX file, run on the processor."""

    def __init__(self, path: Path) -> None:
        """Read the network.

        Raises:
            EvaluationError: onnxruntime is missing, or the file holds no such network.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise EvaluationError(
                "the Python package onnxruntime, which runs face networks, is not installed; run `pip install onnxruntime`"
            )
        import onnxruntime  # pyright: ignore[reportMissingImports]

        self.name = path.name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            first = str(error).strip().splitlines()[0][:200]
            raise EvaluationError(f"{path.name} cannot be read ({first}); get the file again") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape = list(inputs[0].shape) if inputs else []
        fits = len(shape) == 4 and all(
            not isinstance(side, int) or side == wanted for side, wanted in zip(shape[1:], (3, SIDE, SIDE), strict=True)
        )
        if len(inputs) != 1 or len(outputs) != 1 or not fits or inputs[0].type != "tensor(float)":
            raise EvaluationError(
                f"{path.name} is no network that makes one vector of a {SIDE} x {SIDE} face; choose an ArcFace model such as"
                " glintr100.onnx"
            )
        self._input = inputs[0].name

    def pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, d) of length 1, of faces (112, 112, 3) in [0, 1]."""
        return in_batches(pictures, lambda some: torch.cat([self._vector(face) for face in some]))

    def _vector(self, face: torch.Tensor) -> torch.Tensor:
        """(1, d); values go from -1 to 1, as the networks were trained."""
        values = face.movedim(-1, 0)[None].float().cpu().mul(255).sub(127.5).div(127.5)
        vector = self._session.run(None, {self._input: np.ascontiguousarray(values.numpy())})[0]
        return torch.from_numpy(np.asarray(vector, dtype=np.float32).reshape(1, -1))
