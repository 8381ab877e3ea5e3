"""DAM's file: what is written comes back, and what will not do says so."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import comfy.memory_management
import comfy.ops
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from comfyui_ensemble.attention_patches import dam_file
from comfyui_ensemble.attention_patches.dam_file import HEADER, DAMError, load_dam, write_dam
from comfyui_ensemble.attention_patches.dam_generator import FLUX_DAM, DAMConfig, DAMGenerators, fresh_dam
from comfyui_ensemble.attention_patches.dsm_adapter import DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.dsm_file import DSMError, load_dsm, write_dsm

CONFIG = DAMConfig(model_width=12, width=5, double_blocks=2, single_blocks=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    write_dam(path, fresh_dam(CONFIG, 0), CONFIG)
    return path


def rewrite(path: Path, tensors=lambda tensors: tensors, metadata=lambda metadata: metadata) -> None:
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()[HEADER])
    held = {name: value.clone() for name, value in load_file(path).items()}
    save_file(tensors(held), path, metadata={HEADER: json.dumps(metadata(old))})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "changed", [{}, {"double_blocks": 0}, {"single_blocks": 0}, {"single_blocks": 11}, {"t_min": 0.2}]
)
def test_what_is_written_comes_back(tmp_path, dtype, changed):
    config, path = dataclasses.replace(CONFIG, **changed), tmp_path / "a.safetensors"
    weights = {name: value.to(dtype) for name, value in fresh_dam(config, 0).items()}
    write_dam(path, weights, config)
    dam = load_dam(path)
    assert isinstance(dam, ModelPatcher) and dam.model.config == config
    held = dam.model.state_dict()
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], weights[name]) and held[name].dtype == dtype for name in held)


def test_loads_where_the_host_makes_weights_late(path, monkeypatch):
    """As it does on graphics cards whose memory it manages dynamically; reading the file needs such a card."""
    expected, weights = fresh_dam(CONFIG, 0), load_file(path)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda *args, **kwargs: weights)
    for held in (fresh_dam(CONFIG, 0), load_dam(path).model.state_dict()):
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[name], expected[name]) for name in held)


def test_the_host_can_copy_a_dam_for_another_device(path):
    """What its multi-GPU nodes do with every additional model: load the weights afresh."""
    dam = load_dam(path)
    copy = dam.deepclone_multigpu(torch.device("cpu"))
    assert copy.model is not dam.model and copy.model.config == CONFIG
    held = copy.model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in dam.model.state_dict().items())


def test_a_fresh_dam_is_reproducible_and_its_last_layers_are_zero():
    one, same, other = fresh_dam(CONFIG, 0), fresh_dam(CONFIG, 0), fresh_dam(CONFIG, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert {name for name, value in one.items() if value.any()} == {name for name in one if name.endswith("in.weight")}


def test_the_flux_sizes_are_light():
    dam = DAMGenerators(FLUX_DAM, torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    assert len(dam.double_blocks) == 19 and len(dam.single_blocks) == 38
    assert sum(value.numel() for value in dam.parameters()) == 57 * (128 * 3072 + 2 * 128 + 1)


def test_the_neutral_point_that_the_file_is_said_to_have():
    assert round(math.log(math.exp(1 - FLUX_DAM.t_min) - 1), 4) == 0.5255
    assert "0.5255" in (dam_file.__doc__ or "")


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_half_a_file(path, length):
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with pytest.raises(DAMError, match="no whole safetensors file"):
        load_dam(path)


def test_another_kind_of_file(path, tmp_path):
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DAMError, match="it is no DAM of this pack; choose another file"):
        load_dam(path)
    save_file({"a": torch.zeros(1)}, path, metadata={HEADER: "[1]"})
    with pytest.raises(DAMError, match="it is no DAM of this pack"):
        load_dam(path)
    config = DSMConfig(12, 8, 2, 6, 5, (0,), 3, 10, 1, 1)
    write_dsm(tmp_path / "dsm", fresh_dsm(config, 0), config)
    with pytest.raises(DAMError, match="it is no DAM of this pack"):
        load_dam(tmp_path / "dsm")
    write_dam(path, fresh_dam(CONFIG, 0), CONFIG)
    with pytest.raises(DSMError, match="it is no DSM adapter of this pack"):
        load_dsm(path)


def test_the_same_dam_is_the_same_bytes(path, tmp_path):
    write_dam(tmp_path / "b", fresh_dam(CONFIG, 0), CONFIG)
    assert path.read_bytes() == (tmp_path / "b").read_bytes()


def test_a_later_version(path):
    rewrite(path, metadata=lambda metadata: {**metadata, "version": "9"})
    with pytest.raises(DAMError, match="version 9, this pack reads 1"):
        load_dam(path)


@pytest.mark.parametrize("t_min", ["small", 0, 1, -0.1, float("nan"), None])
def test_damaged_metadata(path, t_min):
    rewrite(path, metadata=lambda metadata: {**metadata, "t_min": t_min})
    with pytest.raises(DAMError, match="its metadata is damaged"):
        load_dam(path)


@pytest.mark.parametrize(
    "name", ["double_blocks.0.mlp_in.weight", "double_blocks.1.mlp_out.bias", "single_blocks.0.mlp_in.bias"]
)
def test_a_missing_tensor(path, name):
    rewrite(path, tensors=lambda tensors: {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(DAMError, match=f"its tensor '{name}' is missing or of another shape"):
        load_dam(path)


def test_no_blocks_at_all(path):
    rewrite(path, tensors=lambda tensors: {"a": torch.zeros(1)})
    with pytest.raises(DAMError, match=r"'single_blocks.0.mlp_in.weight' is missing"):
        load_dam(path)


@pytest.mark.parametrize("shape", [(), (5,), (5, 13), (12, 5)])
def test_a_tensor_of_another_shape(path, shape):
    rewrite(path, tensors=lambda tensors: {**tensors, "double_blocks.0.mlp_in.weight": torch.zeros(shape)})
    with pytest.raises(DAMError, match=r"its tensor '\S+' is missing or of another shape"):
        load_dam(path)


@pytest.mark.parametrize("name", ["extra", "double_blocks.", "double_blocks.7.mlp_in.weight"])
def test_a_tensor_too_many(path, name):
    rewrite(path, tensors=lambda tensors: {**tensors, name: torch.zeros(1)})
    with pytest.raises(DAMError, match="is missing or of another shape"):
        load_dam(path)
