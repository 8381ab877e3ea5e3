"""OpenPose's body network, found in the models folder."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.people import BodyNetwork
from comfyui_ensemble.models_info.registry import OPENPOSE, OPENPOSE_BODY, MissingModelError
from comfyui_ensemble.pose_db.openpose import find_people


@pytest.fixture
def openpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/openpose."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, OPENPOSE, ([str(tmp_path)], {".safetensors", ".pth"}))
    folder_paths.filename_list_cache.pop(OPENPOSE, None)
    return tmp_path


def test_says_where_the_weights_belong(openpose: Path):
    pytest.importorskip("controlnet_aux")
    with pytest.raises(MissingModelError, match=rf"{OPENPOSE_BODY.name} is missing"):
        BodyNetwork()
    save_file({"x": torch.zeros(1)}, openpose / "body_pose_model.safetensors")
    folder_paths.filename_list_cache.pop(OPENPOSE, None)
    with pytest.raises(EvaluationError, match=r"body_pose_model.safetensors: the file holds another network"):
        BodyNetwork()


def test_sees_what_the_network_sees(openpose: Path):
    pytest.importorskip("controlnet_aux")
    from controlnet_aux.open_pose.model import bodypose_model  # pyright: ignore[reportMissingImports]

    weights = {name.split(".", 1)[1]: value for name, value in bodypose_model().state_dict().items()}
    save_file(weights, openpose / "body_pose_model.safetensors")
    folder_paths.filename_list_cache.pop(OPENPOSE, None)
    finder = BodyNetwork()
    picture = torch.rand(32, 48, 3)
    frame = finder.find("key", picture)
    assert frame is not None and (frame["canvas_width"], frame["canvas_height"]) == (48, 32)
    assert frame == find_people(finder._network, (picture.numpy() * 255).round().astype("uint8"))


def test_says_what_to_install(openpose: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        EvaluationError, match="the Python package controlnet_aux, which finds people, is not installed"
    ):
        BodyNetwork()
