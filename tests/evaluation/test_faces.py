"""Faces: their alignment against OpenCV and Umeyama's own formula, the network against its matrix."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.faces import (
    PLACES,
    FaceEncoder,
    aligned,
    cropped_face,
    face_points,
    posed_face,
    similarity,
)
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX
from devtools.small_encoders import write_small_face_network

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="needs onnx and onnxruntime",
)


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3), equations 40 to 42 of Umeyama 1991."""
    means = source.mean(axis=0), target.mean(axis=0)
    away = source - means[0], target - means[1]
    covariance = away[1].T @ away[0] / len(source)
    left, values, right = np.linalg.svd(covariance)
    signs = np.diag([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left @ signs @ right
    scale = (values * np.diag(signs)).sum() / (away[0] ** 2).sum(axis=1).mean()
    return np.column_stack([scale * rotation, means[1] - scale * rotation @ means[0]])


@pytest.mark.parametrize("count", [3, 5])
def test_the_similarity_is_umeyamas(count):
    rng = np.random.default_rng(count)
    for _ in range(50):
        source, target = rng.normal(size=(2, count, 2)) * 40
        factor, offset = similarity(source, target)
        expected = umeyama(source, target)
        given = np.array([[factor.real, -factor.imag, offset.real], [factor.imag, factor.real, offset.imag]])
        np.testing.assert_allclose(given, expected, atol=1e-9)


def face_picture() -> torch.Tensor:
    """Something smooth, (200, 260, 3)."""
    down, across = np.mgrid[0:200, 0:260]
    channels = [np.sin(down / 17 + across / 23), np.cos(down / 11), np.sin(across / 13 - down / 31)]
    return torch.from_numpy(np.stack(channels, axis=-1) * 0.3 + 0.6).float()


def test_a_face_is_warped_as_opencv_warps_it():
    picture = face_picture()
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]) * 1.3
    points = PLACES @ turn.T + (110, 0) + np.random.default_rng(0).normal(size=(5, 2))
    matrix = umeyama(points, PLACES)
    expected = cv2.warpAffine(picture.numpy(), matrix, (112, 112), borderValue=(0, 0, 0))
    given = aligned(picture, points).numpy()
    assert given.shape == expected.shape
    inside = expected.min(axis=-1) > 0.05  # OpenCV blends the picture's very edge differently
    assert inside.mean() > 0.8
    assert np.abs(given - expected)[inside].max() < 0.01  # OpenCV counts in 32nds of a pixel


def person(face: bool = True, body: bool = True) -> dict[str, np.ndarray]:
    keypoints = np.zeros((18, 3))
    if body:
        keypoints[[KEYPOINT_INDEX[name] for name in ("right_eye", "left_eye", "nose")]] = [
            (0.4, 0.3, 1),
            (0.6, 0.3, 1),
            (0.5, 0.4, 1),
        ]
    found = {"pose_keypoints_2d": keypoints}
    if face:
        landmarks = np.ones((70, 3))
        landmarks[:, :2] = np.random.default_rng(1).uniform(0.3, 0.7, (70, 2))
        found["face_keypoints_2d"] = landmarks
    return found


def test_five_points_come_from_a_detailed_face():
    given: Any = face_points(person())
    landmarks = person()["face_keypoints_2d"][:, :2]
    expected = [landmarks[36:42].mean(0), landmarks[42:48].mean(0), landmarks[30], landmarks[48], landmarks[54]]
    np.testing.assert_allclose(given, expected)


def test_eyes_and_nose_do_otherwise():
    for somebody in (person(face=False), person()):
        if "face_keypoints_2d" in somebody:
            somebody["face_keypoints_2d"][48, 2] = 0  # a corner of the mouth is hidden
        given: Any = face_points(somebody)
        np.testing.assert_allclose(given, [(0.4, 0.3), (0.6, 0.3), (0.5, 0.4)])
    assert face_points(person(face=False, body=False)) is None
    assert posed_face(face_picture(), person(face=False, body=False)) is None
    tiny = person(face=False)
    tiny["pose_keypoints_2d"][:, :2] = 0.5
    assert posed_face(face_picture(), tiny) is None


def test_the_note_says_how_the_face_was_aligned():
    picture = face_picture()
    five: Any = posed_face(picture, person())
    three: Any = posed_face(picture, person(face=False))
    assert "five points" in five.note
    assert "eyes and nose" in three.note and three.picture.shape == (112, 112, 3)
    crop = cropped_face(picture)
    assert "not aligned" in crop.note and crop.picture.shape == (112, 112, 3)
    eye = np.array([0.4 * 260, 0.3 * 200])  # it comes to lie near its place
    shares: Any = face_points(person(face=False))
    points = shares * (260, 200)
    moved = umeyama(points, PLACES[:3]) @ [*eye, 1]
    x, y = moved.round().astype(int)
    expected = picture[int(eye[1]), int(eye[0])]
    torch.testing.assert_close(three.picture[y, x], expected, atol=0.08, rtol=0)


@needs_onnx
def test_the_network_sees_what_arcface_was_trained_on(tmp_path):
    import onnx  # pyright: ignore[reportMissingImports]
    from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

    path = write_small_face_network(tmp_path / "face.onnx")
    matrix = numpy_helper.to_array(onnx.load(str(path)).graph.initializer[0])
    faces = [torch.rand(112, 112, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    values = np.stack([(face.numpy().astype(np.float64) * 255 - 127.5) / 127.5 for face in faces])
    vectors = values.transpose(0, 3, 1, 2).reshape(3, -1) @ matrix
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(FaceEncoder(path).pictures(faces).numpy(), expected, atol=1e-5)


@needs_onnx
def test_files_that_are_no_face_network_are_told(tmp_path):
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(EvaluationError, match=r"text.onnx cannot be read"):
        FaceEncoder(tmp_path / "text.onnx")
    with pytest.raises(EvaluationError, match="no network that makes one vector"):
        FaceEncoder(write_small_face_network(tmp_path / "large.onnx", side=64))


def test_without_onnxruntime_the_remedy_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="pip install onnxruntime"):
        FaceEncoder(tmp_path / "face.onnx")
