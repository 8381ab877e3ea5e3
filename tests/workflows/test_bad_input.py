"""A mistake in a workflow: one sentence that names node, input and remedy, and the server stays up."""

from __future__ import annotations

import copy
import json

import pytest

from comfyui_ensemble.models_info.registry import BUNDLED_POSES, PACK_FOLDER, POSE_DATABASES
from devtools.console import Problem
from devtools.server import ComfyServer, refusal
from devtools.workflow_sources import WORKFLOWS

# Without its previews: the host runs whatever output is left when another one's inputs are wrong.
WORKFLOW = {
    number: node
    for number, node in json.loads(
        (WORKFLOWS / "api" / "astra_pose_and_identity.json").read_text(encoding="utf-8")
    ).items()
    if not node["class_type"].startswith("Preview")
}


def node_of(prompt: dict, class_type: str) -> tuple[str, dict]:
    return next((number, node) for number, node in prompt.items() if node["class_type"] == class_type)


def changed(class_type: str, **inputs) -> dict:
    """The main workflow with inputs of one node set (None takes an input away)."""
    prompt = copy.deepcopy(WORKFLOW)
    _, node = node_of(prompt, class_type)
    for name, value in inputs.items():
        node["inputs"].pop(name, None)
        if value is not None:
            node["inputs"][name] = value
    return prompt


def crowd(count: int) -> dict:
    """The main workflow with `count` subjects in its cast."""
    prompt = copy.deepcopy(WORKFLOW)
    last = max(
        (number for number, node in prompt.items() if node["class_type"] == "EnsembleSubject"),
        key=lambda number: "cast" in prompt[number]["inputs"],
    )
    users = [
        (node, name)
        for node in prompt.values()
        for name, value in node["inputs"].items()
        if value == [last, 0] and node["class_type"] != "EnsembleSubject"
    ]
    previous = last
    for extra in range(count - 2):
        number = str(1000 + extra)
        prompt[number] = copy.deepcopy(prompt[last])
        prompt[number]["inputs"] |= {"name": f"extra {extra}", "cast": [previous, 0]}
        previous = number
    for node, name in users:
        node["inputs"][name] = [previous, 0]
    return prompt


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        (
            changed("EnsemblePoseRetriever", prompt="  "),
            "Retrieve Pose, prompt: it is empty; write what the people do.",
        ),
        (changed("EnsemblePoseDatabaseLoader", database="mine"), "Load Pose Database, database: there is no 'mine' in"),
        (
            changed("EnsemblePoseDatabaseLoader", database="../../x"),
            "Load Pose Database, database: there is no '../../x'",
        ),
        (changed("EnsembleSubject", image=None), "EnsembleSubject: Required input is missing (image)"),
        (changed("EnsembleReferenceLatents", cast=None), "EnsembleReferenceLatents: Required input is missing (cast)"),
        (changed("EnsembleSubject", category="hairdo"), "Subject, category: 'hairdo' is unknown; choose one of person"),
        (changed("EnsembleEURoPE", mode="sideways"), "EnsembleEURoPE: Value not in list (mode: 'sideways'"),
        (
            changed("EnsembleReferenceLatents", reference_size=0),
            "EnsembleReferenceLatents: Value 0 smaller than min of 64",
        ),
        (changed("EnsemblePoseRender", width=10**9), "EnsemblePoseRender: Value 1000000000 bigger than max of 16384"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refused_before_the_run(server: ComfyServer, prompt, sentence):
    status, answer = server.post("/prompt", {"prompt": prompt})
    assert status == 400
    assert sentence in refusal(answer)
    assert server.get("/system_stats")


def test_an_empty_prompt_that_comes_by_a_link(server: ComfyServer):
    prompt = changed("PrimitiveStringMultiline", value="")
    check_failure(server, prompt, "Normalize Prompt, prompt: it is empty; write what the people do.")
    written = next(key for key, node in prompt.items() if node["class_type"] == "PrimitiveStringMultiline")
    for node in prompt.values():
        if node["class_type"] == "EnsemblePoseRetriever":
            node["inputs"]["prompt"] = [written, 0]
    check_failure(server, prompt, "Retrieve Pose, prompt: it is empty; write what the people do.")


def test_a_mask_of_another_size(server: ComfyServer):
    prompt = changed("EnsembleSubject", mask=["900", 0])
    prompt["900"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 48, "height": 40}}
    check_failure(server, prompt, "Subject, mask: it is 1 of 48 x 40 pixels, the picture is 512 x 512;")


def test_references_larger_than_the_canvas(server: ComfyServer):
    sentence = (
        "EURoPE: the reference of 'alice' (32 x 32 tokens) is larger than the canvas (8 x 8);"
        " lower reference_size on Reference Latents or enlarge the latent."
    )
    check_failure(server, changed("EnsembleReferenceLatents", reference_size=512), sentence)


def test_forty_references(server: ComfyServer):
    check_failure(server, crowd(40), "Subject, cast: it is full at 32 subjects; leave some out.")


def test_a_database_cut_in_half(server: ComfyServer):
    whole = (PACK_FOLDER / "pose_db" / "data" / BUNDLED_POSES.name).read_bytes()
    folder = server.models / POSE_DATABASES
    folder.mkdir(exist_ok=True)
    half = folder / "half.safetensors"
    half.write_bytes(whole[: len(whole) // 2])
    try:
        prompt = changed("EnsemblePoseDatabaseLoader", database="half.safetensors")
        check_failure(server, prompt, "Load Pose Database, database: the pose database half.safetensors cannot be read")
    finally:
        half.unlink()


def test_a_model_that_is_not_flux_has_its_own_sentence(server: ComfyServer):
    """The positions node with a VAE where the model belongs is refused by type, before anything runs."""
    vae, _ = node_of(WORKFLOW, "VAELoader")
    status, answer = server.post("/prompt", {"prompt": changed("EnsembleEURoPE", model=[vae, 0])})
    assert status == 400 and "Return type mismatch between linked nodes" in refusal(answer)


def check_failure(server: ComfyServer, prompt: dict, sentence: str) -> None:
    """The run ends with exactly this sentence, and the next one works."""
    with pytest.raises(Problem) as caught:
        server.run(prompt)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message and message.endswith(".")
    assert server.get("/system_stats")
