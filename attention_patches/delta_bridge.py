"""Delta-Bridge (SeAl): what the text wants changed about the appearance, as a correction of classifier-free guidance.

Of one noisy latent z, with the prompt of the picture c_gen and the prompt that describes the appearance picture c_app:

- g_gen = eps(z, c_gen) - eps(z, 0) and g_app = eps(z, c_app) - eps(z, 0)
- D = g_gen - g_app = eps(z, c_gen) - eps(z, c_app)
- D_lp = D after n rounds of average pooling (kernel 3, stride 1, reflect padding): colour and shape pass, texture stays
- eps = eps(z, 0) + w g_gen + lambda(progress) D_lp, where lambda falls to 0 at `end_percent`

The host hands over predictions of the clean latent, x0, instead of eps. Whatever the network predicts (eps, v, a flow's
velocity or x0 itself), x0 = a(sigma) z + b(sigma) prediction, with one number a and b for the whole latent. The formula's
weights on the predictions sum to 1 (those of D to 0), and D -> D_lp is linear, so the formula holds for all of them or for
none: it is the same picture for every kind of model.

eps(z, 0) cancels out in D, so nothing more is needed where the host leaves the negative prompt away (cfg 1). The correction
comes after everything else that changes the guidance (rescaling, perturbed attention, ...), in whatever order it was
applied. Several bridges on one model add up.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .extra_prompt import ExtraPrompt
from .schedule import sampling_progress

NAME = "Delta-Bridge"
KEY = "ensemble_delta_bridge"

COSINE, LINEAR, CONSTANT = "cosine", "linear", "constant"
SCHEDULES = (COSINE, LINEAR, CONSTANT)


def low_pass(delta: torch.Tensor, rounds: int) -> torch.Tensor:
    """D_lp: average pooling over the last two axes of (..., H, W), kernel 3, stride 1, reflect padding, `rounds` times.

    An axis of length 1 has nothing to reflect and stays as it is.
    """
    height, width = delta.shape[-2:]
    tall, wide = int(height > 1), int(width > 1)
    smooth = delta.reshape(-1, height, width)
    for _ in range(rounds):
        padded = torch.nn.functional.pad(smooth, (wide, wide, tall, tall), mode="reflect")
        smooth = torch.nn.functional.avg_pool2d(padded, (1 + 2 * tall, 1 + 2 * wide), stride=1)
    return smooth.reshape(delta.shape)


def fade(fraction: float, schedule: str) -> float:
    """lambda / strength at a fraction of the way to `end_percent`: from 1 down to 0, or "constant", 1 throughout."""
    fraction = min(fraction, 1.0)
    if schedule == CONSTANT:
        return 1.0
    return 1.0 - fraction if schedule == LINEAR else (1.0 + math.cos(math.pi * fraction)) / 2


def bridge(guided: torch.Tensor, delta: torch.Tensor, strength: float, rounds: int) -> torch.Tensor:
    """(eps(z, 0) + w g_gen) + lambda D_lp, of predictions of any one kind, (B, C, ..., H, W) each."""
    return torch.add(guided, low_pass(delta, rounds), alpha=strength)


class DeltaBridge:
    """Corrects every prediction of a guider while lambda is above 0; otherwise the prediction is the guider's own.

    Args:
        appearance: c_app.
        strength: lambda at the start of the run, on the scale of cfg.
        end_percent: where lambda has fallen to 0.
        rounds: n.
        schedule: one of `SCHEDULES`.
    """

    def __init__(
        self, appearance: ExtraPrompt, strength: float, end_percent: float, rounds: int, schedule: str
    ) -> None:
        self.appearance = appearance
        self.strength = strength
        self.end_percent = end_percent
        self.rounds = rounds
        self.schedule = schedule

    def predict_noise(
        self,
        executor: Any,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper."""
        strength = self._strength(executor.class_obj.inner_model.model_sampling, float(timestep[0]))
        if strength == 0:
            return executor(x, timestep, model_options, seed)
        if x.ndim < 4:
            raise ValueError(
                f"{NAME}: it smooths pictures, and these latents are none (shape {tuple(x.shape)}); use it with a model"
                " for images or video."
            )
        guided, delta = self.appearance.predict(executor, x, timestep, model_options, seed)
        return bridge(guided, delta, strength, self.rounds)

    def _strength(self, sampling: Any, sigma: float) -> float:
        if sigma <= sampling.percent_to_sigma(self.end_percent):
            return 0.0
        return self.strength * fade(sampling_progress(sampling, sigma) / self.end_percent, self.schedule)


def apply_delta_bridge(
    model: ModelPatcher,
    appearance: Any,
    strength: float,
    end_percent: float,
    rounds: int,
    schedule: str = COSINE,
) -> ModelPatcher:
    """A clone of `model` under which every sampler and guider is corrected; `model` itself where none ever would be."""
    if strength == 0 or end_percent == 0:
        return model
    prompt = ExtraPrompt(NAME, appearance)
    patched = prompt.install(model)
    corrected = DeltaBridge(prompt, strength, end_percent, rounds, schedule)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, corrected.predict_noise)
    return patched
