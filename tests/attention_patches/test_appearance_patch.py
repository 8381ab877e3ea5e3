"""Appearance infusion inside the host's real sampler, alone and among everything else that touches attention."""

from __future__ import annotations

import math
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_freelunch import FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel

from comfyui_ensemble.attention_patches.anystory_routing import ROUTING_KEY, CallRouting, RoutingMap
from comfyui_ensemble.attention_patches.appearance_cache import cache_appearance, spread_sigmas
from comfyui_ensemble.attention_patches.appearance_infusion import CONSTANT, LINEAR, Schedule
from comfyui_ensemble.attention_patches.appearance_patch import Settings, Source, apply_infusion
from comfyui_ensemble.attention_patches.appearance_tokens import AppearanceError
from comfyui_ensemble.attention_patches.delta_bridge import apply_delta_bridge
from comfyui_ensemble.models_info.registry import TINY_CONTROLNET, TINY_SDXL
from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl

STEPS = 3
LORA = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
FULL = Settings(Schedule(0.0, 0.0, 3.0, 3.0, CONSTANT))
USUAL = Settings(Schedule(0.3, 0.1, 0.0, 3.0, LINEAR))


def cond(clip, text, **options):
    return [[words, {**values, **options}] for words, values in clip.encode_from_tokens_scheduled(clip.tokenize(text))]


def appearance_of(model, clip, seed=4, size=(12, 16), count=2):
    latent = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed))
    sigmas = spread_sigmas(model.get_model_object("model_sampling"), count)
    return cache_appearance(model, cond(clip, "a woman in a red coat"), latent, None, sigmas)


@pytest.fixture(scope="module")
def red(sdxl, clip):
    with torch.inference_mode():
        return appearance_of(sdxl, clip)


@pytest.fixture(scope="module")
def blue(sdxl, clip):
    with torch.inference_mode():
        return appearance_of(sdxl, clip, seed=5, size=(8, 8), count=1)


@pytest.fixture(scope="module")
def positive(clip):
    return cond(clip, "two tall dancers")


@pytest.fixture(scope="module")
def negative(clip):
    return cond(clip, "one old wizard")  # as many tokens: the host puts both prompts into one call


def run(model, positive, negative, size=(8, 12), cfg=3.0, batch=1, seed=3, **options) -> torch.Tensor:
    """Three Euler steps of the host's sampler."""
    latent = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model, noise, STEPS, cfg, "euler", "normal", positive, negative, latent, seed=seed, disable_pbar=True, **options
    )


def infused(model, *sources, settings=USUAL):
    sources = [source if isinstance(source, Source) else Source(source) for source in sources]
    return apply_infusion(model, sources, settings)[0]


def half_mask(side: str, size=(64, 48)) -> torch.Tensor:
    mask = torch.zeros(size)
    middle = size[1] // 2
    mask[:, :middle] = side == "left"
    mask[:, middle:] = side == "right"
    return mask


def naive(model, appearance, tau, delta, progress):
    """A replacement for every cached attention that follows the paper with whole matrices in float64."""
    network = appearance.network

    def replacement(layer):
        def attend(q, k, v, extra):
            at = progress(float(extra["sigmas"][0]))
            moment = min(range(len(network.moments)), key=lambda number: abs(network.moments[number] - at))
            kept = network.tokens(moment, layer)
            keys, values = kept.weight.double(), kept.bias.double()
            heads = [part.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2).double() for part in (q, k, v)]
            scores = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(extra["dim_head"])
            base = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
            cosines = torch.nn.functional.normalize(q.double(), dim=-1) @ keys.T
            similar, index = cosines.max(-1)
            gate = (similar >= tau[0] + at * (tau[1] - tau[0]))[..., None].double()
            strength = delta[0] + at * (delta[1] - delta[0])
            return ((base + strength * gate * values[index]) / (1 + strength * gate)).to(q.dtype)

        return attend

    patched = model.clone()
    for layer in network.layers:
        patched.set_model_attn1_replace(replacement(layer), *layer.block)
    return patched


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(0.3, 0.1, 0.0, 0.0),
        Schedule(1.01, 1.5, 3.0, 3.0),
        Schedule(0.3, 0.1, 0.0, 3.0, LINEAR, 0.1, 0.4),  # none of the three steps lies there
    ],
)
def test_neutral_is_bit_identical(sdxl, red, positive, negative, schedule):
    plain = run(sdxl, positive, negative, batch=2)
    assert torch.equal(plain, run(infused(sdxl, red, settings=Settings(schedule)), positive, negative, batch=2))


