"""AnyStory without routers, through the host's sampler."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_call import NO_REFERENCES
from comfyui_ensemble.attention_patches.anystory_features import SubjectFeatures
from comfyui_ensemble.training.ablations.unrouted import apply_unrouted


@pytest.fixture
def sampled(sdxl, clip):
    """sampled(features, eta, gamma, cfg): two steps of the host's sampler."""

    def encode(text: str):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    def sample(
        features: SubjectFeatures | None, eta: float = 1.0, gamma: float = 0.0, cfg: float = 3.0, count: int = 1
    ):
        model = sdxl if features is None else apply_unrouted(sdxl, features, eta, gamma)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(encode("a girl and a boy"), encode(""))
        guider.set_cfg(cfg)
        noise = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
        sampler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)

    return sample


def twice(features: SubjectFeatures) -> SubjectFeatures:
    """The one subject of `features` as two."""
    return replace(
        features,
        names=("a", "b"),
        tokens=features.tokens[[0, 0, 1]],
        router=features.router[[0, 0, 1]],
        hidden=(None, *(states.repeat(2, 1, 1) for states in features.hidden[1:] if states is not None)),
    )


def test_nothing_strong_is_nothing(sampled, make_subjects) -> None:
    torch.testing.assert_close(sampled(make_subjects(2), 0.0, NO_REFERENCES), sampled(None), rtol=1e-3, atol=1e-3)


def test_the_same_subject_twice_is_that_subject(sampled, make_subjects) -> None:
    """Softmax over every key twice is softmax over them once; references' keys compete with the picture's own, so they are off."""
    features = make_subjects(1)
    once = sampled(features, 1.0, NO_REFERENCES)
    assert not torch.allclose(once, sampled(None), atol=1e-2)
    torch.testing.assert_close(sampled(twice(features), 1.0, NO_REFERENCES), once, rtol=1e-3, atol=1e-3)


def test_references_of_all_subjects_are_seen(sampled, make_subjects) -> None:
    features = make_subjects(2)
    other = replace(features, hidden=make_subjects(2, seed=1).hidden)
    assert not torch.allclose(sampled(features, 0.0), sampled(other, 0.0), atol=1e-3)
    torch.testing.assert_close(sampled(features, 0.0, NO_REFERENCES), sampled(other, 0.0, NO_REFERENCES))


def test_negative_prompts_have_no_subject(sampled, make_subjects) -> None:
    """At cfg 0 the picture is the negative prompt's alone, and with it the zero image's."""
    features = make_subjects(2)
    other = replace(make_subjects(2, seed=1), null_tokens=features.null_tokens)
    torch.testing.assert_close(sampled(features, cfg=0.0), sampled(other, cfg=0.0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sampled(features), sampled(other), atol=1e-2)


def test_pictures_of_a_batch_are_alike(sampled, make_subjects) -> None:
    features = make_subjects(2)
    torch.testing.assert_close(sampled(features, count=2)[:1], sampled(features), rtol=1e-3, atol=1e-3)
