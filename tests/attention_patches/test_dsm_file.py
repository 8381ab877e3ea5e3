"""The DSM adapter's file: what is written comes back, and what will not do says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import comfy.memory_management
import comfy.ops
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from comfyui_ensemble.attention_patches.dsm_adapter import FLUX_DSM, DSMAdapter, DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.dsm_file import HEADER, DSMError, load_dsm, write_dsm

CONFIG = DSMConfig(
    text_width=12,
    width=8,
    heads=2,
    clip_width=6,
    clip_depth=5,
    clip_layers=(0, 2, 4),
    subjects=3,
    model_width=10,
    double_blocks=2,
    single_blocks=3,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    write_dsm(path, fresh_dsm(CONFIG, 0), CONFIG)
    return path


def rewrite(path: Path, tensors=lambda tensors: tensors, metadata=lambda metadata: metadata) -> None:
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()[HEADER])
    held = {name: value.clone() for name, value in load_file(path).items()}
    save_file(tensors(held), path, metadata={HEADER: json.dumps(metadata(old))})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changed", [{}, {"double_blocks": 0}, {"single_blocks": 0}, {"clip_layers": (3,)}])
def test_what_is_written_comes_back(tmp_path, dtype, changed):
    config, path = dataclasses.replace(CONFIG, **changed), tmp_path / "a.safetensors"
    weights = {name: value.to(dtype) for name, value in fresh_dsm(config, 0).items()}
    write_dsm(path, weights, config)
    adapter = load_dsm(path)
    assert isinstance(adapter, ModelPatcher) and adapter.model.config == config
    held = adapter.model.state_dict()
    assert held.keys() == weights.keys()
    assert all(torch.equal(held[name], weights[name]) and held[name].dtype == dtype for name in held)


def test_loads_where_the_host_makes_weights_late(path, monkeypatch):
    """As it does on graphics cards whose memory it manages dynamically; reading the file needs such a card."""
    expected, weights = fresh_dsm(CONFIG, 0), load_file(path)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda *args, **kwargs: weights)
    for held in (fresh_dsm(CONFIG, 0), load_dsm(path).model.state_dict()):
        assert held.keys() == expected.keys()
        assert all(torch.equal(held[name], expected[name]) for name in held)


def test_the_host_can_copy_an_adapter_for_another_device(path):
    """What its multi-GPU nodes do with every additional model: load the weights afresh."""
    adapter = load_dsm(path)
    copy = adapter.deepclone_multigpu(torch.device("cpu"))
    assert copy.model is not adapter.model and copy.model.config == CONFIG
    held = copy.model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in adapter.model.state_dict().items())


def test_a_fresh_adapter_is_reproducible_and_only_its_heads_are_zero():
    one, same, other = fresh_dsm(CONFIG, 0), fresh_dsm(CONFIG, 0), fresh_dsm(CONFIG, 1)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    silent = {name for name, value in one.items() if not value.any() and not name.endswith("bias")}
    assert silent == {name for name in one if "head" in name}


def test_the_flux_sizes_are_those_of_flux_and_clip_vit_l():
    adapter = DSMAdapter(FLUX_DSM, torch.bfloat16, "meta", comfy.ops.disable_weight_init)
    heads = sum(value.numel() for name, value in adapter.named_parameters() if "_heads" in name)
    assert heads == 57 * 512 * 3072
    assert sum(value.numel() for value in adapter.parameters()) < 0.01 * 12e9  # light beside FLUX's 12 billion


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_half_a_file(path, length):
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with pytest.raises(DSMError, match="no whole safetensors file"):
        load_dsm(path)


def test_another_kind_of_file(path):
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(DSMError, match="no DSM adapter"):
        load_dsm(path)


def test_a_header_that_is_no_json(path):
    save_file({"a": torch.zeros(1)}, path, metadata={HEADER: "{"})
    with pytest.raises(DSMError, match="no whole safetensors file"):
        load_dsm(path)


def test_the_same_adapter_is_the_same_bytes(path, tmp_path):
    write_dsm(tmp_path / "b", fresh_dsm(CONFIG, 0), CONFIG)
    assert path.read_bytes() == (tmp_path / "b").read_bytes()


def test_a_later_version(path):
    rewrite(path, metadata=lambda metadata: {**metadata, "version": "9"})
    with pytest.raises(DSMError, match="version 9, this pack reads 1"):
        load_dsm(path)


@pytest.mark.parametrize(
    "change",
    [
        {"heads": "two"},
        {"heads": 3},
        {"heads": 0},
        {"clip_layers": [0, 1, 5]},
        {"clip_layers": 7},
        {"clip_depth": ""},
    ],
)
def test_damaged_metadata(path, change):
    rewrite(path, metadata=lambda metadata: {**metadata, **change})
    with pytest.raises(DSMError, match="its metadata"):
        load_dsm(path)


@pytest.mark.parametrize("name", ["text_norm.weight", "to_query.weight", "global_head.weight", "double_heads.0.weight"])
def test_a_missing_tensor(path, name):
    rewrite(path, tensors=lambda tensors: {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(DSMError, match="missing or of another shape"):
        load_dsm(path)


def test_no_heads_at_all(path):
    rewrite(path, tensors=lambda tensors: {key: value for key, value in tensors.items() if "_heads" not in key})
    with pytest.raises(DSMError, match=r"'single_heads.0.weight' is missing"):
        load_dsm(path)


def test_a_tensor_of_another_shape_or_too_many(path):
    rewrite(path, tensors=lambda tensors: {**tensors, "to_key.weight": torch.zeros(8, 9)})
    with pytest.raises(DSMError, match=r"'to_key.weight' is missing or of another shape"):
        load_dsm(path)
    rewrite(path, tensors=lambda tensors: {**tensors, "to_key.weight": torch.zeros(8, 8), "extra": torch.zeros(1)})
    with pytest.raises(DSMError, match="'extra'"):
        load_dsm(path)


def test_a_scalar_where_a_matrix_belongs(path):
    rewrite(path, tensors=lambda tensors: {**tensors, "to_query.weight": torch.zeros(())})
    with pytest.raises(DSMError, match=r"'to_query.weight' is missing or of another shape"):
        load_dsm(path)


def test_writing_is_whole_or_not_at_all(path):
    before = path.read_bytes()
    with pytest.raises(RuntimeError):  # two names for one memory, which safetensors refuses
        write_dsm(path, dict.fromkeys("ab", torch.zeros(2)), CONFIG)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]
