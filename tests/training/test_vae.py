"""The training of an autoencoder."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from comfyui_ensemble.training.config import read_config
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.loop import train
from comfyui_ensemble.training.puppets import PuppetSource
from comfyui_ensemble.training.sample import TrainingSample
from comfyui_ensemble.training.vae import (
    LATENT_FORMATS,
    VAEConfig,
    VAETask,
    fresh_taesd,
    latent_loss,
    load_taesd,
    reconstruction_loss,
)

CPU = torch.device("cpu")
SMALL = {"crop": 16, "latent_noise": 0.0}


@pytest.fixture
def gradients():
    with torch.inference_mode(False), torch.enable_grad():
        yield


def sample(number: int, size: int = 16) -> TrainingSample:
    """Two coloured halves."""
    rng = torch.Generator().manual_seed(number)
    target = torch.rand(1, 2, 3, generator=rng).repeat_interleave(size // 2, dim=1).expand(size, size, 3)
    return TrainingSample(f"sample {number}", target.contiguous(), "", ())


def naive_loss(pixels: np.ndarray, rebuilt: np.ndarray) -> float:
    colours = right = below = 0.0
    channels, height, width = pixels.shape
    error = rebuilt.astype(np.float64) - pixels.astype(np.float64)
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                here = error[channel, y, x]
                colours += abs(here) / (channels * height * width)
                if x + 1 < width:
                    right += abs(error[channel, y, x + 1] - here) / (channels * height * (width - 1))
                if y + 1 < height:
                    below += abs(error[channel, y + 1, x] - here) / (channels * (height - 1) * width)
    return colours + 0.25 * (right + below)


def test_the_loss_is_the_formula():
    pixels, rebuilt = torch.rand(2, 2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = [naive_loss(a.numpy(), b.numpy()) for a, b in zip(pixels, rebuilt, strict=True)]
    assert reconstruction_loss(pixels, rebuilt).tolist() == pytest.approx(expected, rel=1e-5)
    latents = torch.randn(2, 4, 3, 3)
    squares = [(np.mean(each.double().numpy() ** 2) - 1) ** 2 for each in latents]
    assert latent_loss(latents).tolist() == pytest.approx(squares, rel=1e-5)


@pytest.mark.parametrize("channels", [4, 16])
def test_it_learns_four_pictures_and_the_stock_loader_reads_it(gradients, channels):
    task = VAETask(read_config(VAEConfig, {**SMALL, "latent_channels": channels}), CPU)
    batch = [task.prepare(sample(number), number) for number in range(4)]
    optimizer = torch.optim.AdamW([p for m in task.modules().values() for p in m.parameters()], lr=1e-3)
    course = []
    for _ in range(120):
        losses = task.losses(batch, range(4))
        losses["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        course.append(losses["reconstruction"].mean().item())
    assert course[-1] < 0.3 * course[0]

    (file,) = task.weights().files
    vae = comfy.sd.VAE(sd=file.tensors)
    pixels = torch.stack([each["pixels"] for each in batch])
    latents = vae.encode(pixels.permute(0, 2, 3, 1))
    # What the diffusion model sees is the encoder's own output.
    seen = LATENT_FORMATS[channels]().process_in(latents)
    with torch.no_grad():
        assert torch.allclose(seen, task.network.taesd_encoder(pixels), atol=1e-4)
        rebuilt = task.network.taesd_decoder(task.network.taesd_encoder(pixels)).clamp(0, 1)
    assert torch.allclose(vae.decode(latents).permute(0, 3, 1, 2), rebuilt, atol=1e-4)


def test_gradients_are_finite_differences(gradients):
    task = VAETask(read_config(VAEConfig, {**SMALL, "latent_noise": 0.1}), CPU)
    task.network.double()
    batch = [{"pixels": task.prepare(sample(0), 0)["pixels"].double()}]
    names = ("taesd_encoder.0.weight", "taesd_decoder.1.bias", "taesd_decoder.3.conv.0.weight")
    weights = [task.network.get_parameter(name) for name in names]

    def loss() -> torch.Tensor:
        return task.losses(batch, [7])["loss"].sum()

    found = torch.autograd.grad(loss(), weights)
    rng = torch.Generator().manual_seed(3)
    for weight, gradient in zip(weights, found, strict=True):
        direction = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight += step * direction
                sides.append(loss().item())
                weight -= step * direction
        # The picture's half of the loss is float32, as under autocast.
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=2e-2, abs=1e-3)


def test_a_sample_is_the_same_in_any_batch(gradients):
    task = VAETask(read_config(VAEConfig, {"crop": 16, "latent_noise": 0.5}), CPU)
    batch = [task.prepare(sample(number), number) for number in range(3)]
    together = task.losses(batch, [0, 1, 2])["loss"]
    alone = [task.losses([each], [position])["loss"] for position, each in enumerate(batch)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-4)
    assert torch.equal(batch[1]["pixels"], task.prepare(sample(1), 1)["pixels"])
    assert not torch.allclose(task.losses(batch[:1], [0])["loss"], task.losses(batch[:1], [5])["loss"], rtol=1e-6)


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    data = TrainingData(PuppetSource(size=(64, 64), reference_size=32), 64, 32, seed=0)

    def run(folder: str, steps: int) -> dict[str, torch.Tensor]:
        config = read_config(
            VAEConfig, {"crop": 16, "batch_size": 2, "steps": steps, "schedule": "constant", "warmup_steps": 0}
        )
        return train(VAETask(config, CPU), data, config, tmp_path / folder).weights.files[0].tensors

    run("stopped", 2)
    stopped, whole = run("stopped", 4), run("whole", 4)
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"latent_channels": 8}, "latent_channels is 8; choose 16 (FLUX) or 4 (SDXL)"),
        ({"crop": 20}, "crop is 20; choose a multiple of 8"),
        ({"schedule": "cosign"}, "schedule is 'cosign'; choose one of: constant, linear, cosine"),
        ({"latent_noise": -1.0}, "latent_noise is -1.0; it must be at least 0"),
    ],
)
def test_settings_that_will_not_do(change, sentence):
    with pytest.raises(TrainingError) as error:
        read_config(VAEConfig, change)
    assert str(error.value) == sentence


def test_a_picture_smaller_than_the_crop():
    task = VAETask(read_config(VAEConfig, {"crop": 64}), CPU)
    with pytest.raises(TrainingError, match="sample 0 is 16 x 16, smaller than the crop of 64; lower crop"):
        task.prepare(sample(0), 0)


def test_it_begins_with_an_autoencoder_of_other_channels(tmp_path: Path):
    begin = fresh_taesd(16, seed=3).state_dict()
    path = tmp_path / "begin.safetensors"
    save_file({name: value.clone() for name, value in begin.items()}, path)
    task = VAETask(read_config(VAEConfig, {**SMALL, "latent_channels": 4}), CPU, load_taesd(path))
    state = task.network.state_dict()
    same = {
        name for name, value in state.items() if value.shape == begin[name].shape and torch.equal(value, begin[name])
    }
    fresh = set(state) - same
    weights = {name for name in fresh if state[name].ndim == 4}
    assert len(weights) == 2 and all(4 in state[name].shape[:2] for name in weights)
    assert state["vae_scale"] == LATENT_FORMATS[4]().scale_factor


@pytest.mark.parametrize(
    ("content", "said"), [(b"no weights", "cannot be read"), (None, "is no autoencoder of TAESD's architecture")]
)
def test_what_it_cannot_begin_with_is_said(content: bytes | None, said: str, tmp_path: Path):
    path = tmp_path / "begin.safetensors"
    if content is None:
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match=said):
        load_taesd(path)


def test_the_decoder_alone_learns(gradients):
    task = VAETask(read_config(VAEConfig, {**SMALL, "decoder_only": True}), CPU)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    (decoder,) = task.modules().values()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3)
    task.losses([task.prepare(sample(0), 0)], [0])["loss"].sum().backward()
    optimizer.step()
    changed = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("taesd_decoder") for name in changed)
    assert all(value.grad is None for value in task.network.taesd_encoder.parameters())


@pytest.mark.parametrize("channels", [4, 16])
def test_first_weights_let_a_picture_through_blurred(channels):
    """The colours of 8 x 8 pixels, and between them no more than their neighbours have."""
    rng = torch.Generator().manual_seed(0)
    colours = torch.rand(1, 3, 4, 4, generator=rng)
    pixels = colours.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    network = fresh_taesd(channels, seed=0)
    with torch.no_grad():
        latents = network.taesd_encoder(pixels)
        rebuilt = network.taesd_decoder(latents)
    assert torch.allclose(latents[:, :3], 3 * colours - 1.5, atol=1e-5)
    if channels == 16:
        assert latents[:, 3:12].abs().max() < 1e-5  # quarters of one colour differ by nothing
    inside = rebuilt[..., 4:-4, 4:-4]  # the host's convolutions see black beyond the edges
    assert inside.mean() == pytest.approx(colours.mean().item(), abs=0.1)
    assert inside.min() > colours.min() - 0.1 and inside.max() < colours.max() + 0.1
    assert (rebuilt - pixels)[..., 8:-8, 8:-8].abs().mean() < (pixels - pixels.mean()).abs().mean()
