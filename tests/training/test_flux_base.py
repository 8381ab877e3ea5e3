"""The training of a whole FLUX, with the host's own models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch

from comfyui_ensemble.training.config import read_config
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.flux_base import OWN, FluxBase, FluxBaseConfig, flux_base
from comfyui_ensemble.training.flux_task import Absent
from comfyui_ensemble.training.loop import train
from comfyui_ensemble.training.model import TrainableModel
from comfyui_ensemble.training.weights import save_weights
from devtools.block_scenes import BlockScenes
from devtools.training_checks import fresh_flux, learn_by_heart, losses, prepared_batch, slopes

SMALL = FluxBaseConfig(
    batch_size=4,
    learning_rate=1e-3,
    warmup_steps=0,
    ema_decay=0.0,
    precision="fp32",
    augment_references=False,
    condition_dropout=0.0,
    reference_dropout=0.0,
    pose_dropout=0.0,
    picture_steps=3,
    saved_as="fp32",
)


@pytest.fixture(scope="module")
def flux():
    with torch.inference_mode():
        return fresh_flux()


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture
def make(flux, vae, clip):
    """make(**settings): the task and its data, four pictures of one or two blocks."""

    def build(**settings: Any) -> tuple[FluxBase, TrainingData]:
        return flux_base(flux, vae, clip, TrainingData(BlockScenes(size=(48, 48)), 48, 32), replace(SMALL, **settings))

    return build


def test_it_learns_four_pictures_by_heart(make, tmp_path: Path):
    task, data = make()
    before, after = learn_by_heart(task, data, replace(SMALL, steps=30), tmp_path)
    assert after < 0.6 * before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_against_differences(make, checkpointing):
    task, data = make(gradient_checkpointing=checkpointing)
    batch, positions = prepared_batch(task, data, 2)
    said, found = slopes(task, "model", batch, positions, 1e-3)
    assert found == pytest.approx(said, rel=2e-3)


@pytest.mark.parametrize("mode", [OWN, "EURoPE"])
def test_a_samples_loss_is_its_own(make, mode):
    task, data = make(mode=mode, pose_dropout=0.4, reference_dropout=0.4, condition_dropout=0.4)
    batch, positions = prepared_batch(task, data, 8)
    assert len({task.structure(each) for each in batch}) > 2
    together = losses(task, batch, positions)
    alone = torch.cat([losses(task, [sample], [place]) for sample, place in zip(batch, positions, strict=True)])
    torch.testing.assert_close(together, alone, rtol=2e-5, atol=2e-5)


def test_captions_alone_if_wanted(make):
    task, data = make(references=False, pose_maps=False)
    batch, _ = prepared_batch(task, data, 4)
    assert all(sample["layout"].references == () for sample in batch)
    task, data = make()
    batch, _ = prepared_batch(task, data, 4)
    assert {entry.role for sample in batch for entry in sample["layout"].references} == {"subject", "pose"}


def test_the_stock_loader_reads_what_was_trained(make, monkeypatch, tmp_path: Path):
    task, data = make()
    with torch.no_grad():
        for parameter in task.modules()["model"].parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        sample = data.load(data.batch(0, 4)[1])
        trained = task.draw(task.encode(sample, Absent()))
    (path,) = save_weights(task.weights(), "mine", place=lambda folder: tmp_path / folder)
    assert path == tmp_path / "diffusion_models" / "mine.safetensors"
    loaded = comfy.sd.load_diffusion_model(str(path))
    again = FluxBase(TrainableModel(loaded, "frozen"), task.encoders, SMALL)
    with torch.no_grad():
        torch.testing.assert_close(again.draw(again.encode(sample, Absent())), trained, rtol=1e-4, atol=1e-5)


def test_what_is_saved_answers_any_guidance_alike(make, tmp_path: Path):
    """`guidance` is the only one that the training says; what others do to the model is chance."""
    pictures = {}
    for hears in (False, True):
        task, data = make(hears_guidance=hears)
        sample = data.load(data.batch(0, 4)[1])
        (path,) = save_weights(task.weights(), f"hears_{hears}", place=lambda folder: tmp_path / folder)
        model = TrainableModel(comfy.sd.load_diffusion_model(str(path)), "frozen")
        for guidance in (1.0, 3.5):
            again = FluxBase(model, task.encoders, replace(SMALL, picture_guidance=guidance))
            with torch.no_grad():
                pictures[hears, guidance] = again.draw(again.encode(sample, Absent()))
    torch.testing.assert_close(pictures[False, 1.0], pictures[True, 1.0], rtol=1e-4, atol=1e-5)
    assert torch.equal(pictures[False, 1.0], pictures[False, 3.5])
    assert not torch.allclose(pictures[True, 1.0], pictures[True, 3.5], atol=1e-3)


@pytest.mark.parametrize(("saved_as", "matrices"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_size_on_the_disk(make, tmp_path: Path, saved_as, matrices):
    assert FluxBaseConfig().saved_as == "bf16"
    task, data = make()
    (file,) = train(task, data, replace(SMALL, steps=1, saved_as=saved_as), tmp_path).weights.files
    assert {value.dtype for value in file.tensors.values() if value.ndim >= 2} == {matrices}
    assert {value.dtype for value in file.tensors.values() if value.ndim < 2} == {torch.float32}


def test_sample_pictures(make):
    assert make()[0].picture() is None
    assert make(picture_every=5)[0].picture().shape == (48, 96, 3)


def test_settings():
    config = read_config(FluxBaseConfig, '{"mode": "the model\'s own", "references": false}')
    assert (config.mode, config.references, config.pose_maps) == (OWN, False, True)


def test_a_training_from_nothing_begins_silent_and_learns(make, tmp_path: Path):
    task, data = make(anew=True)
    batch, _ = prepared_batch(task, data, 1)
    x, sigma = torch.randn(1, *batch[0]["latent"].shape[1:]), torch.tensor([0.7])
    with torch.no_grad():
        denoised = task.model.predict(x, sigma, task.conditionings(batch, 1.0), task.patched(batch))
    assert torch.allclose(denoised, x)  # x0 = x - sigma v, and v is 0
    before, after = learn_by_heart(task, data, replace(SMALL, steps=30), tmp_path)
    assert after < 0.8 * before
