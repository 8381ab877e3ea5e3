"""Delta-Bridge and Delta-Bridge Guider as nodes, with the host's own sampler nodes."""

from __future__ import annotations

from typing import Any

import comfy.patcher_extension
import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch

import nodes as host
from comfyui_ensemble.nodes.delta_bridge import EnsembleDeltaBridge, EnsembleDeltaBridgeGuider
from comfyui_ensemble.nodes.errors import InputError

STEPS, CFG, SEED = 4, 5.0, 7
SETTINGS = {"strength": 3.0, "end_percent": 0.6, "blur_rounds": 4}


@pytest.fixture(scope="module")
def prompts(clip):
    texts = ("a fox in a red coat", "a fox in a blue coat", "blurry")
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]


@pytest.fixture(scope="module")
def quality(clip):
    return clip.encode_from_tokens_scheduled(clip.tokenize("sharp, best quality"))


def latent(batch: int = 1) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(batch, 4, 9, 7)}


def sampled(guider, batch: int = 1) -> torch.Tensor:
    """SamplerCustomAdvanced, wired as in any workflow."""
    noise = custom.RandomNoise.execute(SEED).args[0]
    sampler = custom.KSamplerSelect.execute("euler").args[0]
    sigmas = custom.BasicScheduler.execute(guider.model_patcher, "normal", STEPS, 1.0).args[0]
    return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent(batch)).args[0]["samples"]


def ksampled(model, positive, negative, cfg: float = CFG, batch: int = 1) -> torch.Tensor:
    result = host.KSampler().sample(
        model, SEED, STEPS, cfg, "euler", "normal", positive, negative, latent(batch), denoise=1.0
    )
    return result[0]["samples"]


def guider_of(model, prompts, cfg: float = CFG, **changed):
    positive, appearance, negative = prompts
    values = SETTINGS | changed
    return EnsembleDeltaBridgeGuider.execute(model, positive, appearance, negative, cfg, **values).args[0]


def plain_guider(model, positive, negative, cfg: float = CFG):
    return custom.CFGGuider.execute(model, positive, negative, cfg).args[0]


def patched(model, appearance, **changed):
    return EnsembleDeltaBridge.execute(model, appearance, **(SETTINGS | changed)).args[0]


