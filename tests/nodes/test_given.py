"""Values of another type than a node takes, as a client of the API may send them: one sentence for all of them."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

import pytest
import torch
from comfy_api.latest import io

import comfyui_ensemble
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.given import fits
from devtools.console import Problem
from devtools.server import ComfyServer, refusal

NODES = {node.__name__: node for node in asyncio.run(comfyui_ensemble.comfy_entrypoint().get_node_list())}
PICTURE = torch.rand(1, 64, 64, 3)
SUBJECT = {"name": "alice", "description": "", "category": "person"}
TEXT = [[torch.zeros(1, 2, 3), {}]]


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        (1, int, True),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (None, float, False),
        (None, float | None, True),
        (10**30, int, False),
        (float("nan"), float, True),
        (float("inf"), float, False),
        ("x", str | None, True),
        ({}, str | None, False),
        ({"samples": 1}, dict[str, Any], True),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ([object()], list[Any], True),
        (object(), Any, True),
        ("x", torch.Tensor, False),
        (PICTURE, torch.Tensor, True),
    ],
)
def test_fits(value, hint, expected):
    assert fits(value, hint) is expected


@pytest.mark.parametrize(
    "node, given, sentence",
    [
        (
            "EnsembleSubject",
            {"image": 3, **SUBJECT},
            "Subject, image: it is a number; connect an output of the type IMAGE.",
        ),
        (
            "EnsembleSubject",
            {"image": None, **SUBJECT},
            "Subject, image: it is nothing; connect an output of the type IMAGE.",
        ),
        (
            "EnsembleSubject",
            {"image": PICTURE, "mask": "left", **SUBJECT},
            "Subject, mask: it is text; connect an output of the type MASK.",
        ),
        (
            "EnsembleCastSheet",
            {"cast": {"a": 1}},
            "Cast Sheet, cast: it is a set of values; connect an output of the type ENSEMBLE_CAST.",
        ),
        ("EnsembleSubject", {"image": PICTURE, **SUBJECT, "name": 3}, "Subject, name: it is a number; give text."),
        (
            "EnsembleSubject",
            {"image": PICTURE, **SUBJECT, "name": "a\ud800"},
            "Subject, name: it holds a broken sign, \\ud800; write that place again.",
        ),
        (
            "EnsemblePoseLayout",
            {"poses": {"pose0": [], "pose1": None}, "width": 10**25, "height": 64},
            "Lay Out Poses, width: it is larger than any number that makes sense; stay below 18446744073709551616.",
        ),
        ("EnsembleTinySDXL", {"model": None}, "Tiny SDXL, model: the node has no such input; take its link away."),
    ],
)
def test_a_node_says_what_it_wants_instead(node, given, sentence):
    with pytest.raises(InputError) as caught:
        NODES[node].execute(**given)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("conditioning", [3, "a person", [], {}, [["a person", {}]], [[torch.zeros(1)]], [None]])
def test_conditioning_that_is_none(conditioning, vae):
    """An empty one is a conditioning, and the node has its own words for it."""
    given = {"conditioning": conditioning, "vae": vae, "cast": None, "reference_size": 64}
    with pytest.raises(InputError, match=r"Reference Latents, (conditioning|cast): "):
        NODES["EnsembleReferenceLatents"].execute(**given)


def test_parts_of_a_growing_input(sdxl):
    given = {"tau_start": 0.4, "tau_end": 0.1, "delta_start": 0.0, "delta_end": 3.0, "schedule": "linear", "top_k": 1}
    with pytest.raises(InputError, match="appearances: it is text; connect an output of the type ENSEMBLE_APPEARANCE"):
        NODES["EnsembleAppearanceInfusion"].execute(model=sdxl, appearances={"appearance0": "alice"}, **given)


def test_what_fits_goes_through():
    (cast,) = NODES["EnsembleSubject"].execute(image=PICTURE, mask=None, cast=None, **SUBJECT).args
    assert [subject.name for subject in cast.subjects] == ["alice"]
    assert NODES["EnsembleCastSheet"].execute(cast=cast).args[0].ndim == 4


@pytest.mark.parametrize("node", NODES.values(), ids=list(NODES))
def test_every_node_is_guarded_and_the_host_sees_no_difference(node: type[io.ComfyNode]):
    """Names of inputs that a node judges itself are read from its signature; a check of all others is the host's."""
    plain = node.__mro__[1]
    for name in ("execute", "validate_inputs"):
        if name in vars(plain):
            assert vars(node)[name] is not vars(plain)[name]
            assert inspect.getfullargspec(getattr(node, name)) == inspect.getfullargspec(getattr(plain, name))
    assert node.__module__ == plain.__module__ and node.GET_SCHEMA().node_id == plain.__name__


@pytest.mark.parametrize(
    "value", [3, {}, True, None, [1, 2, 3], {"__value__": [1]}, 10**400, "9" * 5000, "a\nb\x1b[31m"]
)
@pytest.mark.parametrize(
    "node, name",
    [
        ("EnsemblePoseDatabaseLoader", "database"),
        ("EnsemblePromptVariations", "action"),
        ("EnsembleTrainingData", "manifest"),
        ("EnsembleSubject", "category"),
    ],
)
def test_the_server_answers_with_sentences(server: ComfyServer, node: str, name: str, value: Any):
    """Whatever it says about a value, none of it is an error of the pack's own code."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "ensemble_alice.png"}},
        "2": {"class_type": node, "inputs": {"image": ["1", 0], **SUBJECT, **_defaults(server, node), name: value}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    status, answer = server.post("/prompt", {"prompt": prompt})
    assert status in (200, 400) and "comfyui_ensemble" not in json.dumps(answer) + refusal(answer)


def _defaults(server: ComfyServer, node: str) -> dict[str, Any]:
    required = server.get(f"/object_info/{node}")[node]["input"]["required"]
    return {name: entry[1]["default"] for name, entry in required.items() if "default" in entry[1]}


def test_null_where_a_link_belongs_fails_with_a_sentence(server: ComfyServer):
    prompt = {
        "1": {"class_type": "EnsembleCastSheet", "inputs": {"cast": None}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    with pytest.raises(Problem) as caught:
        server.run(prompt)
    assert "Cast Sheet, cast: it is nothing; connect an output of the type ENSEMBLE_CAST." in str(caught.value)
