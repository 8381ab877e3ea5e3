"""Workflows fitted to a benchmark: numbers of subjects, pictures of poses, prompts, seeds, sizes."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import pytest

from comfyui_ensemble.batch.plan import for_server
from comfyui_ensemble.evaluation.benchmarks.fitting import (
    BUNDLED,
    load_workflow,
    pruned,
    with_structure,
    with_subjects,
    without_pose,
)
from comfyui_ensemble.evaluation.benchmarks.links import Workflow, is_link
from comfyui_ensemble.evaluation.benchmarks.queues import as_prompt, workflow_size
from comfyui_ensemble.evaluation.benchmarks.slots import (
    address,
    picture_slots,
    prompt_slots,
    seed_slots,
    size_slots,
    subject_nodes,
)
from comfyui_ensemble.evaluation.errors import EvaluationError
from devtools.server import ComfyServer

WITH_CAST = [
    *("astra_multi_subject", "astra_pose_and_identity", "one_for_all_dress", "one_for_all_face_top_bottom_bag"),
    *("one_for_all_with_pose", "anystory_two_subjects", "anystory_routes_seal"),
]
MANY_PROMPTS = {"anystory_story", "pose_database_factory"}  # which they make themselves
WITH_POSE = ["astra_multi_subject", "astra_pose_and_identity", "one_for_all_with_pose", "seal_identity_and_pose"]


def whole(workflow: Workflow) -> bool:
    """Whether every link leads to a node that is there."""
    links = [value for node in workflow.values() for value in node["inputs"].values() if is_link(value)]
    return all(link[0] in workflow for link in links)


@pytest.mark.parametrize("name", WITH_CAST)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_has_as_many_subjects_as_wanted(server: ComfyServer, name: str, count: int):
    workflow = load_workflow(name)
    before = copy.deepcopy(workflow)
    fitted = pruned(with_subjects(without_pose(workflow), count), workflow)
    assert workflow == before
    nodes, pictures = subject_nodes(fitted), picture_slots(fitted)
    assert len(nodes) == count == len(set(pictures)) and whole(fitted)
    for first, second in itertools.pairwise(nodes):
        assert fitted[second]["inputs"]["cast"] == [first, 0]
    assert "cast" not in fitted[nodes[0]]["inputs"]
    takers = [
        node["inputs"]["cast"]
        for node in fitted.values()
        if node["class_type"] != "EnsembleSubject" and "cast" in node["inputs"]
    ]
    assert takers and all(cast == [nodes[-1], 0] for cast in takers)
    columns = [address(fitted, slot) for slot in [*pictures, *((node, "name") for node in nodes)]]
    assert len(set(columns)) == 2 * count
    for_server(fitted, server.get("/object_info"))


@pytest.mark.parametrize("name", WITH_POSE)
def test_takes_the_pose_from_a_picture(server: ComfyServer, name: str):
    workflow = load_workflow(name)
    fitted = pruned(with_structure(workflow), workflow)
    assert whole(fitted)
    kinds = {node["class_type"] for node in fitted.values()}
    assert not kinds & {
        "EnsemblePoseRetriever",
        "EnsemblePoseRender",
        "EnsemblePoseLayout",
        "EnsemblePoseDatabaseLoader",
    }
    titles = [node["_meta"]["title"] for node in fitted.values()]
    assert titles.count("Structure") == 1
    for_server(fitted, server.get("/object_info"))


@pytest.mark.parametrize("name", sorted({path.stem for path in BUNDLED.glob("*.json")} - MANY_PROMPTS))
def test_finds_prompt_seed_and_size_of_every_workflow_that_paints(name: str):
    workflow = load_workflow(name)
    sampler = next((node for node in workflow.values() if node["class_type"] == "KSampler"), None)
    if sampler is None:
        return
    ((node, text),) = prompt_slots(workflow)
    assert len(workflow[node]["inputs"][text]) > 10 and "blurry" not in workflow[node]["inputs"][text]
    assert seed_slots(workflow)
    ((width, height),) = size_slots(workflow)
    assert workflow_size(workflow) == tuple(workflow[number]["inputs"][side] for number, side in (width, height))


def test_the_prompt_is_found_through_everything_between():
    ((node, name),) = prompt_slots(load_workflow("astra_pose_and_identity"))
    assert (name, load_workflow("astra_pose_and_identity")[node]["class_type"]) == ("value", "PrimitiveStringMultiline")
    ((node, name),) = prompt_slots(load_workflow("seal_identity_and_pose"))
    assert load_workflow("seal_identity_and_pose")[node]["_meta"]["title"] == "Prompt" and name == "text"
    guided = {
        "1": {"class_type": "CLIPTextEncodeFlux", "inputs": {"clip_l": "a", "t5xxl": "b"}},
        "2": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["1", 0]}},
        "3": {"class_type": "BasicGuider", "inputs": {"conditioning": ["2", 0], "model": ["9", 0]}},
        "4": {"class_type": "RandomNoise", "inputs": {"noise_seed": 3}},
    }
    assert prompt_slots(guided) == [("1", "clip_l"), ("1", "t5xxl")]
    assert seed_slots(guided) == [("4", "noise_seed")]


def test_a_column_is_called_by_a_title_of_its_own():
    workflow = load_workflow("astra_multi_subject")
    assert address(workflow, ("3", "name")) == "Subject 1.name"
    assert address(workflow, ("2", "mask")) == "2.mask"  # three nodes are called 'Alpha to mask'


def test_nothing_in_a_text_is_a_weight():
    assert as_prompt("a (very) big \\ dog:1.2") == "a \\(very\\) big \\\\ dog:1.2"


def test_says_what_is_wrong_with_a_workflow(tmp_path: Path):
    def loading(content: object) -> Workflow:
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return load_workflow(str(path))

    graph = json.loads((BUNDLED.parent / "astra_multi_subject.json").read_text(encoding="utf-8"))
    with pytest.raises(EvaluationError, match=r"is in the form of ComfyUI's page; save it with Export \(API\)"):
        loading(graph)
    with pytest.raises(EvaluationError, match="--workflow: there is no workflow file"):
        load_workflow("astra_multi_subjects")
    with pytest.raises(EvaluationError, match="--workflow: there is no workflow file"):
        load_workflow("../astra_multi_subject")
    plain = loading({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}})
    with pytest.raises(EvaluationError, match="it has no Subject node"):
        with_subjects(plain, 2)
    with pytest.raises(EvaluationError, match="nothing in it takes the picture of a pose"):
        with_structure(plain)
    with pytest.raises(EvaluationError, match="no prompt is written behind the sampler's positive input"):
        prompt_slots(plain)
    with pytest.raises(EvaluationError, match="it has no seed to set"):
        seed_slots(plain)
    with pytest.raises(EvaluationError, match="no Empty Latent whose size could be set"):
        workflow_size(plain)
    preview = {"1": {"class_type": "PreviewImage", "inputs": {}}}
    with pytest.raises(EvaluationError, match="it saves nothing; add a Save Image node"):
        pruned(preview, preview)
    subject = {"1": {"class_type": "EnsembleSubject", "inputs": {"image": ["2", 0]}}}
    subject["2"] = {"class_type": "EmptyImage", "inputs": {"width": 8}}
    with pytest.raises(EvaluationError, match="the picture of 'EnsembleSubject' comes from no Load Image node"):
        picture_slots(subject)
