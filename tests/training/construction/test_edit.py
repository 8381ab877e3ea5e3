"""Re-editing through a real ComfyUI: any workflow in API form."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.batch.queue_client import QueueClient, QueueError
from comfyui_ensemble.training.construction.build import build
from comfyui_ensemble.training.construction.captioners import FileCaptioner
from comfyui_ensemble.training.construction.edit import check_edit_workflow, edit
from comfyui_ensemble.training.construction.judge import same_subject
from comfyui_ensemble.training.construction.models import Models, Remote, Vision
from comfyui_ensemble.training.construction.settings import BuildConfig
from comfyui_ensemble.training.errors import TrainingError
from devtools.server import ComfyServer

from .drawn import draw

WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "Reference"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Invert Image"}},
    "3": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "x"}, "_meta": {"title": "Prompt"}},
    "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    "5": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "edit"}},
}
CONFIG = BuildConfig(
    poses=False, min_side=32, clip_i=-1.0, categories=("animal",), margin=0.0, edit_prompt="The {description}!"
)


def test_a_crop_goes_in_and_its_edit_comes_out(server: ComfyServer, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "crop.png")
    client = QueueClient(server.url)
    made = edit(client, WORKFLOW, ("Reference", "Prompt"), (tmp_path / "crop.png").read_bytes(), "a dog", 7)
    (tmp_path / "made.png").write_bytes(made)
    inverted = np.asarray(Image.open(tmp_path / "made.png").convert("RGB"), dtype=int)
    np.testing.assert_allclose(inverted, 255 - pixels.astype(int), atol=1)  # Save Image rounds down
    history = json.dumps(server.get("/history"))
    assert "a dog" in history


def test_references_are_edited_once_and_filtered(server: ComfyServer, bright_sam, vision, tmp_path: Path):
    for seed, name in enumerate(("one", "two")):
        draw(
            tmp_path / "in",
            name,
            "a dog and a cat",
            [("a dog", (1, 1, 6, 6), seed), ("a cat", (9, 9, 13, 13), 5)],
            seed,
        )
    editor = Remote(QueueClient(server.url), WORKFLOW, ("Reference", "Prompt"))
    models = Models(FileCaptioner(), bright_sam, Vision(vision), editor=editor)
    result = build(tmp_path / "in", tmp_path / "out", models, CONFIG)
    assert result.manifest is not None
    rows = [json.loads(line) for line in result.manifest.read_text().splitlines()]
    prompts = json.dumps([entry["prompt"][2] for entry in server.get("/history").values()])
    assert prompts.count("The a dog!") == 2 and prompts.count("The a cat!") == 2
    for row in rows:
        for subject in row["subjects"]:
            target = np.asarray(Image.open(tmp_path / "out" / row["target"]))
            left, top, right, bottom = (int(side) for side in subject["box"])
            edited = np.asarray(Image.open(tmp_path / "out" / subject["reference"]), dtype=int)
            different = np.abs(edited - (255 - target[top:bottom, left:right].astype(int))).max(axis=2) > 1
            assert (
                different.sum() <= 4
            )  # corners, which SAM's enlarging of its masks rounds off and which are white then
    before = (result.manifest.read_bytes(), len(server.get("/history")))
    build(tmp_path / "in", tmp_path / "out", models, CONFIG)
    assert (result.manifest.read_bytes(), len(server.get("/history"))) == before  # nothing was edited again


def test_edits_that_look_like_something_else_are_tried_again_and_left_out(server, bright_sam, vision, tmp_path: Path):
    draw(tmp_path / "in", "one", "a dog", [("a dog", (1, 1, 6, 6), 1)], 0)
    draw(tmp_path / "in", "two", "a dog", [("a dog", (2, 1, 7, 6), 1)], 1)
    editor = Remote(QueueClient(server.url), WORKFLOW, ("Reference", ""))
    models = Models(FileCaptioner(), bright_sam, Vision(vision), editor=editor)
    before = len(server.get("/history"))
    result = build(tmp_path / "in", tmp_path / "out", models, replace(CONFIG, clip_i=1.0, edit_tries=2))
    assert result.manifest is None and result.pairs is not None  # pairs need no edits
    assert len(server.get("/history")) == before + 4
    assert "no edit of 'a dog' passed, the best CLIP-I is" in result.summary["left out"]["one.png"][0]
    result = build(tmp_path / "in", tmp_path / "out", models, replace(CONFIG, edit_tries=2))
    assert (
        result.manifest is not None and len(server.get("/history")) == before + 4
    )  # the edits are judged anew, not made


# Judging pairs


def judge_workflow(answer: str) -> dict:
    """Stands for a vision-language model: answers always the same, and shows the question."""
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "First"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "Second"}},
        "3": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": answer}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
        "5": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }


@pytest.mark.parametrize(
    "answer, verdict", [("Yes, they do.", True), ("I think: no", False), ("It is not known.", None), ("%prompt%", True)]
)
def test_the_first_yes_or_no_counts(server: ComfyServer, answer, verdict):
    client = QueueClient(server.url)
    assert same_subject(client, judge_workflow(answer), ("First", "Second"), _png(), _png(), "dog", 1) is verdict


def test_pairs_are_judged_once(server: ComfyServer, bright_sam, vision, tmp_path: Path):
    for number in range(2):
        draw(tmp_path / "in", f"{number}", "a dog", [("a dog", (1 + number, 1, 6 + number, 6), 1)], number)
    counts = []
    for answer in ("yes", "yes", "no"):
        judge = Remote(QueueClient(server.url), judge_workflow(answer), ("First", "Second"))
        models = Models(FileCaptioner(), bright_sam, Vision(vision), judge=judge)
        result = build(tmp_path / "in", tmp_path / "out", models, CONFIG)
        counts.append((sum(result.summary["pairs"].values()), len(server.get("/history"))))
    first = counts[0][1]
    assert counts == [(1, first), (1, first), (0, first + 1)]
    assert result.pairs is None and result.summary["pairs not verified"] == {"animal": 1}
    silent = judge_workflow("x")
    del silent["4"]
    with pytest.raises(TrainingError, match="the workflow shows no answer"):
        same_subject(QueueClient(server.url), silent, ("First", "Second"), _png(), _png(), "dog", 1)


def without(number: str, **inputs) -> dict:
    workflow = copy.deepcopy(WORKFLOW)
    if inputs:
        workflow[number]["inputs"] = inputs
    else:
        del workflow[number]
    return workflow


@pytest.mark.parametrize(
    "workflow, nodes, said",
    [
        ({}, ("Reference", ""), "is not in API form"),
        ({"nodes": [], "links": []}, ("Reference", ""), "is not in API form"),
        (WORKFLOW, ("Subject", ""), "has no node called 'Subject'; give the title to one node"),
        (WORKFLOW, ("Invert Image", ""), "the workflow's node 'Invert Image' takes no picture file"),
        (WORKFLOW, ("Reference", "Invert Image"), "the workflow's node 'Invert Image' has no text box"),
        ({**WORKFLOW, "9": WORKFLOW["1"]}, ("reference", ""), "has 2 nodes called 'reference'"),
    ],
)
def test_workflows_that_will_not_do(workflow, nodes, said):
    with pytest.raises(TrainingError) as caught:
        check_edit_workflow(workflow, *nodes)
    assert said in str(caught.value) and caught.value.input_name == "workflow"


def test_nodes_by_title_or_number():
    check_edit_workflow(WORKFLOW, " reference ", "PROMPT")
    check_edit_workflow(WORKFLOW, "1", "3")


def test_what_the_server_says_is_passed_on(server: ComfyServer):
    client = QueueClient(server.url)
    with pytest.raises(TrainingError, match="the workflow saves no picture"):
        edit(client, without("5"), ("Reference", ""), _png(), "", 0)
    with pytest.raises(QueueError, match="LoadImage"):
        edit(client, WORKFLOW, ("Reference", ""), b"no picture", "", 0)
    with pytest.raises(QueueError, match="ComfyUI does not answer"):
        edit(QueueClient("http://127.0.0.1:9"), WORKFLOW, ("Reference", ""), _png(), "", 0)


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="PNG")
    return buffer.getvalue()
