"""The pack as ComfyUI loads it: complete, light, and whole without its optional dependencies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import comfyui_ensemble
from comfyui_ensemble.nodes.pose import EnsemblePoseRender, EnsemblePoseRetriever
from comfyui_ensemble.nodes.pose_browser import EnsemblePoseBrowser
from comfyui_ensemble.pose_db.database import empty_database
from comfyui_ensemble.pose_db.keypoints import frame_from_people
from comfyui_ensemble.pose_db.retriever import PoseRetriever

PACK = Path(comfyui_ensemble.__file__).parent
SLOW = ("faiss", "sentence_transformers", "cv2", "segment_anything", "controlnet_aux", "sklearn", "matplotlib")
RUN_ONLY = (
    "comfyui_ensemble.evaluation.people",
    "comfyui_ensemble.training.construction.build",
    "comfyui_ensemble.training.loop",
    "comfyui_ensemble.training.model",
    "comfyui_ensemble.training.puppets",
)

LOAD = f"""
import sys
import comfyui_ensemble.training, comfy.sd, comfy_api.latest
before = set(sys.modules)
import asyncio, comfyui_ensemble
extension = comfyui_ensemble.comfy_entrypoint()
asyncio.run(extension.on_load())
asyncio.run(extension.get_node_list())
print(sorted(set({(*SLOW, *RUN_ONLY)!r}) & (set(sys.modules) - before)))
"""


def test_loading_imports_nothing_slow_and_nothing_that_only_running_needs():
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_node_has_one_id_and_a_help_page():
    nodes = asyncio.run(comfyui_ensemble.comfy_entrypoint().get_node_list())
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    assert len(set(ids)) == len(ids) >= 8 and all(
        node.__name__ == node_id for node, node_id in zip(nodes, ids, strict=True)
    )
    pages = {path.stem for path in (PACK / comfyui_ensemble.WEB_DIRECTORY / "docs").glob("*.md")}
    assert pages == set(ids)


@pytest.mark.parametrize("package", ["faiss", "sentence_transformers"])
@pytest.mark.parametrize("node", [EnsemblePoseRetriever, EnsemblePoseBrowser])
def test_retrieval_without_its_packages_says_so(monkeypatch, package, node):
    monkeypatch.setitem(sys.modules, package, None)
    retriever = PoseRetriever(empty_database("none"), PACK)
    values = {"threshold": 0.0, "rank": 1} if node is EnsemblePoseRetriever else {"count": 1}
    with pytest.raises(ModuleNotFoundError, match=f"the Python package {package} is not installed; run `pip install"):
        node.execute(retriever, "a duel", **values)


def test_drawing_without_its_package_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match="Render Pose: the Python package cv2 is not installed; run"):
        EnsemblePoseRender.execute([frame_from_people(np.zeros((0, 18, 3)), 64, 64)], 64, 64, 4)


def test_the_others_work_without_any_of_them(monkeypatch, clip, vae):
    for package in SLOW:
        monkeypatch.setitem(sys.modules, package, None)
    from comfyui_ensemble.nodes.cast import EnsembleCastSheet, EnsembleSubject
    from comfyui_ensemble.nodes.flux import EnsembleReferenceLatents

    (cast,) = EnsembleSubject.execute(torch.rand(1, 64, 64, 3), "alice", "a woman", "person").args
    assert EnsembleCastSheet.execute(cast).args[0].ndim == 4
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a duel"))
    assert EnsembleReferenceLatents.execute(conditioning, vae, cast, 64).args[1].grids == ((4, 4),)
