"""A prompt beside the sampler's own goes through all that theirs do: held against runs in which it is the only prompt.

One step of the sampler gives the prediction of the clean latent. Delta-Bridge without smoothing and fading adds
strength * (positive - appearance) to it, so every case can be put together from runs of one prompt each.
"""

from __future__ import annotations

from typing import Any

import comfy.context_windows
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_apg as apg
import comfy_extras.nodes_context_windows as windows
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_model_advanced as advanced
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_tcfg as tcfg
import node_helpers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from comfyui_ensemble.attention_patches.delta_bridge import CONSTANT, apply_delta_bridge
from comfyui_ensemble.attention_patches.extra_prompt import coverage
from comfyui_ensemble.models_info.registry import TINY_CONTROLNET

CFG, STRENGTH = 5.0, 3.0
ONE_STEP = torch.tensor([2.0, 0.0])
GENERATION, APPEARANCE, NEGATIVE = "a fox in a red coat", "a fox in a blue coat", "blurry"
SIZE = (16, 16)


@pytest.fixture(scope="module")
def prompts(clip):
    return [cond(clip, text) for text in (GENERATION, APPEARANCE, NEGATIVE)]


@pytest.fixture(scope="module")
def control_net(tiny_models):
    return comfy.controlnet.load_controlnet(str(tiny_models / TINY_CONTROLNET.folder / TINY_CONTROLNET.name))


def cond(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def bridged(model, appearance):
    return apply_delta_bridge(model, appearance, STRENGTH, 1.0, 0, CONSTANT)


def sample(guider, batch=1, sigmas=ONE_STEP, size=SIZE) -> torch.Tensor:
    latent = torch.zeros(batch, 4, *size)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, seed=3)


def run(model, positive, negative, cfg=CFG, **options) -> torch.Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return sample(guider, **options)


def alone(model, prompt, **options) -> torch.Tensor:
    """The prediction for one prompt."""
    return run(model, prompt, prompt, cfg=1.0, **options)


def with_options(prompt, **options):
    return node_helpers.conditioning_set_values(prompt, options)


def assert_close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=1e-3)


class Calls:
    """What every call of the network worked on."""

    def __init__(self, model):
        self.model, self.kinds = model.clone(), []
        self.model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, self.note)

    def note(self, executor, *args, **kwargs):
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[-1]
        self.kinds.append(sorted(options["cond_or_uncond"]))
        return executor(*args, **kwargs)


def soft_mask() -> torch.Tensor:
    mask = torch.zeros(1, *SIZE)
    mask[:, :, 4:8] = 0.5
    mask[:, :, 8:] = 1
    return mask


@pytest.mark.parametrize("which", range(3))
def test_a_mask_on_any_of_the_three(sdxl, prompts, which):
    """The positive prompt's mask leaves its other side to a second prompt, as regional prompts do."""
    mask = soft_mask()
    positive, appearance, negative = (
        with_options(prompt, mask=mask) if index == which else prompt for index, prompt in enumerate(prompts)
    )
    if which == 0:
        positive = [*positive, *with_options(prompts[2], mask=1 - mask)]
    difference = alone(sdxl, positive) - alone(sdxl, prompts[1])
    expected = run(sdxl, positive, negative) + STRENGTH * (difference * mask if which == 1 else difference)
    assert_close(run(bridged(sdxl, appearance), positive, negative), expected)


def test_areas_of_the_positive_prompt_are_areas_of_the_appearance_prompt(sdxl, prompts):
    """As the host does for the negative prompt: what is compared was seen through the same window."""
    area = {"area": (8, 8, 4, 4), "strength": 1.0, "set_area_to_bounds": False}
    positive = [*prompts[0], *with_options(prompts[0], **area)]
    ours = run(bridged(sdxl, prompts[1]), positive, prompts[2])
    difference = alone(sdxl, positive) - alone(sdxl, [*prompts[1], *with_options(prompts[1], **area)])
    assert_close(ours, run(sdxl, positive, prompts[2]) + STRENGTH * difference)


def test_such_an_area_does_not_lift_the_appearance_prompts_own_mask(sdxl, prompts):
    area = {"area": (8, 8, 4, 4), "strength": 1.0, "set_area_to_bounds": False}
    positive = [*prompts[0], *with_options(prompts[0], **area)]
    appearance = with_options(prompts[1], mask=soft_mask())
    ours = run(bridged(sdxl, appearance), positive, prompts[2])
    difference = alone(sdxl, positive) - alone(sdxl, [*appearance, *with_options(prompts[1], **area)])
    assert_close(ours, run(sdxl, positive, prompts[2]) + STRENGTH * difference * soft_mask())