@pytest.mark.parametrize("kind, size", [("eps", (16, 12)), ("eps", (11, 17)), ("v", (8, 8)), ("flow", (8, 8))])
def test_a_run_equals_the_paper_with_whole_matrices(sdxl, clip, positive, negative, kind, size):
    patches = {
        "eps": lambda: sdxl,
        "v": lambda: ModelSamplingDiscrete().patch(sdxl, "v_prediction", False)[0],
        "flow": lambda: ModelSamplingSD3().patch(sdxl, 1.0)[0],
    }
    model = patches[kind]()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS).tolist()

    def progress(sigma):
        """The normal schedule's steps lie evenly between the first and the last timestep; a flow's noise is its percent."""
        return 1 - sigma if kind == "flow" else np.interp(-sigma, [-s for s in sigmas[:-1]], np.linspace(0, 1, STEPS))

    appearance = appearance_of(model, clip, count=3)
    ours = run(infused(model, appearance), positive, negative, size, batch=2)
    expected = run(naive(model, appearance, (0.3, 0.1), (0.0, 3.0), progress), positive, negative, size, batch=2)
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=2e-3)
    assert (ours - run(model, positive, negative, size, batch=2)).abs().max() > 0.1


class Once(comfy.samplers.Sampler):
    """Shows the model what the cache showed it, and no more."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, *args):
        return model_wrap(latent_image, sigmas[:1], **extra_args)


def test_the_appearance_of_the_picture_itself_gives_it_its_nearest_values_exactly(sdxl, positive):
    clean = torch.randn(1, 4, 16, 12, generator=torch.Generator().manual_seed(1))
    sigma = spread_sigmas(sdxl.get_model_object("model_sampling"), 1)
    appearance = cache_appearance(sdxl, positive, clean, None, sigma)
    layer = appearance.network.layers[0]  # what follows an infusion is no longer what was cached
    own, taken = {}, {}

    def attend(q, k, v, extra):
        own.update(q=q[0], k=k[0], v=v[0])
        return torch.zeros_like(v)  # so that nothing else can be in the result

    def note(out, extra):
        if (*extra["block"], extra["block_index"]) == layer.block:
            taken["out"] = out[0]
        return out

    model = sdxl.clone()
    model.set_model_attn1_replace(attend, *layer.block)
    model.set_model_attn1_output_patch(note)
    guider = comfy.samplers.CFGGuider(infused(model, appearance, settings=Settings(Schedule(-1, -1, 1e30, 1e30))))
    guider.set_conds(positive, positive)
    guider.sample(torch.zeros_like(clean), clean, Once(), sigma)
    queries, keys = (torch.nn.functional.normalize(own[name].double(), dim=-1) for name in "qk")
    nearest = own["v"][(queries @ keys.T).argmax(-1)]
    to_out = sdxl.model.diffusion_model.middle_block[1].transformer_blocks[0].attn1.to_out
    assert torch.equal(taken["out"], to_out(nearest[None])[0])


def test_masks_keep_two_subjects_apart(sdxl, red, blue, positive, negative):
    patched, recording = apply_infusion(
        sdxl, [Source(red, half_mask("left")), Source(blue, half_mask("right", (32, 96)))], FULL
    )
    out = run(patched, positive, negative, (16, 16), batch=2)
    records = recording.find(out)
    assert len(records) == STEPS
    for record in records:
        assert record.parts == ((0, 0, 16, 16),) * 2 and record.batch == 2
        for layer, numbers in record.numbers.items():
            side = 16 // layer.factor
            assert numbers.shape == (4, side, side)
            assert set(numbers[:, :, : side // 2].unique().tolist()) <= {0, 1}
            assert set(numbers[:, :, side // 2 :].unique().tolist()) <= {0, 2}
            assert numbers.any()


def test_a_mask_over_everything_is_no_mask_and_order_of_sockets_no_matter(sdxl, red, blue, positive, negative):
    plain = run(infused(sdxl, red), positive, negative)
    torch.testing.assert_close(run(infused(sdxl, Source(red, torch.ones(9, 9))), positive, negative), plain)
    left, right = Source(red, half_mask("left")), Source(blue, half_mask("right"))
    torch.testing.assert_close(
        run(infused(sdxl, left, right), positive, negative), run(infused(sdxl, right, left), positive, negative)
    )


def test_an_area_of_the_prompt_gets_its_part_of_the_mask(sdxl, clip, red, negative):
    """Two prompts with areas, cropped by the host into rows of their own: the mask is cut as they are."""
    areas = [(16, 8, 0, 0), (16, 8, 0, 8)]  # height, width, y, x: left and right
    prompts = cond(clip, "a tall dancer", area=areas[0]) + cond(clip, "a tall wizard", area=areas[1])
    patched, recording = apply_infusion(sdxl, [Source(red, half_mask("right", (16, 16)))], FULL)
    out = run(patched, prompts, negative, (16, 16))
    seen = set()
    for record in recording.find(out):
        for layer, numbers in record.numbers.items():
            for part, row in zip(record.parts, numbers, strict=True):
                assert part is not None
                seen.add(part)
                columns = 8 // layer.factor
                if part[3] == 16:
                    assert not row[:, :columns].any() and row[:, columns:].any()
                else:
                    assert bool(row.any()) == (part[1] == 8)
    assert seen == {(0, 0, 16, 8), (0, 8, 16, 8), (0, 0, 16, 16)}


def test_batches_mixed_and_split(sdxl, red, blue, positive, negative, monkeypatch):
    """Four pictures and both prompts in one call, against one call each (low memory)."""
    patched, recording = apply_infusion(sdxl, [Source(red, half_mask("left")), Source(blue)], USUAL)
    together = run(patched, positive, negative, batch=4)
    assert {(len(record.parts), record.batch) for record in recording.find(together)} == {(2, 4)}
    monkeypatch.setattr(sdxl.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = run(patched, positive, negative, batch=4)
    assert {(len(record.parts), record.batch) for record in recording.find(split)} == {(1, 4)}
    torch.testing.assert_close(together, split, atol=1e-3, rtol=1e-3)


def test_prompts_of_unequal_length(sdxl, clip, red, positive):
    longer = cond(clip, " ".join(["a crowd of people in the rain"] * 40))
    out = run(infused(sdxl, Source(red, half_mask("left"))), positive, longer)
    assert torch.isfinite(out).all() and not torch.equal(out, run(sdxl, positive, longer))


def test_a_second_pass_at_another_size(sdxl, red, positive, negative):
    """High-res fix: the same patched model on a larger latent, from the middle of the run."""
    model = infused(sdxl, Source(red, half_mask("left")))
    first = run(model, positive, negative, (16, 16))
    latent = torch.nn.functional.interpolate(first, (24, 24))
    noise = comfy.sample.prepare_noise(latent, 5)

    def again(model):
        return comfy.sample.sample(
            model, noise, 4, 3.0, "euler", "normal", positive, negative, latent, denoise=0.5, seed=5, disable_pbar=True
        )

    second = again(model)
    assert second.shape[-2:] == (24, 24) and not torch.equal(second, again(sdxl))


def test_samplers_that_call_the_model_twice_a_step(sdxl, red, positive, negative):
    patched, recording = apply_infusion(sdxl, [Source(red)], USUAL)
    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 3)
    out = comfy.sample.sample(
        patched, noise, 4, 3.0, "heun", "normal", positive, negative, latent, seed=3, disable_pbar=True
    )
    found = [record.progress for record in recording.find(out)]
    assert found == sorted(found) and found[-1] == pytest.approx(
        1.0, abs=1e-3
    )  # later calls are never earlier in the run


def lora(model):
    weight = model.model.state_dict()[LORA]
    patched = model.clone()
    difference = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    patched.add_patches({LORA: ("diff", (difference,))}, 0.5)
    return patched


def replaced(kind):
    """As IP-Adapter-style packs do: more keys in one attention, or all of a block's."""

    def attend(q, k, v, extra):
        heads = extra["n_heads"]
        return optimized_attention(q, k.roll(1, 1), v, heads) + 0.5 * optimized_attention(q, k, v.roll(1, 1), heads)

    def apply(model):
        patched = model.clone()
        patched.set_model_patch_replace(attend, kind, "output", 3, 0)
        patched.set_model_patch_replace(attend, kind, "middle", 0)
        return patched

    return apply


