"""Delta-Bridge against the paper's formula in float64, a call of the model for each prompt, in the host's real sampler."""

from __future__ import annotations

import itertools
import math

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy_extras.nodes_model_advanced as sampling_nodes
import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.delta_bridge import (
    CONSTANT,
    COSINE,
    LINEAR,
    SCHEDULES,
    apply_delta_bridge,
    bridge,
    fade,
    low_pass,
)

CFG = 5.0
GENERATION, APPEARANCE, NEGATIVE = "a fox in a red coat", "a fox in a blue coat", "blurry"


def pooled(values: np.ndarray, rounds: int) -> np.ndarray:
    """Average pooling, kernel 3, stride 1, reflect padding, one number at a time: (H, W) float64."""
    height, width = values.shape

    def reflected(index: int, length: int) -> int:
        return -index if index < 0 else 2 * (length - 1) - index if index >= length else index

    for _ in range(rounds):
        out = np.empty_like(values)
        for y, x in itertools.product(range(height), range(width)):
            near = [(reflected(y + dy, height), reflected(x + dx, width)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            out[y, x] = math.fsum(values[place] for place in near) / 9
        values = out
    return values


def pooled_latent(latent: torch.Tensor, rounds: int) -> torch.Tensor:
    flat = latent.double().reshape(-1, *latent.shape[-2:]).numpy()
    return torch.from_numpy(np.stack([pooled(picture, rounds) for picture in flat])).reshape(latent.shape)


def cond(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def prompts(clip):
    return tuple(cond(clip, text) for text in (GENERATION, APPEARANCE, NEGATIVE))


def run(model, positive, negative, sigmas, latent, cfg=CFG, sampler="euler", guider=None) -> torch.Tensor:
    guider = guider or comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    return guider.sample(noise, latent, comfy.samplers.sampler_object(sampler), sigmas, seed=3)


def schedule(model, steps: int) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
@pytest.mark.parametrize("shape", [(2, 4, 9, 7), (1, 3, 2, 2), (1, 2, 3, 4, 5), (1, 1, 2, 11)])
def test_low_pass_is_average_pooling(shape, rounds):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(low_pass(delta, rounds).double(), pooled_latent(delta, rounds), atol=1e-6, rtol=1e-6)


def test_low_pass_keeps_the_mean_of_a_flat_latent_and_a_side_of_one():
    assert torch.allclose(low_pass(torch.full((1, 4, 5, 6), 2.5), 50), torch.full((1, 4, 5, 6), 2.5))
    row = torch.randn(1, 1, 1, 6)
    expected = (row[..., [1, 0, 1, 2, 3, 4]] + row + row[..., [1, 2, 3, 4, 5, 4]]) / 3
    torch.testing.assert_close(low_pass(row, 1), expected)
    assert torch.equal(low_pass(row[..., :1], 3), row[..., :1])


def test_low_pass_takes_detail_away_and_leaves_what_is_broad():
    stripes = torch.ones(1, 1, 32, 32)
    stripes[..., ::2] = -1
    assert low_pass(stripes, 4).abs().max() < 0.02
    broad = torch.cos(torch.linspace(0, math.pi, 32)).expand(1, 1, 32, 32)
    assert (low_pass(broad, 4) - broad).abs().max() < 0.1


def test_fade_falls_to_nothing():
    assert [fade(x, COSINE) for x in (0.0, 0.5, 1.0, 1.1)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert [fade(x, LINEAR) for x in (0.0, 0.25, 1.0, 1.1)] == pytest.approx([1.0, 0.75, 0.0, 0.0])
    assert fade(0.99, CONSTANT) == 1.0
    for name in SCHEDULES:
        values = [fade(step / 20, name) for step in range(21)]
        assert values == sorted(values, reverse=True)


def test_the_formula_is_the_papers():
    """eps(0) + w (eps_gen - eps(0)) + lambda LP((eps_gen - eps(0)) - (eps_app - eps(0)))."""
    generation, appearance, nothing = torch.randn(3, 1, 4, 6, 5, dtype=torch.float64)
    g_gen, g_app = generation - nothing, appearance - nothing
    expected = nothing + 7.0 * g_gen + 1.3 * pooled_latent(g_gen - g_app, 3)
    guided = nothing + 7.0 * (generation - nothing)
    torch.testing.assert_close(bridge(guided, generation - appearance, 1.3, 3), expected)


# kind -> (raw prediction, x, sigma) -> x0, and sigma -> progress, both from the literature and in float64
DENOISED = {
    "eps": lambda raw, x, sigma: x - sigma * raw,
    "v": lambda raw, x, sigma: x / (sigma**2 + 1) - raw * sigma / (sigma**2 + 1) ** 0.5,
    "flow": lambda raw, x, sigma: x - sigma * raw,
    "flux": lambda raw, x, sigma: x - sigma * raw,
}


def oracle_progress(kind: str, sigma: float) -> float:
    if kind == "flow":  # sigma = 3 t / (1 + 2 t), t = 1 - progress
        return 1 - sigma / (3 - 2 * sigma)
    if kind == "flux":  # sigma = e^mu / (e^mu + 1 / t - 1)
        return 1 - 1 / (1 + math.exp(1.15) * (1 / sigma - 1))
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    return 1 - np.interp(math.log(sigma), np.log(np.sqrt((1 - alphas) / alphas)), np.arange(1000)) / 999


class PaperGuider(comfy.samplers.CFGGuider):
    """The paper's formula on what the network itself predicts (eps, v or velocity), each prompt in a call of its own."""

    def __init__(self, model, kind, appearance, strength, end, rounds):
        super().__init__(model.clone())
        self.kind, self.strength, self.end, self.rounds = kind, strength, end, rounds
        self.appearance, self.raw = appearance, []
        self.model_patcher.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, self.note)

    def note(self, executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        self.raw.append(out.double())
        return out

    def set_conds(self, positive, negative):
        self.inner_set_conds({"positive": positive, "appearance": self.appearance, "negative": negative})

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (the host's own signature)
        self.raw.clear()
        for name in ("positive", "appearance", "negative"):
            comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[name]], x, timestep, model_options)
        generation, appearance, nothing = self.raw
        progress = oracle_progress(self.kind, float(timestep[0]))
        factor = self.strength * (1 + math.cos(math.pi * progress / self.end)) / 2 if progress < self.end else 0.0
        g_gen, g_app = generation - nothing, appearance - nothing
        raw = nothing + self.cfg * g_gen + factor * pooled_latent(g_gen - g_app, self.rounds)
        return DENOISED[self.kind](raw, x.double(), float(timestep[0])).float()


def model_of(kind, sdxl, flux):
    if kind == "v":
        return sampling_nodes.ModelSamplingDiscrete().patch(sdxl, "v_prediction", False)[0]
    if kind == "flow":
        return sampling_nodes.ModelSamplingSD3().patch(sdxl, 3.0)[0]
    return flux if kind == "flux" else sdxl


@pytest.mark.parametrize("batch, size", [(1, (8, 12)), (2, (7, 9))])
@pytest.mark.parametrize("kind", DENOISED)
def test_every_kind_of_model_follows_the_formula(sdxl, flux, clip, kind, batch, size):
    positive, appearance, negative = prompts(clip)
    model = model_of(kind, sdxl, flux)
    sigmas, latent = schedule(model, 5), torch.zeros(batch, 16 if kind == "flux" else 4, *size)
    paper = PaperGuider(model, kind, appearance, 4.0, 0.7, 3)
    expected = run(None, positive, negative, sigmas, latent, guider=paper)
    ours = run(apply_delta_bridge(model, appearance, 4.0, 0.7, 3), positive, negative, sigmas, latent)
    plain = run(model, positive, negative, sigmas, latent)
    scale = expected.std()
    assert (plain - expected).abs().max() > 0.05 * scale
    torch.testing.assert_close(ours / scale, expected / scale, atol=2e-3, rtol=0)


@pytest.mark.parametrize("strength, end", [(0.0, 0.6), (3.0, 0.0)])
def test_neutral_is_the_model_itself(sdxl, clip, strength, end):
    assert apply_delta_bridge(sdxl, cond(clip, APPEARANCE), strength, end, 4) is sdxl


class Calls:
    """Rows and kinds of prompts of every call of the network."""

    def __init__(self, model):
        self.model, self.kinds = model.clone(), []
        self.model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, self.note)

    def note(self, executor, x, *args, **kwargs):
        kinds = (
            kwargs["transformer_options"]["cond_or_uncond"]
            if "transformer_options" in kwargs
            else args[-1]["cond_or_uncond"]
        )
        self.kinds.append(sorted(kinds))
        return executor(x, *args, **kwargs)


@pytest.mark.parametrize("cfg, rows", [(CFG, [0, 1]), (1.0, [0])])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "euler_cfg_pp"])
def test_three_prompts_in_one_call_until_the_end_and_plain_guidance_after(sdxl, clip, sampler, cfg, rows):
    positive, appearance, negative = prompts(clip)
    if "cfg_pp" in sampler:
        rows = [0, 1]  # it asks for the negative prompt whatever cfg is
    sigmas, latent = schedule(sdxl, 4), torch.zeros(1, 4, 8, 8)
    calls = Calls(apply_delta_bridge(sdxl, appearance, 3.0, 0.6, 4))
    run(calls.model, positive, negative, sigmas, latent, cfg, sampler)
    turn = calls.kinds.index(rows)
    assert turn > 0 and calls.kinds == [sorted([0, *rows])] * turn + [rows] * (len(calls.kinds) - turn)

    late = sigmas[sigmas < sdxl.get_model_object("model_sampling").percent_to_sigma(0.6)]
    start = torch.randn(latent.shape, generator=torch.Generator().manual_seed(9))
    assert torch.equal(
        run(calls.model, positive, negative, late, start, cfg, sampler),
        run(sdxl, positive, negative, late, start, cfg, sampler),
    )