def test_an_area_of_the_appearance_prompt_limits_it_and_leaves_the_others_alone(sdxl, prompts):
    appearance = with_options(prompts[1], area=(8, 8, 4, 4), strength=1.0, set_area_to_bounds=False)
    calls = Calls(bridged(sdxl, appearance))
    ours, plain = run(calls.model, prompts[0], prompts[2]), run(sdxl, prompts[0], prompts[2])
    assert sorted(calls.kinds) == [[0], [0, 1]]  # the guider's two prompts have not become more
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[4:12, 4:12] = False
    assert_close(ours[..., outside], plain[..., outside])
    core = (..., slice(6, 10), slice(6, 10))
    assert_close(ours[core], (plain + STRENGTH * (alone(sdxl, prompts[0]) - alone(sdxl, appearance)))[core])


def test_a_time_range_on_the_appearance_prompt(sdxl, prompts):
    sigmas = comfy.samplers.calculate_sigmas(sdxl.get_model_object("model_sampling"), "normal", 4)
    calls = Calls(bridged(sdxl, with_options(prompts[1], start_percent=0.0, end_percent=0.5)))
    run(calls.model, prompts[0], prompts[2], sigmas=sigmas)
    assert calls.kinds == [[0, 0, 1]] * 2 + [[0, 1]] * 2
    late = sigmas[2:]
    assert_close(run(calls.model, prompts[0], prompts[2], sigmas=late), run(sdxl, prompts[0], prompts[2], sigmas=late))


def test_coverage_of_a_video():
    x = torch.zeros(1, 2, 3, 8, 8)
    entry = {"model_conds": {}, "uuid": 1}

    def covered(*entries) -> torch.Tensor:
        found = coverage([{**entry, **options} for options in entries], x, torch.tensor([1.0]))
        return torch.full_like(x, torch.nan) if found is None else found

    assert covered({}).isnan().all()
    mask = torch.zeros(1, 3, 8, 8)
    mask[:, 1:, :, 4:] = 0.25
    assert torch.equal(covered({"mask": mask}), mask[:, None].expand_as(x))
    area = covered({"area": (2, 4, 8, 1, 0, 0)})  # frames, rows, columns
    assert (area[:, :, 1:, :4] == 1).all() and not area[:, :, 0].any() and not area[:, :, :, 4:].any()
    assert not covered({"timestep_end": 2.0}).any()
    assert covered({}, {"mask": mask}).eq(1).all()


@pytest.mark.parametrize("words, calls", [(14, 1), (47, 2)])
def test_prompts_of_unequal_length(sdxl, clip, prompts, words, calls):
    """The host repeats a shorter text up to four times to fit it into the batch, and calls the model twice beyond that."""
    longer = cond(clip, "fox " * words)
    seen = Calls(bridged(sdxl, longer))
    difference = alone(sdxl, prompts[0]) - alone(sdxl, longer)
    assert_close(run(seen.model, prompts[0], prompts[2]), run(sdxl, prompts[0], prompts[2]) + STRENGTH * difference)
    assert len(seen.kinds) == calls


def controlled(prompt, control_net, seed, **options):
    hint = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed))
    control = control_net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
    return with_options(prompt, control=control, control_apply_to_uncond=False, **options)


def test_the_positive_prompts_controlnet_holds_for_the_appearance_too(sdxl, prompts, control_net):
    positive = controlled(prompts[0], control_net, 1)
    negative = with_options(prompts[2], control=positive[0][1]["control"], control_apply_to_uncond=False)
    calls = Calls(bridged(sdxl, prompts[1]))
    ours = run(calls.model, positive, negative)
    assert calls.kinds == [[0, 0, 1]]
    other = alone(sdxl, with_options(prompts[1], control=positive[0][1]["control"], control_apply_to_uncond=False))
    assert_close(ours, run(sdxl, positive, negative) + STRENGTH * (alone(sdxl, positive) - other))


@pytest.mark.parametrize("on_positive", [False, True])
def test_a_controlnet_of_the_appearance_prompts_own(sdxl, prompts, control_net, on_positive):
    positive = controlled(prompts[0], control_net, 1) if on_positive else prompts[0]
    appearance = controlled(prompts[1], control_net, 2)
    ours = run(bridged(sdxl, appearance), positive, prompts[2])
    assert appearance[0][1]["control"].cond_hint is None  # freed
    difference = alone(sdxl, positive) - alone(sdxl, appearance)
    assert_close(ours, run(sdxl, positive, prompts[2]) + STRENGTH * difference)


def test_its_controlnet_is_loaded_with_the_model(sdxl, prompts, control_net):
    model, loaded = bridged(sdxl, controlled(prompts[1], control_net, 2)), []

    def note(executor, *args, **kwargs):
        loaded.append(control_net.control_model_wrapped in comfy.model_management.loaded_models())
        return executor(*args, **kwargs)

    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, note)
    comfy.model_management.unload_all_models()
    run(model, prompts[0], prompts[2])
    assert loaded == [True, True]


