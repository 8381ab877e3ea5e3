"""The appearance cache against the network's own modules, run by hand in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import comfy.controlnet
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import pytest
import torch
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_sag import SelfAttentionGuidance

from comfyui_ensemble.attention_patches.appearance_cache import cache_appearance, cached_layers, spread_sigmas
from comfyui_ensemble.attention_patches.appearance_tokens import AppearanceError
from comfyui_ensemble.attention_patches.delta_bridge import apply_delta_bridge
from comfyui_ensemble.attention_patches.unet_layers import attention_modules
from comfyui_ensemble.models_info.registry import TINY_CONTROLNET, TINY_SDXL
from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl
from devtools.real_sdxl import real_sdxl_unet

SCALE = 0.13025  # of SDXL's latents
LORA = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_k.weight"


@pytest.fixture(scope="module")
def prompt(clip):
    return clip.encode_from_tokens_scheduled(clip.tokenize("a woman in a red coat"))


def latent(height=16, width=12) -> torch.Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(4))


def sigmas_of(model, count=2) -> torch.Tensor:
    return spread_sigmas(model.get_model_object("model_sampling"), count)


def sinusoids(value: float, width: int) -> torch.Tensor:
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    return torch.cat((torch.cos(value * frequencies), torch.sin(value * frequencies)))


def oracle(model, prompt, clean, timestep, divisor, edit=None):
    """(K, V) of every layer by a plain forward of a float64 copy."""
    unet = copy.deepcopy(model.model.diffusion_model).double()
    if edit is not None:
        edit(unet)
    found = {}

    def note(layer, kind):
        return lambda module, args, out: found.setdefault(layer.block, {}).__setitem__(kind, out[0])

    for layer, module in attention_modules(unet):
        module.attn1.to_k.register_forward_hook(note(layer, "k"))
        module.attn1.to_v.register_forward_hook(note(layer, "v"))
    text, options = prompt[0]
    height, width = (8 * side for side in clean.shape[-2:])
    sizes = torch.cat([sinusoids(value, 256) for value in (height, width, 0, 0, height, width)])[None]
    unet(
        (clean.double() * SCALE) / divisor,
        torch.tensor([timestep], dtype=torch.float64),
        context=text.double(),
        y=torch.cat((options["pooled_output"].double(), sizes), dim=1),
    )
    return found


def check(network, moment, expected, tokens=slice(None), wrong=1e-4):
    for layer in network.layers:
        kept = network.tokens(moment, layer)
        key, value = (expected[layer.block][kind][tokens] for kind in "kv")
        torch.testing.assert_close(
            (kept.weight.float() * kept.lengths[:, None]).double(), key, rtol=wrong, atol=wrong * key.abs().max().item()
        )
        torch.testing.assert_close(kept.bias.double(), value, rtol=wrong, atol=wrong * value.abs().max().item())
        torch.testing.assert_close(
            torch.linalg.vector_norm(kept.weight.float(), dim=-1), torch.ones(len(key)), rtol=5e-3, atol=0
        )


@pytest.mark.parametrize("size", [(16, 12), (9, 13), (4, 4)])
def test_keys_and_values_are_those_of_a_noise_free_forward(sdxl, prompt, size):
    clean, sigmas = latent(*size), sigmas_of(sdxl)
    network = cache_appearance(sdxl, prompt, clean, None, sigmas).network
    assert network.layers == cached_layers(sdxl.model.diffusion_model) and len(network.layers) == 8
    for moment, sigma in enumerate(sigmas):
        timestep = float(sdxl.model.model_sampling.timestep(sigma))
        divisor = math.sqrt(float(sigma) ** 2 + 1)
        check(network, moment, oracle(sdxl, prompt, clean, timestep, divisor))


def test_the_latent_is_scaled_as_the_models_own_input(sdxl, prompt):
    """v prediction scales it as eps prediction does, flow matching not at all."""
    clean, sigmas = latent(), torch.tensor([0.6])
    v = ModelSamplingDiscrete().patch(sdxl, "v_prediction", False)[0]
    timestep = float(v.get_model_object("model_sampling").timestep(sigmas[0]))
    expected = oracle(sdxl, prompt, clean, timestep, math.sqrt(0.36 + 1))
    check(cache_appearance(v, prompt, clean, None, sigmas).network, 0, expected)
    flow = ModelSamplingSD3().patch(sdxl, 3.0)[0]
    expected = oracle(sdxl, prompt, clean, 600, 1)
    check(cache_appearance(flow, prompt, clean, None, sigmas).network, 0, expected)


def test_only_tokens_of_the_mask_are_kept(sdxl, prompt):
    clean, sigmas = latent(16, 16), sigmas_of(sdxl, 1)
    mask = torch.zeros(128, 128)
    mask[:, 64:] = 1
    mask[0, 0] = 1  # a speck that fills no token
    appearance = cache_appearance(sdxl, prompt, clean, mask, sigmas)
    timestep = float(sdxl.model.model_sampling.timestep(sigmas[0]))
    expected = oracle(sdxl, prompt, clean, timestep, math.sqrt(float(sigmas[0]) ** 2 + 1))
    for layer in appearance.network.layers:
        side = 16 // layer.factor
        inside = [row * side + column for row in range(side) for column in range(side // 2, side)]
        kept = appearance.network.tokens(0, layer)
        value = expected[layer.block]["v"][inside]
        torch.testing.assert_close(kept.bias.double(), value, rtol=1e-4, atol=1e-4)
    whole = cache_appearance(sdxl, prompt, clean, None, sigmas)
    assert appearance.nbytes() * 2 == whole.nbytes()


def test_loras_of_the_model_are_in_it(sdxl, prompt):
    clean, sigmas = latent(), sigmas_of(sdxl, 1)
    weight = sdxl.model.state_dict()[LORA]
    difference = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    patched = sdxl.clone()
    patched.add_patches({LORA: ("diff", (difference,))}, 0.5)

    def edit(unet):
        unet.output_blocks[3][1].transformer_blocks[0].attn1.to_k.weight.add_(0.5 * difference.double())

    timestep = float(sdxl.model.model_sampling.timestep(sigmas[0]))
    expected = oracle(sdxl, prompt, clean, timestep, math.sqrt(float(sigmas[0]) ** 2 + 1), edit)
    check(cache_appearance(patched, prompt, clean, None, sigmas).network, 0, expected)


def test_patches_of_the_model_are_in_it(sdxl, prompt):
    """A replaced attention runs, and what leads to keys and values may be changed before."""
    calls = []

    def replaced(q, k, v, extra):
        calls.append(k.shape)
        return v

    model = sdxl.clone()
    model.set_model_attn1_replace(replaced, "output", 3, 0)
    model.set_model_attn1_patch(lambda n, context, value, extra: (n, context, 2 * value))
    network = cache_appearance(model, prompt, latent(), None, sigmas_of(sdxl, 2)).network
    assert len(calls) == 2
    plain = cache_appearance(sdxl, prompt, latent(), None, sigmas_of(sdxl, 2)).network
    first = network.layers[0]
    assert not torch.equal(network.tokens(0, first).bias, plain.tokens(0, first).bias)


@pytest.mark.parametrize("other", ["sag", "hypertile", "delta-bridge"])
def test_other_nodes_on_the_model(sdxl, prompt, other):
    patched = {
        "sag": lambda: SelfAttentionGuidance.execute(sdxl, 0.5, 2.0).args[0],  # calls the model again after guidance
        "hypertile": lambda: HyperTile.execute(sdxl, 32, 2, 2, False)[0],  # puts the queries into tiles
        "delta-bridge": lambda: apply_delta_bridge(sdxl, prompt, 1.0, 0.9, 1),  # shows the model one more prompt
    }
    model = patched[other]()
    network = cache_appearance(model, prompt, latent(16, 16), None, sigmas_of(sdxl)).network
    assert {layer.factor: len(network.tokens(0, layer).weight) for layer in network.layers} == {2: 64, 4: 16}


def test_a_controlnet_on_the_prompt_has_its_say(sdxl, prompt, tiny_models):
    control_net: Any = comfy.controlnet.load_controlnet(
        str(tiny_models / TINY_CONTROLNET.folder / TINY_CONTROLNET.name)
    )
    hint = torch.rand(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    control = control_net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
    controlled = [[text, {**options, "control": control}] for text, options in prompt]
    sigmas = sigmas_of(sdxl, 1)
    one, other = (cache_appearance(sdxl, cond, latent(), None, sigmas).network for cond in (prompt, controlled))
    layer = one.layers[-1]
    assert not torch.allclose(one.tokens(0, layer).bias, other.tokens(0, layer).bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_cache_has_the_models_precision(tiny_models, prompt, dtype):
    model = load_tiny_sdxl(tiny_models / TINY_SDXL.folder / TINY_SDXL.name)
    model.set_model_compute_dtype(dtype)
    clean, sigmas = latent(), sigmas_of(model, 1)
    network = cache_appearance(model, prompt, clean, None, sigmas).network
    kept = network.tokens(0, network.layers[0])
    assert kept.weight.dtype == kept.bias.dtype == dtype and kept.lengths.dtype == torch.float32
    timestep = float(model.model.model_sampling.timestep(sigmas[0]))
    expected = oracle(model, prompt, clean, timestep, math.sqrt(float(sigmas[0]) ** 2 + 1))
    check(network, 0, expected, wrong=0.1)


def test_low_memory_loading_gives_the_same_cache(sdxl, prompt):
    clean, sigmas = latent(), sigmas_of(sdxl)
    whole = cache_appearance(sdxl, prompt, clean, None, sigmas).network
    lowvram, seen = sdxl.clone(), []

    def unload_partly(patcher):
        patcher.detach()
        patcher.load(patcher.load_device, lowvram_model_memory=1)
        seen.append(patcher.model.model_lowvram)

    lowvram.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, unload_partly)
    split = cache_appearance(lowvram, prompt, clean, None, sigmas).network
    assert seen == [True]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), split.parameters(), strict=True))


def test_timesteps_spread_over_the_run_and_the_nearest_is_used(sdxl, prompt):
    network = cache_appearance(sdxl, prompt, latent(), None, sigmas_of(sdxl, 4)).network
    assert network.moments == pytest.approx((0.125, 0.375, 0.625, 0.875), abs=1e-3)
    assert [network.nearest_moment(progress) for progress in (0.0, 0.2, 0.3, 0.6, 0.8, 1.0)] == [0, 0, 1, 2, 3, 3]


def test_one_forward_a_timestep_and_nothing_left_on_the_model(sdxl, prompt):
    calls = []

    def count(executor, *args, **kwargs):
        calls.append(len(args[0]))
        return executor(*args, **kwargs)

    model = sdxl.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, count)
    cache_appearance(model, prompt, latent(), None, sigmas_of(sdxl, 5))
    assert calls == [1] * 5
    assert list(model.wrappers) == ["diffusion_model"] and len(model.wrappers["diffusion_model"]) == 1


def test_an_interrupt_stops_it(sdxl, prompt):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        cache_appearance(sdxl, prompt, latent(), None, sigmas_of(sdxl))
    cache_appearance(sdxl, prompt, latent(), None, sigmas_of(sdxl))


def test_two_prompts_at_once_are_refused(sdxl, prompt):
    with pytest.raises(AppearanceError, match="connect one plain prompt"):
        cache_appearance(sdxl, prompt + prompt, latent(), None, sigmas_of(sdxl))


def test_prompts_that_take_turns_are_fine_and_gaps_are_refused(sdxl, prompt):
    def timed(start, end):
        return [[text, {**options, "start_percent": start, "end_percent": end}] for text, options in prompt]

    cache_appearance(sdxl, timed(0.0, 0.5) + timed(0.5, 1.0), latent(), None, sigmas_of(sdxl, 4))
    with pytest.raises(AppearanceError, match="prompts that hold for a part of the run only"):
        cache_appearance(sdxl, timed(0.0, 0.5), latent(), None, sigmas_of(sdxl, 4))


def test_real_sdxl_has_46_cached_layers_of_260_mib():
    """At 1024 x 1024 in half precision, as the help page says."""
    unet = real_sdxl_unet("meta")
    assert sum(value.numel() for value in unet.parameters()) == 2_567_463_684
    layers = cached_layers(unet)
    assert [layer.name for layer in layers[:2] + layers[-2:]] == [
        "middle_0_0",
        "middle_0_1",
        "output_5_0",
        "output_5_1",
    ]
    sizes = [(128 // layer.factor) ** 2 * layer.width * 2 * 2 for layer in layers]
    assert sorted({(layer.width, size / 2**20) for layer, size in zip(layers, sizes, strict=True)}) == [
        (640, 10),
        (1280, 5),
    ]
    assert len(layers) == 46 and sum(sizes) == 260 * 2**20