def freeu(model):
    """FreeU tells blocks by their width, twice or four times the outermost one's; the tiny U-Net has one width alone."""
    with pytest.MonkeyPatch.context() as config:
        config.setitem(model.model.model_config.unet_config, "model_channels", 32)
        return FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0]


OTHERS = {
    "lora": lora,
    "attn1 replaced": replaced("attn1"),
    "attn2 replaced": replaced("attn2"),
    "freeu": freeu,
    "hypertile": lambda model: HyperTile.execute(model, 32, 2, 2, False)[0],
    "tome": lambda model: TomePatchModel.execute(model, 0.3).args[0],
    "pag": lambda model: PerturbedAttentionGuidance.execute(model, 2.0).args[0],
    "sag": lambda model: SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_nodes_in_any_order(sdxl, red, positive, negative, name):
    """Wired before or after, both have their effect, and it is the same."""
    other = OTHERS[name]
    before, after = (
        run(model, positive, negative, (16, 16)) for model in (infused(other(sdxl), red), other(infused(sdxl, red)))
    )
    assert torch.equal(before, after)
    if name != "tome":  # merges tokens at the latent's own size only, where SDXL has no attention
        assert not torch.equal(before, run(infused(sdxl, red), positive, negative, (16, 16)))
    assert not torch.equal(before, run(other(sdxl), positive, negative, (16, 16)))


def test_under_hypertile_every_token_is_infused_as_ever(sdxl, red, positive, negative):
    """Tiles reorder the queries; the appearance of all of them is what an untiled infusion would find."""
    tiled = OTHERS["hypertile"](sdxl)
    shapes = []

    def shape(q, k, v, extra):
        shapes.append((q.shape[:2], k.shape[:2]))
        return v if q.shape == v.shape else v.reshape(q.shape)

    tiled.set_model_attn1_replace(shape, "output", 3, 0)
    run(infused(tiled, red, settings=FULL), positive, negative, (16, 16))
    assert all(shape == ((8, 16), (2, 64)) for shape in shapes)  # four tiles a row
    with pytest.raises(AppearanceError, match="takes the picture's tokens apart"):
        run(infused(tiled, Source(red, half_mask("left")), settings=FULL), positive, negative, (16, 16))


def test_controlnet(sdxl, red, positive, negative, tiny_models):
    control_net: Any = comfy.controlnet.load_controlnet(
        str(tiny_models / TINY_CONTROLNET.folder / TINY_CONTROLNET.name)
    )
    hint = torch.rand(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))

    def controlled(prompt):
        control = control_net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
        return [[text, {**options, "control": control, "control_apply_to_uncond": False}] for text, options in prompt]

    model = infused(sdxl, Source(red, half_mask("left")))
    with_both = run(model, controlled(positive), controlled(negative))
    assert not torch.equal(with_both, run(model, positive, negative))
    assert not torch.equal(with_both, run(sdxl, controlled(positive), controlled(negative)))


