"""AnyStory's router against loops written from the paper."""

from __future__ import annotations

import math

import comfy.ops
import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_network import SDXL_ANYSTORY, base_layers
from comfyui_ensemble.attention_patches.anystory_router import (
    AnyStoryRouter,
    AnyStoryRouters,
    coarse_mask,
    fresh_routers,
    gumbel_assignment,
)
from comfyui_ensemble.attention_patches.unet_layers import AttentionLayer

WIDTH = 12


def make_router(router_width: int, seed: int = 0) -> AnyStoryRouter:
    """A router whose maps are neither flat nor one-sided, in float64."""
    router = AnyStoryRouter(WIDTH, router_width, torch.float64, "cpu", comfy.ops.manual_cast)
    generator = torch.Generator().manual_seed(seed)
    for weight in router.parameters():
        weight.data = torch.randn(weight.shape, generator=generator, dtype=torch.float64) / math.sqrt(weight.shape[1])
    return router


def inputs(entries: int, pixels: int, router_width: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(entries * 100 + pixels)
    features = torch.randn(entries, router_width, generator=generator, dtype=torch.float64)
    return features, torch.randn(rows, pixels, WIDTH, generator=generator, dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    parts = [math.exp(value - top) for value in values]
    return [part / sum(parts) for part in parts]


def oracle(router: AnyStoryRouter, features: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of one row's coarse and refined map, one entry, head and pixel at a time."""
    w = {name: value.double().numpy() for name, value in router.state_dict().items()}
    w_a, w_b = w["coarse_subject.weight"], w["coarse_latent.weight"].T
    w_c, w_d = w["fine_subject.weight"], w["fine_latent.weight"].T
    w_query, w_key = w["refine_query.weight"], w["refine_key.weight"].T
    w_value, w_out = w["refine_value.weight"], w["refine_out.weight"]
    coarse = [[(w_a @ r) @ (w_b @ z) for r in features] for z in hidden]
    best = [int(np.argmax(row)) for row in coarse]
    size = features.shape[1] // router.heads
    refined = []
    for entry, r in enumerate(features):
        seen = [z for z, owner in zip(hidden, best, strict=True) if owner == entry] or list(hidden)
        found = np.zeros(features.shape[1])
        for head in range(router.heads):
            part = slice(head * size, (head + 1) * size)
            shares = softmax([(w_query @ r)[part] @ (w_key @ z)[part] / math.sqrt(size) for z in seen])
            found[part] = sum(share * (w_value @ z)[part] for share, z in zip(shares, seen, strict=True))
        refined.append(r + w_out @ found)
    logits = np.array([[(w_c @ r) @ (w_d @ z) for r in refined] for z in hidden])
    return np.array(coarse), logits


@pytest.mark.parametrize("router_width", [8, 128])  # one head, two heads
@pytest.mark.parametrize("entries, pixels", [(2, 9), (3, 20), (13, 30), (5, 2)])
def test_maps_follow_the_paper(router_width, entries, pixels):
    router = make_router(router_width)
    features, hidden = inputs(entries, pixels, router_width)
    logits = router(hidden, router.probes(features))
    assert logits.refined.shape == (2, pixels, entries) and router.heads == max(1, router_width // 64)
    for row in range(2):
        coarse, refined = oracle(router, features.numpy(), hidden[row].numpy())
        np.testing.assert_allclose(logits.coarse[row].numpy(), coarse, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(logits.refined[row].numpy(), refined, rtol=1e-9, atol=1e-9)


def test_an_entry_without_pixels_looks_everywhere():
    logits = torch.tensor([[[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [5.0, 5.0, 0.0]]])
    assert coarse_mask(logits).tolist() == [[[True, False, True], [False, True, True], [True, False, True]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_maps_are_made_in_float32_whatever_the_models_precision(dtype):
    router = make_router(64).float()
    features, hidden = inputs(4, 50, 64)
    hidden = hidden.to(dtype)
    logits = router(hidden, router.probes(features.float())).refined
    assert logits.dtype == torch.float32
    assert torch.equal(logits, router(hidden.float(), router.probes(features.float())).refined)
    _, expected = oracle(router, features.numpy(), hidden[0].double().numpy())
    np.testing.assert_allclose(logits[0].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_half_precision_weights_are_cast_not_the_computation():
    router = make_router(64).half()
    features, hidden = inputs(4, 50, 64)
    logits = router(hidden.half(), router.probes(features.float())).refined
    _, expected = oracle(router, features.float().numpy(), hidden[0].half().double().numpy())
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits[0].numpy(), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode(False)
def test_gradients_reach_the_features_the_pixels_and_every_matrix():
    """Against central differences; the coarse map's matrices only choose a mask, so nothing reaches them."""
    router = make_router(8)
    features, hidden = (value.clone().requires_grad_() for value in inputs(3, 5, 8, rows=1))
    with torch.enable_grad():
        assert torch.autograd.gradcheck(lambda r, z: router(z, router.probes(r)).refined, (features, hidden))
        router(hidden, router.probes(features)).refined.square().sum().backward()
    without = [name for name, weight in router.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == ["coarse_subject.weight", "coarse_latent.weight"]


@torch.inference_mode(False)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_straight_through_is_hard_forwards_and_soft_backwards(temperature):
    logits = torch.randn(2, 7, 4, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, 7, 4, dtype=torch.float64)
    with torch.enable_grad():
        hard = gumbel_assignment(logits, temperature, torch.Generator().manual_seed(5))
        (gradient,) = torch.autograd.grad((hard * weights).sum(), logits)
        uniform = torch.rand(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        soft = torch.softmax((logits - torch.log(-torch.log(uniform))) / temperature, dim=-1)
        (expected,) = torch.autograd.grad((soft * weights).sum(), logits)
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    torch.testing.assert_close(hard.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    torch.testing.assert_close(hard.amax(-1), torch.ones(2, 7, dtype=torch.float64))
    torch.testing.assert_close(gradient, expected)
    assert gradient.any()


def test_gumbel_draws_each_entry_as_often_as_its_share():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    drawn = gumbel_assignment(logits.expand(40_000, 4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(dim=0), logits.softmax(dim=0), atol=0.01, rtol=0)


def test_sdxl_has_seventy_routers():
    layers = base_layers(SDXL_ANYSTORY)
    d_r = SDXL_ANYSTORY.router_width
    routers = AnyStoryRouters(layers, d_r, torch.float16, "meta", comfy.ops.manual_cast)
    assert len(routers) == 70
    assert sum(weight.numel() for weight in routers.parameters()) == sum(
        4 * d_r * d_r + 4 * d_r * layer.width for layer in layers
    )
    hidden = torch.empty(2, 4096, 640, device="meta", dtype=torch.float16)
    router = routers.get_submodule("input_4_0")
    assert isinstance(router, AnyStoryRouter)
    assert router(hidden, router.probes(torch.empty(3, d_r, device="meta"))).refined.shape == (2, 4096, 3)


def test_a_layer_without_cross_attention_has_no_router():
    layers = [AttentionLayer(("input", 1, index), 64, 1, 64, width, 1) for index, width in enumerate((None, 8))]
    assert list(AnyStoryRouters(layers, 8, torch.float32, "meta", comfy.ops.manual_cast)) == ["input_1_1"]


def test_fresh_routers_give_maps_that_are_neither_flat_nor_one_sided():
    layers = [AttentionLayer(("input", 1, 0), 640, 10, 64, 8, 1)]
    weights = fresh_routers(layers, 256, seed=3)
    again, other = fresh_routers(layers, 256, seed=3), fresh_routers(layers, 256, seed=4)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not any(torch.equal(weights[name], other[name]) for name in weights)
    routers = AnyStoryRouters(layers, 256, torch.float32, "cpu", comfy.ops.manual_cast)
    routers.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    router = routers.get_submodule("input_1_0")
    assert isinstance(router, AnyStoryRouter)
    probes = router.probes(torch.randn(4, 256, generator=generator))
    logits = router(torch.randn(1, 500, 640, generator=generator), probes).refined
    assert 0.5 < logits.std() < 2
    assert torch.bincount(logits.argmax(-1).flatten(), minlength=4).min() > 20
