"""AnyStory's network: its halves, its sizes, and the weights it starts from."""

from __future__ import annotations

from typing import Any

import comfy.memory_management
import comfy.ops
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_network import (
    SDXL_ANYSTORY,
    AnyStoryConfig,
    AnyStoryEncoding,
    AnyStoryInjecting,
    AnyStoryNetwork,
    base_layers,
    fresh_anystory,
)
from comfyui_ensemble.attention_patches.outline import Outline
from comfyui_ensemble.attention_patches.reference_net import build_unet
from comfyui_ensemble.attention_patches.unet_layers import attention_layers
from comfyui_ensemble.training.tiny import ANYSTORY_CONFIG, tiny_sdxl


def outline(kind: Any, config: AnyStoryConfig = ANYSTORY_CONFIG) -> Any:
    return kind(config, torch.float32, "meta", Outline)


def shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def test_the_halves_are_the_whole():
    encoding, injecting = shapes(outline(AnyStoryEncoding)), shapes(outline(AnyStoryInjecting))
    assert encoding.keys().isdisjoint(injecting)
    assert {**encoding, **injecting} == shapes(outline(AnyStoryNetwork))


def test_the_layers_are_those_of_the_base_model(sdxl):
    assert base_layers(ANYSTORY_CONFIG) == attention_layers(sdxl.model.diffusion_model)
    unet = build_unet(SDXL_ANYSTORY.unet, torch.float32, "meta", comfy.ops.disable_weight_init)
    layers = base_layers(SDXL_ANYSTORY)
    assert layers == attention_layers(unet) and len(layers) == 70


def test_the_sizes_of_the_paper():
    network = outline(AnyStoryNetwork, SDXL_ANYSTORY)
    clip_width = 1280  # of ViT-H/14
    for encoder, queries, out in ((network.encoder, 64, 2048), (network.router_encoder, 1, SDXL_ANYSTORY.router_width)):
        assert encoder.queries.num_embeddings == queries and encoder.to_out.out_features == out
        assert len(encoder.layers) == 4
        assert all(layer.cross_attention.to_k.in_features == clip_width for layer in encoder.layers)
    assert (len(network.injection.subject), len(network.injection.reference), len(network.routers)) == (70, 69, 70)
    injecting = sum(value.numel() for value in outline(AnyStoryInjecting, SDXL_ANYSTORY).parameters())
    assert injecting < 0.8e9  # what rides along with the U-Net's 2.57 billion while a picture is sampled


def test_fresh_weights():
    one, same, other = (fresh_anystory(ANYSTORY_CONFIG, seed) for seed in (0, 0, 1))
    assert {name: value.shape for name, value in one.items()} == shapes(outline(AnyStoryNetwork))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(torch.equal(one[name], other[name]) == (one[name].ndim < 2) for name in one)
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in one.values())


def test_fresh_weights_from_a_base_model():
    unet = tiny_sdxl(3)
    fresh = fresh_anystory(ANYSTORY_CONFIG, 0, unet)
    assert {name: value.shape for name, value in fresh.items()} == shapes(outline(AnyStoryNetwork))
    reference = {name.partition(".")[2]: value for name, value in fresh.items() if name.startswith("reference_net.")}
    entry = reference.pop("input_blocks.0.0.weight")
    assert torch.equal(entry[:, :4], unet["input_blocks.0.0.weight"]) and not entry[:, 4:].any()
    assert all(torch.equal(value, unet[name]) for name, value in reference.items())


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_outline_is_complete_where_the_host_loads_weights_late(monkeypatch, dynamic):
    expected = shapes(AnyStoryNetwork(ANYSTORY_CONFIG, torch.float32, "meta", comfy.ops.disable_weight_init))
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", dynamic)
    assert shapes(outline(AnyStoryNetwork)) == expected


@pytest.mark.parametrize("kind", [AnyStoryEncoding, AnyStoryInjecting])
def test_a_half_takes_its_weights_where_the_host_loads_them_late(monkeypatch, kind):
    weights = fresh_anystory(ANYSTORY_CONFIG, 0)
    own = {name: weights[name] for name in shapes(outline(kind))}
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    half = kind(ANYSTORY_CONFIG, torch.float32, "cpu", comfy.ops.manual_cast)
    half.load_state_dict(own, assign=True)
    assert all(torch.equal(value, own[name]) for name, value in half.state_dict().items())
    if kind is AnyStoryEncoding:
        states = half.reference_net(torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 8, 8))
        assert all(torch.isfinite(state).all() for state in states)
