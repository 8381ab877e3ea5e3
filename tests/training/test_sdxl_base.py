"""The training of a whole U-Net, with the host's own models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.sdxl_base import SDXLBaseConfig, SDXLBaseTask, sdxl_base
from comfyui_ensemble.training.sdxl_task import ignore_padding, noisy_rows
from comfyui_ensemble.training.text_padding import pad_texts
from comfyui_ensemble.training.weights import save_weights
from devtools.coloured_scenes import QUICK, coloured_data, lively_vae, small_sdxl
from devtools.training_checks import learn_by_heart, losses, prepared_batch, slopes

CONFIG = SDXLBaseConfig(**{**QUICK, "learning_rate": 3e-3})


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def small_vae():
    with torch.inference_mode():
        return lively_vae()


@pytest.fixture
def make(small_vae, clip):
    """make(fresh, **settings): the task and its data."""

    def build(fresh: bool = False, **settings: Any) -> tuple[SDXLBaseTask, Any]:
        with torch.inference_mode():
            model = small_sdxl(fresh)
        return sdxl_base(model, small_vae, clip, coloured_data(), replace(CONFIG, **settings))

    return build


def test_it_learns_four_pictures_by_heart(make, tmp_path: Path):
    task, data = make(fresh=True)
    before, after = learn_by_heart(task, data, replace(task.config, steps=80, schedule="constant"), tmp_path)
    assert after < 0.5 * before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_against_differences(make, checkpointing):
    """In float64; prompts of unequal length, whose masks are part of it."""
    task, data = make(gradient_checkpointing=checkpointing)
    batch, positions = prepared_batch(task, data, 3)
    assert len({len(each["text"]) for each in batch}) > 1
    network = task.model.network.double()
    network.dtype = torch.float64
    batch = [{n: v.double() if v.is_floating_point() else v for n, v in each.items()} for each in batch]
    said, found = slopes(task, "model", batch, positions, 1e-4)
    assert found == pytest.approx(said, rel=1e-3)


def test_a_samples_loss_is_its_own(make):
    task, data = make(condition_dropout=0.3)
    batch, positions = prepared_batch(task, data, 6)
    with torch.no_grad():
        together = losses(task, batch, positions)
        alone = torch.cat([losses(task, [sample], [place]) for sample, place in zip(batch, positions, strict=True)])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=2e-5)


def test_min_snr_weighs_the_levels_of_noise(make):
    """The loss of this model, which predicts v, min(SNR, gamma) / (SNR + 1) times."""
    (plain, data), (weighted, _) = make(), make(min_snr_gamma=0.5)
    batch, positions = prepared_batch(plain, data, 6)
    sigma = noisy_rows(plain.model, batch, positions, CONFIG.seed).sigma
    snr = 1 / sigma.square()
    assert snr.min() < 0.5 < snr.max()
    with torch.no_grad():
        found, expected = losses(weighted, batch, positions), losses(plain, batch, positions)
    torch.testing.assert_close(found, snr.clamp(max=0.5) / (snr + 1) * expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(TrainingError, match="min_snr_gamma is -1; it must be at least 0"):
        make(min_snr_gamma=-1)


def test_padding_is_as_if_it_were_not_there(sdxl, make):
    """With the plain model, text by text; padding alone would change them."""
    task, _ = make()
    texts = [torch.randn(1, length, 384, generator=torch.Generator().manual_seed(length)) for length in (3, 9, 5)]
    x, sigma = torch.randn(3, 4, 8, 12), torch.tensor([3.0, 1.0, 0.4])
    padded = pad_texts(texts)

    def predict(x, sigma, texts, patcher=None):
        prompts = [[[text, {"pooled_output": torch.zeros(1, 384)}]] for text in texts]
        with torch.no_grad():
            return task.model.predict(x, sigma, prompts, patcher)

    alone = torch.cat([predict(x[n, None], sigma[n, None], texts[n][None]) for n in range(3)])
    patched = ignore_padding(task.model.patcher, [3, 9, 5])
    torch.testing.assert_close(predict(x, sigma, padded[:, None], patched), alone, rtol=1e-4, atol=1e-4)
    assert (predict(x, sigma, padded[:, None]) - alone).abs().max() > 1e-2
    assert ignore_padding(task.model.patcher, [9, 9]) is task.model.patcher


def test_captions_are_dropped_by_position(make):
    task, data = make(condition_dropout=0.5)
    sample = data.load(data.batch(0, 1)[0])
    empty = len(task.encoders.prompt("").text[0])
    lengths = [len(task.prepare(sample, position)["text"]) for position in range(200)]
    assert lengths == [len(task.prepare(sample, position)["text"]) for position in range(200)]
    assert 70 < sum(length == empty for length in lengths) < 130


def test_pictures_are_told_their_size(make):
    """SDXL's size conditions, as at inference without a word about them."""
    task, _ = make()
    sample = coloured_data(96).load(coloured_data(96).batch(0, 1)[0])
    prepared = task.prepare(sample, 0)
    assert prepared["size"].tolist() == [96, 96]
    x, sigma = prepared["latent"][None], torch.ones(1)
    named = {"width": 96, "height": 96, "crop_w": 0, "crop_h": 0, "target_width": 96, "target_height": 96}
    silent = [[prepared["text"][None], {"pooled_output": prepared["pooled"][None]}]]
    told = [[silent[0][0], {**silent[0][1], **named}]]
    with torch.no_grad():
        found = [task.model.predict(x, sigma, [prompt]) for prompt in (silent, told)]
        other = task.model.predict(x, sigma, [[[told[0][0], {**told[0][1], "width": 64}]]])
    assert torch.equal(*found) and not torch.equal(found[0], other)


