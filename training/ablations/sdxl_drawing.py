"""Pictures of an SDXL that start from a rough one, so that who is where is known."""

from __future__ import annotations

import comfy.sample
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher

from ..encoding import HostEncoders
from ..puppets import Scene
from ..randomness import generator
from ..sdxl_encoding import SDXLEncoders

GUIDANCE = 5.0
DENOISE = 0.7  # share of the noise levels that a picture goes through: of latents of 16 x 16, large shapes of the start remain


def flat_puppets(scene: Scene) -> torch.Tensor:
    """The scene with every puppet as a blot of its mean colour, (H, W, 3) in [0, 1]."""
    picture = scene.picture.astype(np.float32) / 255
    for number in range(len(scene.puppets)):
        mask = scene.mask(number)
        picture[mask] = picture[mask].mean(axis=0)
    return torch.from_numpy(picture)


def draw_from(
    model: ModelPatcher, encoders: SDXLEncoders, start: torch.Tensor, caption: str, seed: int, steps: int
) -> tuple[torch.Tensor, np.ndarray]:
    """What the host's sampler makes of a start (H, W, 3) and a caption: the latent, and the picture (H, W, 3) in [0, 1]."""
    positive, negative = (conditioning(encoders, text) for text in (caption, ""))
    latent = start_latent(encoders, start)
    noise = torch.randn(latent.shape, generator=generator(seed, "picture", 0))
    drawn = comfy.sample.sample(
        model,
        noise,
        steps,
        GUIDANCE,
        "euler",
        "normal",
        positive,
        negative,
        latent,
        denoise=DENOISE,
        disable_pbar=True,
        seed=seed,
    )
    return drawn, encoders.decode(drawn).numpy()


def conditioning(encoders: SDXLEncoders, text: str) -> list[list]:
    """A prompt as the host's samplers take it."""
    prompt = encoders.prompt(text)
    return [[prompt.text, {"pooled_output": prompt.pooled}]]


def start_latent(encoders: HostEncoders, picture: torch.Tensor) -> torch.Tensor:
    """A picture's latent, (1, C, h, w)."""
    return encoders.target(picture)
