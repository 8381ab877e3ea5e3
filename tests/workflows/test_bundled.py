"""Every bundled workflow, by being there: both forms say the same, and the API form runs to pictures on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devtools.demo import pictures
from devtools.server import ComfyServer
from devtools.workflow_forms import api_form, graph_form
from devtools.workflow_sources import WORKFLOW_SOURCES, WORKFLOWS

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_source_is_bundled_and_nothing_else():
    assert sorted(workflow.name for workflow in WORKFLOW_SOURCES) == NAMES
    assert sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("workflow", WORKFLOW_SOURCES, ids=lambda workflow: workflow.name)
def test_both_forms_are_what_their_source_makes(server: ComfyServer, workflow):
    """Against the running host's own node definitions, so a changed input shows up here."""
    object_info = server.get("/object_info")
    assert read(WORKFLOWS / f"{workflow.name}.json") == graph_form(workflow, object_info)
    assert read(WORKFLOWS / "api" / f"{workflow.name}.json") == api_form(workflow, object_info)


@pytest.mark.parametrize("name", NAMES)
def test_runs_to_pictures(server: ComfyServer, name: str):
    history = server.run(read(WORKFLOWS / "api" / f"{name}.json"))
    files = pictures(history, server.data / "output")
    assert files
    for file in files:
        with Image.open(file) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape[-1] == 3 and pixels.std() > 1  # something was painted


@pytest.mark.parametrize("name", NAMES)
def test_has_a_thumbnail_the_page_can_show(server: ComfyServer, name: str):
    assert name in server.get("/workflow_templates")["comfyui_ensemble"]
    with Image.open(WORKFLOWS / f"{name}.jpg") as thumbnail:
        assert min(thumbnail.size) >= 256


def test_the_same_seed_paints_the_same_picture_again(server: ComfyServer):
    prompt = read(WORKFLOWS / "api" / "astra_pose_and_identity.json")
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    shots = []
    for seed in (11, 12, 11):
        sampler["inputs"]["seed"] = seed
        (file,) = pictures(server.run(prompt), server.data / "output")
        shots.append(np.asarray(Image.open(file)))
    assert np.array_equal(shots[0], shots[2]) and not np.array_equal(shots[0], shots[1])