def test_the_file_is_a_bare_diffusion_model(sdxl, sdxl_vae, clip, tmp_path: Path):
    """In the names that the host's loaders know; a loaded one predicts as the one under training."""
    task, data = sdxl_base(sdxl, sdxl_vae, clip, coloured_data(), replace(CONFIG, batch_size=4))
    learn_by_heart(task, data, replace(task.config, steps=2), tmp_path / "run")
    (path,) = save_weights(task.weights(), "mine", place=lambda folder: tmp_path / folder)
    assert path.parent.name == "diffusion_models"
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(sdxl.model.diffusion_model.state_dict())
        assert file.get_tensor("out.2.weight").dtype == torch.float32
    with torch.inference_mode():
        loaded = load_tiny_sdxl(path)
    again, _ = sdxl_base(loaded, sdxl_vae, clip, data, task.config)
    batch, positions = prepared_batch(task, data, 2)
    with torch.no_grad():
        found, loaded_again = (losses(each, batch, positions) for each in (task, again))
        untrained = losses(sdxl_base(sdxl, sdxl_vae, clip, data, task.config)[0], batch, positions)
    assert torch.equal(found, loaded_again) and not torch.equal(found, untrained)


def test_a_picture_can_be_drawn_meanwhile(make):
    task, _ = make(picture_every=1)
    picture = task.picture()
    assert picture.shape == (64, 64, 3) and torch.equal(task.picture(), picture)
    assert make()[0].picture() is None


def test_bad_input_is_one_sentence(flux, vae, clip, sdxl, sdxl_vae, sdxl_clip):
    for model, its_vae, its_clip, input_name, sentence in (
        (flux, vae, clip, "model", "it is no SDXL"),
        (sdxl, vae, clip, "vae", "it makes latents of 16 channels"),
        (sdxl, sdxl_vae, sdxl_clip, "clip", "its text is 64 wide, the model reads 384"),
    ):
        with pytest.raises(TrainingError, match=sentence) as caught:
            sdxl_base(model, its_vae, its_clip, coloured_data(), CONFIG)
        assert caught.value.input_name == input_name
