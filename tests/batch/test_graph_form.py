"""Graph form -> API form, against what ComfyUI's own page makes of the same graphs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from comfyui_ensemble.batch.errors import BatchError
from comfyui_ensemble.batch.graph_form import api_form, is_graph
from devtools.workflow_sources import WORKFLOWS

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
# Built and exported with ComfyUI's page 1.47.12: muted, bypassed and routed nodes, a primitive, choices that bring inputs of
# their own, upload buttons, seeds with their control, comments in a prompt, notes.
ODD = Path(__file__).with_name("odd_graph.json")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_bundled_workflow_becomes_what_the_page_sends(object_info, name: str):
    graph = read(WORKFLOWS / f"{name}.json")
    before = copy.deepcopy(graph)
    assert is_graph(graph) and not is_graph(read(WORKFLOWS / "api" / f"{name}.json"))
    assert api_form(graph, object_info) == read(WORKFLOWS / "api" / f"{name}.json")
    assert graph == before


def test_what_only_the_page_knows_becomes_what_the_page_sends(object_info):
    odd = read(ODD)
    assert api_form(odd["graph"], object_info) == odd["api"]


def test_links_may_be_objects(object_info):
    odd = read(ODD)
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    odd["graph"]["links"] = [dict(zip(keys, link, strict=True)) for link in odd["graph"]["links"]]
    assert api_form(odd["graph"], object_info) == odd["api"]


def graph_of(*nodes: dict[str, Any], links: tuple = ()) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": list(links), "version": 0.4}


def node(number: int, type_: str, values: Any = (), **more: Any) -> dict[str, Any]:
    return {"id": number, "type": type_, "mode": 0, "inputs": [], "outputs": [], "widgets_values": values, **more}


def test_a_value_that_was_not_saved_is_the_default_and_names_are_read_too(object_info):
    short = api_form(graph_of(node(1, "EmptyImage", [64])), object_info)
    assert short["1"]["inputs"] == {"width": 64, "height": 512, "batch_size": 1, "color": 0}
    named = api_form(graph_of(node(1, "EmptyImage", {"width": 8, "colour of the frame": 3})), object_info)
    assert named["1"]["inputs"] == {"width": 8}


def test_a_choice_can_bring_inputs_of_its_own(object_info):
    values = ["scale dimensions", 32, 48, "disabled", "area"]
    made = api_form(graph_of(node(1, "ResizeImageMaskNode", values)), object_info)
    assert made["1"]["inputs"] == {
        "resize_type": "scale dimensions",
        "resize_type.width": 32,
        "resize_type.height": 48,
        "resize_type.crop": "disabled",
        "scale_method": "area",
    }


def test_a_bypassed_node_hands_through_what_fits(object_info):
    sampler = node(2, "KSampler", [1, "fixed", 2, 1.0, "euler", "simple", 1.0], mode=4)
    sampler["inputs"] = [{"name": "model", "type": "MODEL", "link": None}]
    sampler["inputs"] += [{"name": "latent_image", "type": "LATENT", "link": 1}]
    sampler["outputs"] = [{"name": "LATENT", "type": "LATENT", "links": [2]}]
    latent = node(1, "EmptyLatentImage", [64, 64, 1], outputs=[{"name": "LATENT", "type": "LATENT", "links": [1]}])
    decode = node(3, "VAEDecode", [])
    decode["inputs"] = [{"name": "samples", "type": "LATENT", "link": 2}, {"name": "vae", "type": "VAE", "link": None}]
    made = api_form(
        graph_of(latent, sampler, decode, links=([1, 1, 0, 2, 1, "LATENT"], [2, 2, 0, 3, 0, "LATENT"])), object_info
    )
    assert sorted(made) == ["1", "3"] and made["3"]["inputs"] == {"samples": ["1", 0]}


REFUSED = {
    "the server has no node 'SomethingElse'; install": graph_of(node(1, "SomethingElse")),
    "holds the subgraph 'Faces'": graph_of(node(1, "5f3c", title="Faces"))
    | {"definitions": {"subgraphs": [{"id": "5f3c"}]}},
    "holds the subgraph 'workflow>Old'": graph_of(node(1, "workflow>Old")),
    r"lets the page choose between \{this\|that\}": graph_of(node(1, "CLIPTextEncode", ["a {red|blue} coat"])),
    "the values of 'EmptyImage' do not fit": graph_of(node(1, "EmptyImage", ["64", 64, 1, 0])),
    "the values of 'Seed' do not fit": graph_of(node(1, "RandomNoise", [True, "fixed"], title="Seed")),
    "file is damaged": graph_of({"id": 1}),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_converted_is_refused_with_the_remedy(object_info, sentence: str):
    with pytest.raises(BatchError, match=sentence):
        api_form(REFUSED[sentence], object_info)


def test_a_circle_of_reroutes_is_refused(object_info):
    routes = [node(number, "Reroute") for number in (1, 2)]
    for number, route in enumerate(routes):
        route["inputs"] = [{"name": "", "type": "*", "link": 2 - number}]
        route["outputs"] = [{"name": "", "type": "IMAGE", "links": [number + 1]}]
    save = node(3, "SaveImage", ["x"], inputs=[{"name": "images", "type": "IMAGE", "link": 3}])
    links = ([1, 1, 0, 2, 0, "*"], [2, 2, 0, 1, 0, "*"], [3, 1, 0, 3, 0, "*"])
    with pytest.raises(BatchError, match="run in a circle"):
        api_form(graph_of(*routes, save, links=links), object_info)


def test_nodes_whose_widgets_the_page_draws_are_refused_with_the_remedy(object_info):
    drawn = next(
        name
        for name, info in object_info.items()
        for spec in info["input"].get("required", {}).values()
        if spec[0] == "CURVE"
    )
    with pytest.raises(BatchError, match="only the page knows how"):
        api_form(graph_of(node(1, drawn, [[[0, 0], [1, 1]]])), object_info)
