"""A mask over the picture on the tokens of an attention layer, whose grid and part of the picture differ from call to call."""

from __future__ import annotations

import torch

from .unet_call import Part, Size


def coverage(mask: torch.Tensor, canvas: Size, part: Part, grid: Size) -> torch.Tensor:
    """How much of every token the mask covers.

    Args:
        mask: (H, W) of any size, stretched over the canvas.
        canvas: (height, width) of the latent.
        part: (y, x, height, width) of the canvas that the tokens show.
        grid: (h, w) tokens.

    Returns:
        (h * w,) float32 in [0, 1], in reading order: means over the token's area.
    """
    y, x, height, width = part
    latent = _mean_over_areas(mask.float(), canvas)[y : y + height, x : x + width]
    return _mean_over_areas(latent, grid).flatten()


def covered_tokens(mask: torch.Tensor, canvas: Size, grid: Size) -> torch.Tensor:
    """The tokens that show the masked subject: at least half covered, or the most covered where none is.

    Args as in `coverage`, for the whole canvas; the mask is not empty. Returns: (M,) indices in reading order, M >= 1.
    """
    covered = coverage(mask, canvas, (0, 0, *canvas), grid)
    return torch.nonzero(covered >= min(0.5, float(covered.max())))[:, 0]


def _mean_over_areas(picture: torch.Tensor, size: Size) -> torch.Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(picture[None, None], size)[0, 0]