def hook_lora(seed: int) -> comfy.hooks.HookGroup:
    generator = torch.Generator().manual_seed(seed)
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    down, up = torch.randn(4, 384, generator=generator), torch.randn(64, 4, generator=generator)
    return comfy.hooks.create_hook_lora({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, 1.0, 0.0)


@pytest.mark.parametrize("on_positive", [None, 1, 2])
@pytest.mark.parametrize("on_appearance", [1, None])
def test_hooks(sdxl, prompts, on_positive, on_appearance):
    """A LoRA on one prompt only, on another or the same one for both."""
    groups = {1: hook_lora(1), 2: hook_lora(2)}

    def hooked(prompt, number):
        return prompt if number is None else with_options(prompt, hooks=groups[number])

    positive, appearance = hooked(prompts[0], on_positive), hooked(prompts[1], on_appearance)
    one, other = alone(sdxl, positive), alone(sdxl, appearance)
    assert on_appearance is None or not torch.allclose(other, alone(sdxl, prompts[1]), atol=1e-2)
    plain = run(sdxl, positive, prompts[2])
    model = bridged(sdxl, appearance)
    for _ in range(2):  # the second run finds the weights as the first did
        assert_close(run(model, positive, prompts[2]), plain + STRENGTH * (one - other))
        assert not model.hook_patches and model.hook_patches_backup is None
    assert torch.equal(run(sdxl, positive, prompts[2]), plain)


def rescale(model):
    return advanced.RescaleCFG().patch(model, 0.7)[0]


def adaptive(model):
    return apg.APG.execute(model, 0.5, 5.0, 0.0).args[0]


def tangential(model):
    return tcfg.TCFG.execute(model).args[0]


def perturbed(model):
    return pag.PerturbedAttentionGuidance.execute(model, 2.0).args[0]


def one_by_one(model):
    """A replacement of the batch computation that, like the host's SkipLayerGuidanceDiTSimple, knows two prompts."""

    def calc_cond_batch(args):
        positive, negative = args["conds"]
        rest = (args["input"], args["sigma"], args["model_options"])
        calls: list[Any] = [[positive, None], [None, negative]]
        out = [comfy.samplers.calc_cond_batch(args["model"], prompts, *rest) for prompts in calls]
        return [out[0][0], out[1][1]]

    patched = model.clone()
    patched.set_model_sampler_calc_cond_batch_function(calc_cond_batch)
    return patched


def in_halves(model):
    """A replacement that computes the picture in two pieces."""

    def calc_cond_batch(args):
        pieces = args["input"].chunk(2, dim=2)
        rest = (args["sigma"], args["model_options"])
        out = [comfy.samplers.calc_cond_batch(args["model"], args["conds"], piece, *rest) for piece in pieces]
        return [torch.cat(halves, dim=2) for halves in zip(*out, strict=True)]

    patched = model.clone()
    patched.set_model_sampler_calc_cond_batch_function(calc_cond_batch)
    return patched


def for_two(model):
    """A wrapper that expects the guider's two prompts."""

    def calc_cond_batch(executor, network, conds, *rest):
        positive, negative = executor(network, conds, *rest)
        return [positive, 1.1 * negative]

    patched = model.clone()
    patched.add_wrapper(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, calc_cond_batch)
    return patched


@pytest.mark.parametrize("patch", [rescale, adaptive, tangential, perturbed, one_by_one, in_halves, for_two])
def test_guidance_by_others_in_either_order(sdxl, prompts, patch):
    positive, appearance, negative = prompts
    expected = run(patch(sdxl), positive, negative) + STRENGTH * (alone(sdxl, positive) - alone(sdxl, appearance))
    for model in (patch(bridged(sdxl, appearance)), bridged(patch(sdxl), appearance)):
        assert_close(run(model, positive, negative), expected)


def test_attention_by_others_that_knows_two_kinds_of_prompts(sdxl, prompts):
    """As IP-Adapter packs pick their features; the appearance prompt gets those of a positive one."""
    features = torch.randn(2, 1, 4, 64, generator=torch.Generator().manual_seed(0))

    def attention(q, k, v, extra):
        extra_tokens = torch.cat([(features[0], features[1])[kind] for kind in extra["cond_or_uncond"]])
        tokens = extra_tokens.repeat_interleave(len(q) // len(extra_tokens), 0)
        return optimized_attention(q, torch.cat((k, tokens), 1), torch.cat((v, tokens), 1), extra["n_heads"])

    model = sdxl.clone()
    model.set_model_attn2_replace(attention, "middle", 0)
    positive, appearance, negative = prompts
    expected = run(model, positive, negative) + STRENGTH * (alone(model, positive) - alone(model, appearance))
    assert_close(run(bridged(model, appearance), positive, negative), expected)
    assert not torch.allclose(run(bridged(sdxl, appearance), positive, negative), expected, atol=0.05)


def test_windows_over_a_batch(sdxl, prompts):
    """The host's context windows compute pieces of the latent; the difference is then computed in windows too."""

    def in_windows(model):
        schedule, fuse = comfy.context_windows.ContextSchedules, comfy.context_windows.ContextFuseMethods
        values = (2, 1, schedule.STATIC_STANDARD, 1, False, fuse.FLAT, 0, False)
        windowed: Any = windows.ContextWindowsManualNode.execute(model, *values)
        return windowed.args[0]

    positive, appearance, negative = prompts
    model = in_windows(sdxl)
    difference = alone(model, positive, batch=4) - alone(model, appearance, batch=4)
    expected = run(model, positive, negative, batch=4) + STRENGTH * difference
    assert_close(run(bridged(model, appearance), positive, negative, batch=4), expected)


@pytest.mark.parametrize("node", [easycache.EasyCacheNode, easycache.LazyCacheNode])
def test_caching_of_steps(sdxl, prompts, node):
    """With a threshold that skips nothing the picture is the same; with one that skips it is still a picture."""
    sigmas = comfy.samplers.calculate_sigmas(sdxl.get_model_object("model_sampling"), "normal", 3)
    positive, appearance, negative = prompts
    expected = run(bridged(sdxl, appearance), positive, negative, sigmas=sigmas)
    for threshold in (0.0, 3.0):
        for model in (
            bridged(node.execute(sdxl, threshold, 0.0, 1.0, False).args[0], appearance),
            node.execute(bridged(sdxl, appearance), threshold, 0.0, 1.0, False).args[0],
        ):
            ours = run(model, positive, negative, sigmas=sigmas)
            assert ours.isfinite().all() and (threshold > 0 or torch.allclose(ours, expected, atol=1e-4))


def test_guiders_of_the_host(sdxl, prompts):
    positive, appearance, negative = prompts

    def basic(model):
        return custom.BasicGuider.execute(model, positive).args[0]

    def dual(model):
        return custom.DualCFGGuider.execute(model, positive, negative, negative, 4.0, 2.0, "regular").args[0]

    def perpendicular(model):
        return perpneg.PerpNegGuider.execute(model, positive, negative, negative, 4.0, 1.0).args[0]

    difference = alone(sdxl, positive) - alone(sdxl, appearance)
    for guider in (basic, dual, perpendicular):
        assert_close(sample(guider(bridged(sdxl, appearance))), sample(guider(sdxl)) + STRENGTH * difference)


def test_low_memory_loading(sdxl, prompts):
    """Weights left on the offload device and cast layer by layer give the same picture."""
    positive, appearance, negative = prompts
    model = bridged(sdxl, appearance)
    whole = run(model, positive, negative)
    lowvram, seen = model.clone(), []

    def unload_partly(patcher):
        patcher.detach()
        patcher.load(patcher.load_device, lowvram_model_memory=1)
        seen.append(patcher.model.model_lowvram)

    lowvram.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, unload_partly)
    assert torch.equal(whole, run(lowvram, positive, negative)) and seen == [True]


def test_nothing_outlives_a_run(sdxl, prompts):
    positive, appearance, negative = prompts
    before = [dict(options) for _, options in appearance]
    guider = comfy.samplers.CFGGuider(bridged(sdxl, appearance))
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    held = set(vars(guider)), set(guider.model_options), set(guider.original_conds)
    first = sample(guider)
    assert (set(vars(guider)) - {"conds"}, set(guider.model_options), set(guider.original_conds)) == held
    assert torch.equal(sample(guider), first)  # the same object again
    assert [set(options) for _, options in appearance] == [set(options) for options in before]


def test_text_of_another_width_is_refused(sdxl, prompts):
    other = [[torch.zeros(1, 7, 768), prompts[1][0][1]]]
    with pytest.raises(
        ValueError, match="the appearance prompt is 768 wide, that of the positive prompt 384; encode both"
    ):
        run(bridged(sdxl, other), prompts[0], prompts[2])


def test_a_guider_without_positive_prompt_is_refused(sdxl, prompts):
    guider = comfy.samplers.CFGGuider(bridged(sdxl, prompts[1]))
    guider.inner_set_conds({"middle": prompts[0], "negative": prompts[2]})
    with pytest.raises(ValueError, match="Delta-Bridge: this guider has no positive prompt"):
        sample(guider)