@pytest.mark.parametrize("cfg", [CFG, 1.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_guider_and_ksampler_give_the_same_picture(sdxl, prompts, cfg, batch):
    positive, appearance, negative = prompts
    ours = sampled(guider_of(sdxl, prompts, cfg), batch)
    assert torch.equal(ours, ksampled(patched(sdxl, appearance), positive, negative, cfg, batch))
    plain = ksampled(sdxl, positive, negative, cfg, batch)
    assert ours.isfinite().all() and not torch.allclose(ours, plain, atol=0.1)


def test_flux_and_its_guider(flux, prompts):
    positive, appearance, negative = prompts
    ours = sampled(guider_of(flux, prompts, 1.0))
    assert ours.isfinite().all() and not torch.equal(ours, sampled(plain_guider(flux, positive, negative, 1.0)))
    assert torch.equal(ours, sampled(custom.BasicGuider.execute(patched(flux, appearance), positive).args[0]))


@pytest.mark.parametrize("changed", [{"strength": 0.0}, {"end_percent": 0.0}])
@pytest.mark.parametrize("cfg", [CFG, 1.0])
def test_neutral_is_bit_identical(sdxl, prompts, changed, cfg):
    positive, appearance, negative = prompts
    appearance = [[appearance[0][0], {**appearance[0][1], "area": (4, 4, 2, 2), "strength": 1.0}]]
    asked = (positive, appearance, negative)
    plain = plain_guider(sdxl, positive, negative, cfg)
    assert torch.equal(sampled(guider_of(sdxl, asked, cfg, **changed)), sampled(plain))
    assert torch.equal(
        ksampled(patched(sdxl, appearance, **changed), positive, negative, cfg), ksampled(sdxl, positive, negative, cfg)
    )


def test_every_setting_matters_and_nothing_given_is_changed(sdxl, prompts):
    positive, _, negative = prompts
    before = ksampled(sdxl, positive, negative)
    options, kept = sdxl.model_options.copy(), [dict(prompt[0][1]) for prompt in prompts]
    changes: list[dict[str, Any]] = [{}, {"strength": 1.0}, {"end_percent": 0.9}, {"blur_rounds": 0}]
    changes += [{"schedule": "constant"}, {"schedule": "linear"}]
    pictures = [sampled(guider_of(sdxl, prompts, **changed)) for changed in changes]
    for index, picture in enumerate(pictures):
        assert not any(torch.allclose(picture, other, atol=1e-3) for other in pictures[:index])
    assert sdxl.model_options == options and not sdxl.wrappers
    assert [set(prompt[0][1]) for prompt in prompts] == [set(options) for options in kept]
    assert torch.equal(ksampled(sdxl, positive, negative), before)


class Texts:
    """Which texts the network reads in a call, by the kind of their prompt."""

    def __init__(self, model) -> None:
        self.model, self.seen = model.clone(), []
        self.model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, self.note)

    def note(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        self.seen.extend(zip(transformer_options["cond_or_uncond"], c_crossattn.chunk(len(x)), strict=True))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def holds(self, kind: int, text: torch.Tensor) -> bool:
        """Whether a prompt of that kind was this text, which the host repeats to fit it into a batch."""
        return any(
            torch.equal(seen, text.repeat(1, seen.shape[1] // text.shape[1], 1))
            for is_, seen in self.seen
            if is_ == kind
        )


def test_quality_words_reach_the_positive_prompt_only(sdxl, prompts, quality):
    positive, appearance, negative = prompts
    joined = host.ConditioningConcat().concat(positive, quality)[0]
    texts = Texts(sdxl)
    ours = sampled(guider_of(texts.model, prompts, quality_positive=quality))
    assert torch.equal(ours, sampled(guider_of(sdxl, (joined, appearance, negative))))
    assert not torch.allclose(ours, sampled(guider_of(sdxl, prompts)), atol=1e-2)
    assert texts.holds(0, joined[0][0]) and texts.holds(0, appearance[0][0]) and texts.holds(1, negative[0][0])
    kinds = {(kind, seen.shape[1], float(seen.sum())) for kind, seen in texts.seen}
    assert len(kinds) == 3 + 1  # the negative prompt alone in a call after the end is not repeated
    assert positive[0][0].shape[1] == joined[0][0].shape[1] - quality[0][0].shape[1]  # what was given is as it was


def test_quality_words_with_a_ksampler(sdxl, prompts, quality):
    """There the positive prompt is the sampler's own, so the host's concatenation does it."""
    positive, appearance, negative = prompts
    joined = host.ConditioningConcat().concat(positive, quality)[0]
    ours = ksampled(patched(sdxl, appearance), joined, negative)
    assert torch.equal(ours, sampled(guider_of(sdxl, prompts, quality_positive=quality)))


def test_quality_words_stay_without_strength(sdxl, prompts, quality):
    positive, _, negative = prompts
    joined = host.ConditioningConcat().concat(positive, quality)[0]
    ours = sampled(guider_of(sdxl, prompts, strength=0.0, quality_positive=quality))
    assert torch.equal(ours, sampled(plain_guider(sdxl, joined, negative)))


BAD = [
    ({"strength": -1.0}, "strength: -1 is not between 0 and 100; to pull the other way, swap the two prompts."),
    ({"strength": float("nan")}, "strength: nan is not between 0 and 100"),
    ({"strength": 1e6}, r"strength: 1e\+06 is not between 0 and 100"),
    ({"end_percent": 1.5}, r"end_percent: 1.5 is not between 0 \(the start of the sampling\) and 1 \(its end\)."),
    ({"end_percent": -0.1}, "end_percent: -0.1 is not between 0"),
    ({"blur_rounds": -1}, r"blur_rounds: -1 is not between 0 \(no smoothing\) and 100."),
    ({"blur_rounds": 1000}, "blur_rounds: 1000 is not between 0"),
    ({"schedule": "step"}, "schedule: there is no 'step'; choose one of: cosine, linear, constant."),
]


@pytest.mark.parametrize("changed, sentence", BAD)
def test_values_out_of_range(sdxl, prompts, changed, sentence):
    with pytest.raises(InputError, match=f"^Delta-Bridge Guider, {sentence}"):
        guider_of(sdxl, prompts, **changed)
    with pytest.raises(InputError, match=f"^Delta-Bridge, {sentence}"):
        patched(sdxl, prompts[1], **changed)


@pytest.mark.parametrize("node", [EnsembleDeltaBridgeGuider, EnsembleDeltaBridge])
def test_a_negative_strength_is_refused_before_the_run(node):
    answer = node.validate_inputs(strength=-1.0)
    assert isinstance(answer, str) and answer.startswith(
        f"{node.DISPLAY_NAME}, strength: -1 is not between 0 and 100; to"
    )
    assert node.validate_inputs() is True and node.validate_inputs(strength=3.0) is True


def test_an_empty_conditioning_is_refused(sdxl, prompts):
    positive, appearance, negative = prompts
    with pytest.raises(InputError, match="Delta-Bridge Guider, appearance_positive: it is empty; connect an encoded"):
        guider_of(sdxl, (positive, [], negative))
    with pytest.raises(InputError, match="Delta-Bridge, appearance_positive: it is empty"):
        patched(sdxl, [])
    with pytest.raises(InputError, match="Delta-Bridge Guider, quality_positive: it is empty"):
        guider_of(sdxl, (positive, appearance, negative), quality_positive=[])


def test_texts_of_another_encoder_are_refused(sdxl, prompts):
    positive, _, negative = prompts
    other = [[torch.zeros(1, 77, 768), {}]]
    with pytest.raises(InputError, match="quality_positive: its text is 768 wide, that of positive 384; encode both"):
        guider_of(sdxl, prompts, quality_positive=other)
    with pytest.raises(ValueError, match="the appearance prompt is 768 wide, that of the positive prompt 384; encode"):
        ksampled(patched(sdxl, other), positive, negative)