def test_prompts_with_loras_of_their_own(sdxl, red, positive, negative):
    """The host then runs prompts apart, each with the model's weights as its hooks want them."""
    name = "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q"
    generator = torch.Generator().manual_seed(1)
    weights = {
        f"{name}.lora_up.weight": torch.randn(64, 4, generator=generator),
        f"{name}.lora_down.weight": torch.randn(4, 64, generator=generator),
    }
    hooks = comfy.hooks.create_hook_lora(weights, 1.0, 0.0)
    hooked = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    model = infused(sdxl, Source(red, half_mask("left")))
    out = run(model, hooked, negative)
    assert torch.isfinite(out).all() and not torch.equal(out, run(model, positive, negative))
    assert not torch.equal(out, run(sdxl, hooked, negative))


def test_delta_bridge_and_its_prompts_with_areas(sdxl, clip, red, negative):
    areas = [(16, 8, 0, 0), (16, 8, 0, 8)]
    prompts = [cond(clip, text, area=area)[0] for text, area in zip(("a dancer", "a wizard"), areas, strict=True)]
    others = [cond(clip, text, area=area)[0] for text, area in zip(("a tall man", "an old man"), areas, strict=True)]
    results = []
    for order in (0, 1):
        steps = [
            lambda model: infused(model, Source(red, half_mask("left"))),
            lambda model: apply_delta_bridge(model, others, 2.0, 1.0, 1),
        ]
        model = sdxl
        for step in steps[::-1] if order else steps:
            model = step(model)
        results.append(run(model, prompts, negative, (16, 16)))
    torch.testing.assert_close(*results)


