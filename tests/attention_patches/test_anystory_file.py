"""AnyStory's checkpoint: what is written comes back, and what will not do says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from comfyui_ensemble.attention_patches.anystory_file import (
    HEADER,
    AnyStoryError,
    load_anystory,
    read_anystory,
    write_anystory,
)
from comfyui_ensemble.attention_patches.anystory_network import SDXL_ANYSTORY, fresh_anystory
from comfyui_ensemble.attention_patches.outline import Outline
from comfyui_ensemble.attention_patches.reference_net import UNET_SIZES, ReferenceNet
from comfyui_ensemble.training.tiny import ANYSTORY_CONFIG

# Small enough to be written and read in a moment.
CONFIG = dataclasses.replace(
    ANYSTORY_CONFIG,
    text_width=12,
    unet={
        **ANYSTORY_CONFIG.unet,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [0, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 1, 1],
        "context_dim": 12,
        "adm_in_channels": 8 + 6 * 256,
    },
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return fresh_anystory(CONFIG, 0)


@pytest.fixture
def path(tmp_path: Path, weights) -> Path:
    write_anystory(tmp_path / "a.safetensors", weights, CONFIG)
    return tmp_path / "a.safetensors"


def rewrite(path: Path, tensors=lambda tensors: tensors, metadata=lambda metadata: metadata) -> None:
    with safe_open(path, framework="pt") as file:
        old = json.loads(file.metadata()[HEADER])
    held = {name: value.clone() for name, value in load_file(path).items()}
    save_file(tensors(held), path, metadata={HEADER: json.dumps(metadata(old))})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_comes_back(tmp_path, weights, dtype):
    written = {name: value.to(dtype) for name, value in weights.items()}
    write_anystory(tmp_path / "a.safetensors", written, CONFIG)
    read, config = read_anystory(tmp_path / "a.safetensors")
    assert config == CONFIG and read.keys() == written.keys()
    anystory = load_anystory(tmp_path / "a.safetensors")
    assert anystory.config == CONFIG
    halves = [anystory.encoding, anystory.injecting]
    assert all(isinstance(half, ModelPatcher) and half.model.config == CONFIG for half in halves)
    held = {name: value for half in halves for name, value in half.model.state_dict().items()}
    assert held.keys() == written.keys()
    assert all(torch.equal(held[name], written[name]) and held[name].dtype == dtype for name in held)


@pytest.mark.parametrize("half", ["encoding", "injecting"])
def test_the_host_can_copy_a_half_for_another_device(path, half):
    """What its multi-GPU nodes do with every additional model: load the weights afresh."""
    patcher = getattr(load_anystory(path), half)
    copy = patcher.deepclone_multigpu(torch.device("cpu"))
    assert copy.model is not patcher.model and type(copy.model) is type(patcher.model)
    held = copy.model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in patcher.model.state_dict().items())


def test_the_header_says_every_size(path):
    with safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == [HEADER]
        header = json.loads(file.metadata()[HEADER])
    assert header == {
        "format": "ensemble-anystory",
        "version": "1",
        "base": "sdxl",
        "text_width": 12,
        "clip_width": 64,
        "clip_depth": 6,
        "queries": 16,
        "qformer_width": 64,
        "qformer_heads": 4,
        "qformer_layers": 4,
        "router_width": 64,
        "reference_size": 256,
        "unet": {name: CONFIG.unet[name] for name in UNET_SIZES},
    }


def test_the_same_network_is_the_same_bytes(path, tmp_path, weights):
    write_anystory(tmp_path / "b", dict(reversed(weights.items())), CONFIG)
    assert path.read_bytes() == (tmp_path / "b").read_bytes()


def test_names_of_diffusers_in_the_reference_net(path, weights):
    names = {own: published for published, own in comfy.utils.unet_to_diffusers(dict(CONFIG.unet)).items()}

    def published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        part = "reference_net."
        renamed = {
            part + names[name.removeprefix(part)] if name.startswith(part) else name: value
            for name, value in tensors.items()
        }
        # A skipped cross-attention that was left in the file.
        block = f"{part}mid_block.attentions.0.transformer_blocks.0"
        return {**renamed, f"{block}.attn2.to_q.weight": torch.zeros(1), f"{block}.norm2.weight": torch.zeros(1)}

    rewrite(path, tensors=published)
    assert not any(name.startswith("reference_net.input_blocks") for name in load_file(path))
    read, _ = read_anystory(path)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in read)


def test_diffusers_has_a_name_for_every_tensor_of_sdxl():
    own = comfy.utils.unet_to_diffusers(dict(SDXL_ANYSTORY.unet)).values()
    net = ReferenceNet(SDXL_ANYSTORY.unet, torch.bfloat16, "meta", Outline)
    assert net.state_dict().keys() <= set(own)


def test_an_unknown_tensor_among_names_of_diffusers(path):
    extra = {"reference_net.conv_in.weight": torch.zeros(1), "reference_net.conv_in.strange": torch.zeros(1)}
    rewrite(path, tensors=lambda tensors: {**tensors, **extra})
    with pytest.raises(AnyStoryError, match=r"its tensor 'reference_net\.conv_in\.strange' is missing"):
        read_anystory(path)


@pytest.mark.parametrize("length", [0, 7, 200, -1])
def test_half_a_file(path, length):
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with pytest.raises(AnyStoryError, match="no whole safetensors file"):
        load_anystory(path)


def test_another_kind_of_file(path):
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(AnyStoryError, match="no AnyStory checkpoint of this pack"):
        load_anystory(path)


def test_a_later_version(path):
    rewrite(path, metadata=lambda metadata: {**metadata, "version": "9"})
    with pytest.raises(AnyStoryError, match="version 9, this pack reads 1"):
        load_anystory(path)


@pytest.mark.parametrize("base", ["flux", "sd15", None, 3])
def test_a_checkpoint_for_another_base(path, base):
    rewrite(path, metadata=lambda metadata: {**metadata, "base": base})
    with pytest.raises(AnyStoryError, match=f"made for the base model '{base}', not for SDXL; choose a checkpoint for"):
        load_anystory(path)


@pytest.mark.parametrize(
    "change",
    [
        {"queries": "many"},
        {"queries": 0},
        {"clip_depth": 1},
        {"qformer_heads": 3},
        {"qformer_heads": -4},
        {"qformer_width": 2.5},
        {"reference_size": 250},
        {"text_width": 16},
        {"unet": 7},
        {"unet": {}},
        {"unet": {**CONFIG.unet, "extra": 1}},
        {"unet": {**CONFIG.unet, "channel_mult": [1]}},
        {"unet": {**CONFIG.unet, "channel_mult": "12"}},
        {"unet": {**CONFIG.unet, "model_channels": "32"}},
        {"unet": {**CONFIG.unet, "num_head_channels": -1}},
        {"unet": {**CONFIG.unet, "num_head_channels": 0}},
        {"unet": {**CONFIG.unet, "transformer_depth_output": [0, 0, 0, 0]}},
        {"unet": {**CONFIG.unet, "transformer_depth_output": []}},
        {"unet": {**CONFIG.unet, "transformer_depth_middle": None}},
        {"unet": {**CONFIG.unet, "adm_in_channels": 8}},
    ],
)
def test_damaged_metadata(path, change):
    rewrite(path, metadata=lambda metadata: {**metadata, **change})
    with pytest.raises(AnyStoryError, match="its metadata is damaged; download or copy it again"):
        load_anystory(path)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(CONFIG) if field.name != "base"])
def test_missing_metadata(path, name):
    rewrite(path, metadata=lambda metadata: {key: value for key, value in metadata.items() if key != name})
    with pytest.raises(AnyStoryError, match="its metadata is damaged"):
        load_anystory(path)


def test_sizes_that_are_not_those_of_the_tensors(path):
    rewrite(path, metadata=lambda metadata: {**metadata, "queries": 17})
    with pytest.raises(AnyStoryError, match=r"its tensor 'encoder\.queries\.weight' is missing or of another shape"):
        load_anystory(path)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.queries.weight",
        "router_encoder.layers.3.feed.net.2.bias",
        "reference_net.input_blocks.0.0.weight",
        "injection.subject.middle_0_0.to_v.weight",
    ],
)
def test_a_missing_tensor_or_one_of_another_shape(path, name):
    rewrite(path, tensors=lambda tensors: {**tensors, name: tensors[name][:1]})
    with pytest.raises(AnyStoryError, match=f"its tensor '{name}' is missing or of another shape"):
        load_anystory(path)
    rewrite(path, tensors=lambda tensors: {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(AnyStoryError, match=f"its tensor '{name}' is missing or of another shape"):
        load_anystory(path)


def test_a_tensor_too_many(path):
    rewrite(path, tensors=lambda tensors: {**tensors, "extra": torch.zeros(1)})
    with pytest.raises(AnyStoryError, match="'extra'"):
        load_anystory(path)
