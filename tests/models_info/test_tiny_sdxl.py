"""The tiny SDXL is SDXL to the host, in everything but its size."""

from __future__ import annotations

from typing import Any

import comfy.controlnet
import comfy.model_base
import comfy.model_sampling
import comfy.sample
import pytest
import torch

from comfyui_ensemble.models_info.registry import TINY_CONTROLNET


@pytest.fixture(scope="module")
def sample(sdxl, clip):
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a woman", ""))

    def run(latent: torch.Tensor, **options) -> torch.Tensor:
        first, second = ([[text, {**values, **options}] for text, values in cond] for cond in (positive, negative))
        noise = comfy.sample.prepare_noise(latent, 1)
        return comfy.sample.sample(sdxl, noise, 2, 5.0, "euler", "normal", first, second, latent)

    return run


def test_is_sdxl_to_the_host(sdxl):
    assert isinstance(sdxl.model, comfy.model_base.SDXL)
    assert isinstance(sdxl.model.model_sampling, comfy.model_sampling.EPS)
    assert sum(value.numel() for value in sdxl.model.diffusion_model.parameters()) == 4_319_812


def test_every_weight_of_the_file_is_used(sdxl, tiny_models):
    values = sdxl.model.diffusion_model.state_dict().values()
    assert all(value.isfinite().all() and value.abs().max() <= 10 for value in values)
    assert sum(bool(value.any()) for value in values) > len(values) / 2  # biases start at zero, nothing else does


def test_the_host_can_load_it_anew(sdxl):
    """As it does for several GPUs, and where a clone is not to stream its weights."""
    load, arguments = sdxl.cached_patcher_init
    whole = load(*arguments, disable_dynamic=True)
    assert not whole.is_dynamic() and whole.model is not sdxl.model
    states = (model.model.diffusion_model.state_dict() for model in (whole, sdxl))
    for fresh, value in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(fresh, value)


def test_samples_and_follows_the_controlnet(sample, tiny_models):
    control_net: Any = comfy.controlnet.load_controlnet(
        str(tiny_models / TINY_CONTROLNET.folder / TINY_CONTROLNET.name)
    )
    hint = torch.rand(1, 128, 96, 3, generator=torch.Generator().manual_seed(0))
    latent = torch.zeros(1, 4, 16, 12)
    plain = sample(latent)
    assert plain.shape == latent.shape and plain.isfinite().all()

    control = control_net.copy().set_cond_hint(hint.movedim(-1, 1), 1.0, (0.0, 1.0))
    assert not torch.equal(sample(latent, control=control, control_apply_to_uncond=False), plain)


def test_its_vae_has_four_channels(sdxl_vae):
    latent = sdxl_vae.encode(torch.rand(1, 64, 48, 3))
    assert latent.shape == (1, 4, 8, 6)
    assert sdxl_vae.decode(latent).shape == (1, 64, 48, 3)