def test_two_infusion_nodes_infuse_one_after_the_other(sdxl, red, blue, positive, negative):
    once = infused(sdxl, Source(red, half_mask("left")), settings=FULL)
    twice = infused(once, Source(blue, half_mask("right")), settings=FULL)
    both = infused(sdxl, Source(red, half_mask("left")), Source(blue, half_mask("right")), settings=FULL)
    torch.testing.assert_close(run(twice, positive, negative, (16, 16)), run(both, positive, negative, (16, 16)))
    again = infused(infused(sdxl, red, settings=FULL), red, settings=FULL)
    assert not torch.equal(run(again, positive, negative), run(infused(sdxl, red, settings=FULL), positive, negative))


def routed(model, owners_of):
    """A model whose calls carry a routing, as under AnyStory: `owners_of(rows, h, w)` from the second layer on."""

    def route(executor, x, timesteps, context, y, control, options, **kwargs):
        routing = CallRouting((1, 2, 0))

        def patch(n, context, value, extra):
            height, width = extra["activations_shape"][-2:]
            routing.maps.append(RoutingMap((height, width), owners_of(len(x), height, width), 3))
            return n, context, value

        patches = {**options.get("patches", {}), "attn2_patch": [patch]}
        return executor(
            x, timesteps, context, y, control, {**options, "patches": patches, ROUTING_KEY: routing}, **kwargs
        )

    patched = model.clone()
    patched.add_wrapper(WrappersMP.DIFFUSION_MODEL, route)
    return patched


