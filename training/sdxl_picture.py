"""A sample picture of an SDXL under training, through the host's own sampler."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from .sample import TrainingSample
from .sdxl_encoding import SDXLEncoders

STEPS = 20
GUIDANCE = 5.0
SEED = 0


def sample_picture(model: ModelPatcher, encoders: SDXLEncoders, sample: TrainingSample) -> torch.Tensor:
    """What the model makes of a sample's caption at the target's size, always from the same noise: (H, W, 3) in [0, 1]."""
    positive, negative = (
        [[prompt.text, {"pooled_output": prompt.pooled}]]
        for prompt in (encoders.prompt(sample.caption), encoders.prompt(""))
    )
    like = encoders.target(sample.target)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        latent = comfy.sample.sample(
            model,
            noise,
            STEPS,
            GUIDANCE,
            "euler",
            "normal",
            positive,
            negative,
            torch.zeros_like(like),
            disable_pbar=True,
        )
        return encoders.decode(latent)
