"""What a denoiser is trained for: noise, its levels, and losses.

The host's models give the denoised picture D. With clean latents x0, noise n and a noise level s, a model that predicts
something else has said it by D all the same, and its own loss is the squared error of D with a weight:

=================  =====================  =========================  ==============================
model              noised x               predicts                   weight of |D - x0|^2
=================  =====================  =========================  ==============================
flow matching      (1 - s) x0 + s n       u = n - x0                 1 / s^2
epsilon            x0 + s n               n                          1 / s^2
v prediction       x0 + s n               (n - s x0) / sqrt(1+s^2)   (1 + s^2) / s^2
=================  =====================  =========================  ==============================

All of them are means over the elements of a sample. Pure functions of tensors.
"""

from __future__ import annotations

import math

import torch

FLOW, EPSILON, VELOCITY = "flow", "epsilon", "velocity"
# FLUX.1's shift grows with the number of image tokens, through these two points (tokens, mu).
SHIFTS = ((256, 0.5), (4096, 1.15))


def flow_loss(denoised: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Flow matching (Lipman et al., 2023, Eq. 9; Liu et al., 2023, Eq. 1) on the straight path x = (1 - s) x0 + s n.

    |v - (n - x0)|^2 with the model's velocity v = (x - D) / s. As x - x0 = s (n - x0), this is |D - x0|^2 / s^2.

    Args:
        denoised, x0: (B, ...).
        sigma: (B,), in (0, 1].

    Returns:
        (B,), a mean over each sample.
    """
    return _squared_error(denoised, x0) / sigma.to(denoised).square()


def epsilon_loss(denoised: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Noise prediction (Ho et al., 2020, Eq. 14) on x = x0 + s n: |e - n|^2 with e = (x - D) / s, so |D - x0|^2 / s^2.

    Shapes as in `flow_loss`; sigma above 0.
    """
    return _squared_error(denoised, x0) / sigma.to(denoised).square()


def velocity_loss(denoised: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """v prediction (Salimans & Ho, 2022, section 4 and appendix D): |v - (n - s x0) / sqrt(1 + s^2)|^2.

    With D = x / (1 + s^2) - s v / sqrt(1 + s^2) this is |D - x0|^2 (1 + s^2) / s^2. Shapes as in `flow_loss`.
    """
    square = sigma.to(denoised).square()
    return _squared_error(denoised, x0) * (1 + 1 / square)


def min_snr_loss(
    kind: str, denoised: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor, gamma: float
) -> torch.Tensor:
    """Min-SNR weighting (Hang et al., 2023, section 3.4): min(SNR, gamma) |D - x0|^2, whatever the model predicts.

    SNR is the square of the picture's share in x over the noise's. Beside a noise prediction's own loss, levels of little
    noise count less, by gamma / SNR: pictures' finest grain no longer outweighs what they show. Shapes as in `flow_loss`.
    """
    sigma = sigma.to(denoised)
    signal = 1 - sigma if kind == FLOW else 1
    return _squared_error(denoised, x0) * (signal / sigma).square().clamp(max=gamma)


def loss(kind: str, denoised: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The loss of a model of one `kind`: FLOW, EPSILON or VELOCITY."""
    return {FLOW: flow_loss, EPSILON: epsilon_loss, VELOCITY: velocity_loss}[kind](denoised, x0, sigma)


def _squared_error(denoised: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    return (denoised - x0.to(denoised)).square().flatten(1).mean(dim=1)


def shift_of(tokens: int) -> float:
    """mu for a canvas of so many image tokens, on the line through `SHIFTS` (FLUX.1, as published with its sampler)."""
    (small, low), (large, high) = SHIFTS
    return low + (high - low) * (tokens - small) / (large - small)


def shifted(t: torch.Tensor, mu: float) -> torch.Tensor:
    """Esser et al., 2024, Eq. 23 with sqrt(m / n) = e^mu: s = e^mu / (e^mu + 1 / t - 1), which takes (0, 1) to itself."""
    scale = math.exp(mu)
    return scale * t / (1 + (scale - 1) * t)


def logit_normal(generator: torch.Generator, count: int, mean: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    """Esser et al., 2024, Eq. 19: t whose logit is normal, (count,) in (0, 1)."""
    return torch.sigmoid(mean + spread * torch.randn(count, generator=generator, dtype=torch.float64)).to(torch.float32)


def flow_sigmas(generator: torch.Generator, count: int, mu: float) -> torch.Tensor:
    """Noise levels to train flow matching with: logit-normal, then shifted; (count,) float32 in (0, 1)."""
    return shifted(logit_normal(generator, count), mu)


def uniform_timesteps(generator: torch.Generator, count: int, timesteps: int) -> torch.Tensor:
    """Whole timesteps, each equally often (Ho et al., 2020, algorithm 1), counted from 0: (count,) int64."""
    return torch.randint(timesteps, (count,), generator=generator)