def test_routing_says_where_each_appearance_goes(sdxl, red, blue, positive, negative):
    def owners(rows, height, width):
        """The first row of each picture belongs to subject 0, whose entry is 1, the second to subject 1, the rest to nobody."""
        whose = torch.zeros(height, width, dtype=torch.int64)
        whose[: height // 2], whose[height // 2 :, : width // 2] = 1, 2
        return whose.flatten().expand(rows, -1)

    sources = [Source(red, subject=0), Source(blue, half_mask("left", (16, 16)), subject=1)]
    patched, recording = apply_infusion(routed(sdxl, owners), sources, FULL)
    out = run(patched, positive, negative, (16, 16))
    for record in recording.find(out):
        for layer, numbers in record.numbers.items():
            half = 8 // layer.factor
            assert set(numbers[:, :half].unique().tolist()) <= {0, 1} and numbers[:, :half].any()
            assert set(numbers[:, half:, :half].unique().tolist()) <= {0, 2}
            assert not numbers[:, half:, half:].any()


def test_where_nothing_is_routed_nothing_is_infused(sdxl, red, positive, negative):
    out = run(infused(sdxl, Source(red, subject=0), settings=FULL), positive, negative)
    assert torch.equal(out, run(sdxl, positive, negative))


def test_pieces_of_the_picture_take_no_masks(sdxl, red, positive, negative):
    """Packs that sample in tiles cut the latent inside the model."""

    def tiles(apply_model, args):
        left, right = (apply_model(part, args["timestep"], **args["c"]) for part in args["input"].chunk(2, dim=-1))
        return torch.cat((left, right), dim=-1)

    tiled = sdxl.clone()
    tiled.set_model_unet_function_wrapper(tiles)
    assert torch.isfinite(run(infused(tiled, red), positive, negative)).all()
    with pytest.raises(AppearanceError, match="pieces of the picture whose place is unknown"):
        run(infused(tiled, Source(red, half_mask("left"))), positive, negative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("top_k", [1, 3])
def test_every_precision(tiny_models, clip, positive, negative, dtype, top_k):
    model = load_tiny_sdxl(tiny_models / TINY_SDXL.folder / TINY_SDXL.name)
    model.set_model_compute_dtype(dtype)
    appearance = appearance_of(model, clip)
    seen = []

    def note(out, extra):
        seen.append(out.dtype)
        return out

    patched = infused(model, Source(appearance, half_mask("left")), settings=Settings(FULL.schedule, top_k))
    patched.set_model_attn1_output_patch(note)
    out = run(patched, positive, negative)
    assert torch.isfinite(out).all() and set(seen) == {dtype}
    assert not torch.equal(out, run(model, positive, negative))


def test_low_memory_loading(sdxl, red, positive, negative):
    """Weights and the cache left on the offload device and cast layer by layer give the same picture."""
    model = infused(sdxl, red)
    whole = run(model, positive, negative)
    lowvram, seen = model.clone(), []

    def unload_partly(patcher):
        for part in (patcher, *patcher.get_additional_models()):
            part.detach()
            part.load(part.load_device, lowvram_model_memory=1)
            seen.append(part.model.model_lowvram)

    lowvram.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, unload_partly)
    assert torch.equal(whole, run(lowvram, positive, negative))
    assert seen == [True, True]


def test_the_host_manages_the_cache_with_the_model(sdxl, red, blue):
    model = infused(infused(sdxl, red, red), blue, red)
    assert [patcher.model for patcher in model.get_nested_additional_models()] == [red.network, blue.network]
    assert sdxl.get_nested_additional_models() == []
    assert red.patcher.model_size() == red.nbytes()


def test_state_after_an_interrupt(sdxl, red, positive, negative):
    patched, recording = apply_infusion(sdxl, [Source(red, half_mask("left"))], FULL)
    expected = run(patched, positive, negative)
    (hook,) = patched.wrappers[WrappersMP.OUTER_SAMPLE]["ensemble_appearance_infusion"]
    interrupted = patched.clone()

    def stop(n, context, value, extra):
        if extra["block"][0] == "output":
            raise comfy.model_management.InterruptProcessingException()
        return n, context, value

    interrupted.set_model_attn1_patch(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(interrupted, positive, negative)
    assert recording.current is None and hook.__self__._places == {}
    assert torch.equal(expected, run(patched, positive, negative))
    assert len(recording.find(expected)) == STEPS


def test_the_model_given_is_untouched(sdxl, red, positive, negative):
    before = run(sdxl, positive, negative)
    infused(sdxl, Source(red, half_mask("left")))
    assert torch.equal(before, run(sdxl, positive, negative))
    assert not sdxl.wrappers.get(WrappersMP.DIFFUSION_MODEL) and "patches_replace" not in str(sdxl.model_options)
