"""Which input a column fills."""

from __future__ import annotations

import pytest

from comfyui_ensemble.batch.addresses import Addresses
from comfyui_ensemble.batch.errors import BatchError

WORKFLOW = {
    "4": {"class_type": "LoadImage", "inputs": {"image": "alice.png"}, "_meta": {"title": "Alice"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 0], "text": "a"}, "_meta": {"title": "Positive"}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 0], "text": "b"}, "_meta": {"title": "Negative"}},
    "9": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "steps": 2, "model": ["1", 0], "cfg": ["20", 0]},
        "_meta": {"title": "K v1.5"},
    },
    "10": {"class_type": "CLIPTextEncode", "inputs": {"text": "c"}, "_meta": {"title": "Negative"}},
    "11": {"class_type": "EnsembleSubject", "inputs": {"image": ["4", 0], "name": "alice"}, "_meta": {"title": "Who"}},
    "12": {
        "class_type": "ResizeImageMaskNode",
        "inputs": {"resize_type": "scale by multiplier", "resize_type.multiplier": 1.0, "values.value0": 3},
        "_meta": {"title": "Size"},
    },
    "20": {"class_type": "PrimitiveFloat", "inputs": {"value": 1.0}},
}


@pytest.fixture(scope="module")
def addresses(object_info) -> Addresses:
    return Addresses(WORKFLOW, object_info)


@pytest.mark.parametrize(
    ("column", "slot"),
    {
        "Positive.text": ("7", "text"),
        "8.text": ("8", "text"),
        "seed": ("9", "seed"),
        "K v1.5.steps": ("9", "steps"),
        "k V1.5.STEPS": ("9", "steps"),
        "denoise": ("9", "denoise"),  # not in the workflow, but the node has it
        "Alice.image": ("4", "image"),
        "image": ("4", "image"),  # the Subject's takes a connection
        "Who.description": ("11", "description"),
        "Size.resize_type.multiplier": ("12", "resize_type.multiplier"),
        "Size.values.value0": ("12", "values.value0"),
        "PrimitiveFloat.value": ("20", "value"),  # a node without a title is called by its class
    }.items(),
)
def test_finds(addresses: Addresses, column: str, slot: tuple[str, str]):
    target = addresses.find(column)
    assert (target.node, target.declared.name) == slot


@pytest.mark.parametrize(
    ("column", "sentence"),
    {
        "text": "could mean several inputs; call it one of '7.text', '8.text', '10.text'",
        "Negative.text": "call it one of '8.text', '10.text'",
        "Positive.txt": "fills no input of the workflow; did you mean 'Positive.text'?",
        "sead": "did you mean 'seed'?",
        "Who.image": "takes a connection; fill 'Alice.image' instead",
        "K v1.5.cfg": "fill 'PrimitiveFloat.value' instead",
        "K v1.5.model": "only values can come from a jobs file",
        "qqqqqqqqqqq": "fills no input of the workflow; write Title.input",
    }.items(),
)
def test_says_what_is_wrong(addresses: Addresses, column: str, sentence: str):
    with pytest.raises(BatchError) as raised:
        addresses.find(column)
    assert sentence in str(raised.value)
