"""How a picture is shown to a CLIP vision model, at inference as in training.

The host's preprocessing cuts the middle square out of a picture, which takes heads and feet off a standing figure. So a
subject is cut out on white and padded to a square first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd import VAE

WHITE = 1.0  # what fills a cut-out subject's background: UNO-style training references have plain light backgrounds


def cut_out(picture: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The subject on white, (1, H, W, 3); the whole picture where there is no mask (1, H, W)."""
    if mask is None:
        return picture
    share = mask[..., None].to(picture)
    return picture * share + WHITE * (1 - share)


def square(picture: torch.Tensor) -> torch.Tensor:
    """(1, H, W, C) in the middle of a white square, (1, S, S, C)."""
    height, width = picture.shape[1:3]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return torch.nn.functional.pad(picture, (0, 0, left, side - width - left, top, side - height - top), value=WHITE)


@dataclass(frozen=True)
class Picture:
    """A square picture for all encoders.

    Attributes:
        pixels: (1, S, S, 3).
        mask: (1, S, S, 1), 1 where the subject is.
    """

    pixels: torch.Tensor
    mask: torch.Tensor


def subject_picture(picture: torch.Tensor, mask: torch.Tensor) -> Picture:
    """A subject (1, H, W, 3) and its mask (1, H, W), on white, padded to a square."""
    outside = 1 - mask[..., None].to(picture)  # (1, H, W, 1); the padding, white, is outside too
    return Picture(square(cut_out(picture, mask)), 1 - square(outside))


def zero_picture(clip_vision: ClipVisionModel) -> Picture:
    """The zero image, which stands for the background in AnyStory."""
    side = clip_vision.image_size
    return Picture(torch.zeros(1, side, side, 3), torch.zeros(1, side, side, 1))


def clip_features(clip_vision: ClipVisionModel, picture: Picture) -> torch.Tensor:
    """F_clip of AnyStory: penultimate hidden states, (1, P, d_clip)."""
    return clip_vision.encode_image(picture.pixels)["penultimate_hidden_states"]


def picture_latent(vae: VAE, picture: Picture, size: int) -> torch.Tensor:
    """The picture at `size` x `size` pixels as the VAE encodes it, (1, channels, size / 8, size / 8)."""
    pixels = picture.pixels.movedim(-1, 1)  # (1, 3, S, S)
    if pixels.shape[-1] != size:
        pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return vae.encode(pixels.movedim(1, -1))
