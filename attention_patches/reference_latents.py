"""Pictures as FLUX's reference latents, and what they are as a layout: the same at inference as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.utils
import node_helpers
import torch
from comfy.sd import VAE

from .layout import LAYOUT_KEY, PATCH_SIZE, Layout, Reference


def encode_reference(vae: VAE, picture: torch.Tensor, longer_side: int | None = None) -> torch.Tensor:
    """The latent (1, C, h, w) of a picture (1, H, W, 3) of whole tokens.

    Args:
        longer_side: in pixels, of what is encoded; None to keep the picture's own.
    """
    compression: Any = vae.spacial_compression_encode()  # one number for pictures; the host types it for video too
    return vae.encode(_resize(picture, longer_side or max(picture.shape[1:3]), PATCH_SIZE * compression))


def shows_pose(pose_image: torch.Tensor) -> bool:
    """Whether anybody is drawn on a pose map (..., channels); an all-black one is none."""
    return bool((pose_image[..., :3] > 0).any())


def with_references(
    conditioning: Any, latents: Sequence[torch.Tensor], references: Sequence[Reference]
) -> tuple[Any, Layout]:
    """A copy of the conditioning that carries reference latents and their layout, and that layout.

    Args:
        latents: of the subjects in cast order, then of the pose map.
        references: what each of them is.
    """
    layout = Layout(tuple(references))
    if not latents:
        return conditioning, layout
    carried = {"reference_latents": list(latents), LAYOUT_KEY: layout}
    return node_helpers.conditioning_set_values(conditioning, carried), layout


def _resize(picture: torch.Tensor, longer_side: int, step: int) -> torch.Tensor:
    """(1, H, W, 3) at its own aspect ratio, the longer side as asked, both sides whole tokens of `step` pixels."""
    height, width = picture.shape[1:3]
    scale = longer_side / max(height, width)
    new_width, new_height = (max(step, round(side * scale / step) * step) for side in (width, height))
    if (new_width, new_height) == (width, height):
        return picture
    resized = comfy.utils.common_upscale(picture.movedim(-1, 1), new_width, new_height, "lanczos", "disabled")
    return resized.movedim(1, -1)
