"""Appearance Cache as a node, with the host's own models."""

from __future__ import annotations

import comfy_extras.nodes_custom_sampler as custom
import pytest
import torch

from comfyui_ensemble.attention_patches.appearance_cache import cache_appearance, spread_sigmas
from comfyui_ensemble.attention_patches.schedule import sampling_progress
from comfyui_ensemble.nodes.appearance import EnsembleAppearanceCache
from comfyui_ensemble.nodes.errors import InputError


@pytest.fixture(scope="module")
def prompt(clip):
    return clip.encode_from_tokens_scheduled(clip.tokenize("a woman in a red coat"))


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(sdxl, prompt, sdxl_vae):
    def make(image, timesteps=1, **options):
        options = {"model": sdxl, "conditioning": prompt, "vae": sdxl_vae, **options}
        return EnsembleAppearanceCache.execute(image=image, timesteps=timesteps, **options).args

    return make


def tokens_of(appearance) -> dict[int, int]:
    """Kept tokens by the layers' factor."""
    network = appearance.network
    return {layer.factor: network.tokens(0, layer).weight.shape[0] for layer in network.layers}


def test_the_size_of_the_cache_is_said(cache):
    appearance, report = cache(picture(128, 96), 3)
    assert tokens_of(appearance) == {2: 48, 4: 12}
    size = appearance.nbytes() / 2**20
    assert report == f"{size:.1f} MiB: 3 timesteps of {size / 3:.1f} MiB, 204 tokens in 8 layers, from 96 x 128 pixels"


def test_the_latent_is_the_vaes_of_the_picture(cache, sdxl_vae, sdxl, prompt):
    image = picture(67, 90)  # the VAE crops it to 64 x 88
    appearance, report = cache(image)
    sigmas = spread_sigmas(sdxl.get_model_object("model_sampling"), 1)
    expected = cache_appearance(sdxl, prompt, sdxl_vae.encode(image), None, sigmas)
    for one, other in zip(appearance.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert report.endswith("from 90 x 67 pixels")


def test_the_mask_is_cropped_as_the_picture_is(cache):
    """The VAE leaves 4 of 71 columns out at the left: of the whole latent pixels one column is the subject's."""
    mask = torch.zeros(1, 64, 71)
    mask[:, :, 3:11] = 1
    assert tokens_of(cache(picture(64, 71), mask=mask)[0]) == {2: 4, 4: 2}


def test_an_alpha_channel_serves_as_mask(cache):
    image = picture(64, 64, 4)
    image[..., 3] = 0
    image[:, :, 32:, 3] = 1
    masked = cache(image[..., :3], mask=image[..., 3])[0]
    assert tokens_of(masked) == {2: 8, 4: 2}
    for one, other in zip(masked.network.parameters(), cache(image)[0].network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert tokens_of(cache(image, mask=torch.ones(1, 64, 64))[0]) == {2: 16, 4: 4}  # a mask goes before


def test_a_mask_over_everything_is_fine(cache):
    assert tokens_of(cache(picture(64, 64), mask=torch.ones(1, 64, 64))[0]) == {2: 16, 4: 4}


def test_every_step_of_a_run(cache, sdxl):
    sigmas = custom.BasicScheduler.execute(sdxl, "karras", 5, 1.0).args[0]
    appearance, _ = cache(picture(64, 64), 99, sigmas=sigmas)
    sampling = sdxl.get_model_object("model_sampling")
    assert appearance.network.moments == tuple(sampling_progress(sampling, float(sigma)) for sigma in sigmas[:-1])


def test_a_huge_picture_is_made_smaller(cache):
    """8,000 pixels wide: a sixteenth of a megapixel is kept, at its own shape."""
    image = picture(1, 8000).expand(-1, 4000, -1, -1)
    mask = torch.zeros(1, 4000, 8000)
    mask[:, :, :4000] = 1
    appearance, report = cache(image, mask=mask, max_megapixels=1 / 16)
    assert report.endswith("from 360 x 176 pixels")
    assert tokens_of(appearance)[2] == pytest.approx(45 * 22 / 4 / 2, abs=12)


def test_a_small_picture_stays_as_it_is(cache):
    assert tokens_of(cache(picture(32, 32))[0]) == {2: 4, 4: 1}


def message(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_bad_pictures(cache):
    assert message(lambda: cache(picture(16, 16))) == (
        "Appearance Cache, image: it is 16 x 16 pixels, too small to show anybody; connect one of at least 32 a side."
    )
    assert "image: it holds 2 pictures; pick one" in message(lambda: cache(picture(64, 64).repeat(2, 1, 1, 1)))


def test_bad_masks(cache):
    image = picture(64, 96)
    assert "mask: it is 1 of 64 x 64 pixels, the picture is 96 x 64" in message(
        lambda: cache(image, mask=torch.ones(1, 64, 64))
    )
    for empty in (torch.zeros(1, 64, 96), torch.zeros(64, 96)):
        assert "mask: it is empty" in message(lambda mask=empty: cache(image, mask=mask))
    assert "mask: it is empty" in message(lambda: cache(torch.cat((image, torch.zeros(1, 64, 96, 1)), dim=-1)))


def test_bad_prompts(cache, prompt):
    image = picture(64, 64)
    area = [[text, {**options, "area": (4, 4, 0, 0)}] for text, options in prompt]
    assert "conditioning: it is limited to an area" in message(lambda: cache(image, conditioning=area))
    assert "conditioning: it is empty" in message(lambda: cache(image, conditioning=[]))
    assert "conditioning: it makes the model look at the picture in several ways" in message(
        lambda: cache(image, conditioning=prompt + prompt)
    )
    wide = [[text.repeat(1, 1, 2), options] for text, options in prompt]
    assert "conditioning: its text is 768 wide, the model reads 384" in message(lambda: cache(image, conditioning=wide))


def test_other_models(cache, flux, vae):
    image = picture(64, 64)
    assert message(lambda: cache(image, model=flux)) == (
        "Appearance Cache, model: it is a Flux model; connect an SDXL model."
    )
    assert "vae: its latents have 16 channels, the model reads 4" in message(lambda: cache(image, vae=vae))


def test_bad_numbers(cache):
    image = picture(64, 64)
    assert "timesteps: 0 cannot be cached; choose a number from 1 to 1000" in message(lambda: cache(image, 0))
    assert "sigmas: they hold no step" in message(lambda: cache(image, sigmas=torch.tensor([0.0])))
    assert "timesteps: -1" in str(EnsembleAppearanceCache.validate_inputs(timesteps=-1))
    assert EnsembleAppearanceCache.validate_inputs() is True