def test_without_the_negative_prompt(sdxl, clip):
    """cfg 1: eps(gen) + lambda LP(eps(gen) - eps(app)), of predictions computed alone."""
    positive, appearance, negative = prompts(clip)
    sigmas, latent = torch.tensor([2.0, 0.0]), torch.zeros(1, 4, 8, 8)
    ours = run(apply_delta_bridge(sdxl, appearance, 3.0, 1.0, 2, CONSTANT), positive, negative, sigmas, latent, cfg=1.0)
    one, other = (run(sdxl, prompt, negative, sigmas, latent, cfg=1.0) for prompt in (positive, appearance))
    expected = one.double() + 3.0 * pooled_latent(one - other, 2)
    torch.testing.assert_close(ours.double(), expected, atol=2e-4, rtol=1e-4)


def test_equal_prompts_change_nothing(sdxl, clip):
    positive, _, negative = prompts(clip)
    sigmas, latent = schedule(sdxl, 3), torch.zeros(1, 4, 8, 8)
    ours = run(apply_delta_bridge(sdxl, cond(clip, GENERATION), 5.0, 1.0, 2), positive, negative, sigmas, latent)
    torch.testing.assert_close(ours, run(sdxl, positive, negative, sigmas, latent), atol=1e-3, rtol=1e-3)


