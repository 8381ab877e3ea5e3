"""Losses and noise levels against float64 loops written from the papers, with the host's own sampling in the loop."""

from __future__ import annotations

import math

import comfy.model_sampling
import numpy as np
import pytest
import torch

from comfyui_ensemble.training import objectives
from comfyui_ensemble.training.groups import grouped, in_batch_order

SHAPE = (3, 2, 4, 5)


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    with torch.inference_mode(False), torch.enable_grad():
        yield


class Flow(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
    """As the host puts it together for FLUX."""


class Epsilon(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """As the host puts it together for SDXL."""


class Velocity(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """As the host puts it together for SDXL with v prediction."""


def numbers(seed: int) -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(kind: str, output, x0, noise, sigma) -> list[float]:
    """The squared error of what the network put out, one number at a time."""
    found = []
    for row in range(SHAPE[0]):
        s, total = float(sigma[row]), 0.0
        for o, x, n in zip(*(each[row].flatten().tolist() for each in (output, x0, noise)), strict=True):
            if kind == objectives.FLOW:
                target = n - x
            elif kind == objectives.EPSILON:
                target = n
            else:  # with alpha^2 + std^2 = 1 and std / alpha = s: v = alpha n - std x0
                alpha, std = 1 / math.sqrt(1 + s * s), s / math.sqrt(1 + s * s)
                target = alpha * n - std * x
            total += (o - target) ** 2
        found.append(total / math.prod(SHAPE[1:]))
    return found


@pytest.mark.parametrize(
    "kind, sampling, sigma",
    [
        (objectives.FLOW, Flow, (0.02, 0.5, 1.0)),
        (objectives.EPSILON, Epsilon, (0.03, 1.0, 14.6)),
        (objectives.VELOCITY, Velocity, (0.03, 1.0, 14.6)),
    ],
)
def test_losses_are_those_of_the_papers(kind, sampling, sigma):
    """The network's output goes through the host's own sampling to the denoised picture, and comes back as its loss."""
    host, sigma = sampling(), torch.tensor(sigma, dtype=torch.float64)
    x0, noise, output = numbers(0), numbers(1), numbers(2)
    x = host.noise_scaling(sigma, noise.clone(), x0)
    denoised = host.calculate_denoised(sigma, output, x)
    found = objectives.loss(kind, denoised, x0, sigma)
    np.testing.assert_allclose(found.numpy(), by_hand(kind, output, x0, noise, sigma), rtol=1e-10)


@pytest.mark.parametrize(
    "kind, sigma",
    [
        (objectives.FLOW, (0.02, 0.5, 1.0)),
        (objectives.EPSILON, (0.1, 0.5, 14.6)),
        (objectives.VELOCITY, (0.1, 0.5, 14.6)),
    ],
)
def test_min_snr_is_the_papers(kind, sigma):
    """Weights of an error in x0, in noise and in v as the paper writes them, for a gamma that some levels reach."""
    gamma, found = 5.0, []
    sigmas = torch.tensor(sigma, dtype=torch.float64)
    denoised, x0 = numbers(0), numbers(1)
    own = objectives.loss(kind, denoised, x0, sigmas).tolist()
    for s, loss in zip(sigma, own, strict=True):
        alpha, std = (1 - s, s) if kind == objectives.FLOW else (1 / math.sqrt(1 + s * s), s / math.sqrt(1 + s * s))
        snr = (alpha / std) ** 2
        weight = {
            objectives.FLOW: min(snr, gamma) * s * s,  # of a velocity n - x0, whose error is an s-th of the error in x0
            objectives.EPSILON: min(snr, gamma) / snr if snr else 0.0,
            objectives.VELOCITY: min(snr, gamma) / (snr + 1),
        }[kind]
        found.append(weight * loss)
    said = objectives.min_snr_loss(kind, denoised, x0, sigmas, gamma)
    np.testing.assert_allclose(said.numpy(), found, rtol=1e-10)


@pytest.mark.parametrize("kind", [objectives.FLOW, objectives.EPSILON, objectives.VELOCITY])
def test_losses_are_per_sample_and_in_the_predictions_precision(kind):
    sigma = torch.tensor([0.3, 0.5, 0.9])
    denoised, x0 = numbers(0).float().requires_grad_(), numbers(1)
    together = objectives.loss(kind, denoised, x0, sigma)
    assert together.dtype == torch.float32 and together.shape == (3,)
    for row in range(3):
        part = slice(row, row + 1)
        assert torch.equal(together[part], objectives.loss(kind, denoised[part], x0[part], sigma[part]))
    together[1].backward()
    assert denoised.grad is not None
    assert [bool(row.any()) for row in denoised.grad] == [False, True, False]


@pytest.mark.parametrize("mu", [0.0, 0.5, 1.15])
def test_the_shift_is_the_hosts(mu):
    t = torch.tensor([1e-4, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    expected = [comfy.model_sampling.flux_time_shift(mu, 1.0, float(each)) for each in t]
    np.testing.assert_allclose(objectives.shifted(t, mu).numpy(), expected, rtol=1e-12)


def test_the_shift_grows_with_the_picture():
    assert objectives.shift_of(256) == 0.5 and objectives.shift_of(4096) == 1.15
    assert objectives.shift_of(1024) == pytest.approx(0.63, abs=1e-12)


def test_logit_normal_levels():
    t = objectives.logit_normal(torch.Generator().manual_seed(0), 20_000, 0.3, 0.8).double()
    logits = torch.log(t / (1 - t))
    assert t.min() > 0 and t.max() < 1
    assert float(logits.mean()) == pytest.approx(0.3, abs=0.02) and float(logits.std()) == pytest.approx(0.8, abs=0.02)


def test_flow_levels_are_logit_normal_and_shifted():
    levels = objectives.flow_sigmas(torch.Generator().manual_seed(0), 1000, 1.15)
    plain = objectives.logit_normal(torch.Generator().manual_seed(0), 1000)
    assert torch.equal(levels, objectives.shifted(plain, 1.15)) and (levels > plain).all()
    assert levels.dtype == torch.float32 and levels.min() > 0 and levels.max() < 1


def test_timesteps_are_uniform():
    steps = objectives.uniform_timesteps(torch.Generator().manual_seed(0), 50_000, 10)
    assert torch.bincount(steps, minlength=10).float() == pytest.approx(torch.full((10,), 5000.0), rel=0.06)
    assert steps.min() == 0 and steps.max() == 9


def test_groups_keep_the_batchs_order():
    batch = ["aa", "b", "cc", "d", "eee"]
    groups = grouped(batch, len)
    assert groups == [[0, 2], [1, 3], [4]]
    parts = [torch.tensor([[float(index), 1.0] for index in group]) for group in groups]
    assert in_batch_order(groups, parts)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert grouped([], len) == []