def test_two_bridges_add_up_in_one_call(sdxl, clip):
    positive, appearance, negative = prompts(clip)
    sigmas, latent = torch.tensor([2.0, 0.0]), torch.zeros(1, 4, 8, 8)
    second = cond(clip, "a cat in a green coat")
    both = apply_delta_bridge(
        apply_delta_bridge(sdxl, appearance, 3.0, 1.0, 2, CONSTANT), second, 2.0, 1.0, 0, CONSTANT
    )
    calls = Calls(both)
    ours = run(calls.model, positive, negative, sigmas, latent)
    assert calls.kinds == [[0, 0, 0, 1]]
    one, other, third = (run(sdxl, prompt, negative, sigmas, latent, 1.0) for prompt in (positive, appearance, second))
    plain = run(sdxl, positive, negative, sigmas, latent).double()
    expected = plain + 3.0 * pooled_latent(one - other, 2) + 2.0 * (one - third).double()
    torch.testing.assert_close(ours.double(), expected, atol=5e-4, rtol=1e-4)


def test_batches_mixed_and_split(sdxl, clip, monkeypatch):
    positive, appearance, negative = prompts(clip)
    sigmas, latent = schedule(sdxl, 2), torch.zeros(4, 4, 8, 8)
    calls = Calls(apply_delta_bridge(sdxl, appearance, 3.0, 1.0, 4))
    together = run(calls.model, positive, negative, sigmas, latent)
    assert calls.kinds == [[0, 0, 1]] * 2
    monkeypatch.setattr(sdxl.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = run(calls.model, positive, negative, sigmas, latent)
    assert sorted(calls.kinds[2:]) == [[0]] * 4 + [[1]] * 2
    torch.testing.assert_close(together, split, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision(tiny_models, clip, dtype):
    path = next((tiny_models / "diffusion_models").glob("ensemble_tiny_flux*.safetensors"))
    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
    positive, appearance, negative = prompts(clip)
    sigmas, latent = torch.tensor([0.8, 0.0]), torch.zeros(1, 16, 9, 8)
    ours = run(apply_delta_bridge(model, appearance, 3.0, 1.0, 2, CONSTANT), positive, negative, sigmas, latent)
    one, other = (run(model, prompt, negative, sigmas, latent, cfg=1.0) for prompt in (positive, appearance))
    expected = run(model, positive, negative, sigmas, latent).double() + 3.0 * pooled_latent(one - other, 2)
    tolerance = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.4}[dtype]
    torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=tolerance)


def test_an_interrupt_leaves_nothing(sdxl, clip):
    positive, appearance, negative = prompts(clip)
    sigmas, latent = schedule(sdxl, 2), torch.zeros(1, 4, 8, 8)
    model = apply_delta_bridge(sdxl, appearance, 3.0, 1.0, 4)
    expected, plain = (run(each, positive, negative, sigmas, latent) for each in (model, sdxl))

    def stop(executor, *args, **kwargs):
        raise comfy.model_management.InterruptProcessingException()

    interrupted = model.clone()
    interrupted.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(interrupted, positive, negative, sigmas, latent)
    assert torch.equal(run(model, positive, negative, sigmas, latent), expected)
    assert torch.equal(run(sdxl, positive, negative, sigmas, latent), plain)


def test_sound_is_refused(sdxl, clip):
    positive, appearance, negative = prompts(clip)
    for prompt in (positive, appearance, negative):
        prompt[0][1].update(width=64, height=64)  # what the host reads off a picture's latent
    model = apply_delta_bridge(sdxl, appearance, 3.0, 1.0, 4)
    with pytest.raises(ValueError, match=r"it smooths pictures, and these latents are none \(shape \(1, 4, 99\)\)"):
        run(model, positive, negative, torch.tensor([5.0, 0.0]), torch.zeros(1, 4, 99))
