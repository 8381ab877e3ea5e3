"""Masks from a SAM: of what a box or points show, or of the subject of a picture.

SAM says nothing about which of the many things in a picture is its subject. Without a prompt it is asked at a grid of
points, and of the masks it is sure about the one is taken that covers most of the picture's middle and least of its border:
a part of the subject covers less of the middle, the background more of the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher

# What the library's normalisation expects: ImageNet's mean and deviation of a channel in 0..255.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

POINTS_A_SIDE = 8
POINTS_AT_ONCE = 16
# How sure SAM must be of a subject: its own estimate of the mask's overlap with the truth, and the overlap of the mask with
# itself under a logit threshold one higher and one lower. A little below what the library's automatic generator asks (0.88,
# 0.95), because here one mask is enough and its place decides.
MIN_QUALITY = 0.8
MIN_STABILITY = 0.9
SPECK = 0.02  # of the largest island's area
MIDDLE = 0.25  # standard deviation of the middle's weight, in picture sides


@dataclass(frozen=True)
class Seen:
    """A picture as SAM sees it.

    Attributes:
        features: (1, width, grid, grid) float32 on the model's device.
        size: height and width of the picture.
        fitted: height and width at which it was looked at, the longer one SAM's own size.
    """

    features: torch.Tensor
    size: tuple[int, int]
    fitted: tuple[int, int]


def look_at(sam: ModelPatcher, picture: torch.Tensor) -> Seen:
    """Run the image encoder on a picture (H, W, 3) in [0, 1].

    Raises:
        ValueError: it is so narrow that nothing of it would be left at SAM's size.
    """
    network: Any = sam.model
    side = network.config.encoder.image_size
    transform = _transform(side)
    size = (picture.shape[0], picture.shape[1])
    fitted = transform.get_preprocess_shape(*size, side)
    if min(fitted) < 1:
        raise ValueError(f"a picture of {size[1]} x {size[0]} pixels is too narrow for SAM; crop it")
    pixels = picture.clamp(0, 1).mul(255).round().to(device="cpu", dtype=torch.uint8).numpy()
    resized = torch.from_numpy(transform.apply_image(pixels)).to(sam.load_device)  # (h, w, 3)
    mean, deviation = (resized.new_tensor(values, dtype=torch.float32) for values in (PIXEL_MEAN, PIXEL_STD))
    normal = ((resized - mean) / deviation).movedim(-1, 0)[None]
    square = torch.nn.functional.pad(normal, (0, side - fitted[1], 0, side - fitted[0]))
    square = square.to(network.dtype)
    comfy.model_management.load_models_gpu([sam], memory_required=_encoder_memory(network))
    return Seen(network.image_encoder(square).float(), size, fitted)


def _encoder_memory(network: Any) -> int:
    """Bytes that the encoder needs besides its weights: the widest moment is an MLP, or attention with distances."""
    config = network.config.encoder
    tokens = config.grid**2
    heads = config.width // config.head_width
    wide = heads * (config.head_width + 2 * config.grid)
    return tokens * (2 * config.width + max(2 * config.mlp_width, 5 * wide)) * network.dtype.itemsize


def prompted_logits(
    sam: ModelPatcher,
    seen: Seen,
    box: tuple[float, float, float, float] | None = None,
    points: list[tuple[float, float]] | None = None,
    not_points: list[tuple[float, float]] | None = None,
) -> torch.Tensor:
    """What one box and points show, at the picture's size.

    Args:
        box: left, top, right, bottom in pixels.
        points: x, y in pixels, on the subject.
        not_points: likewise, not on it.

    Returns:
        (H, W) float32, above 0 where the subject is. A single point is ambiguous: of the masks that SAM has for it, it is
        the one that SAM takes to be best.
    """
    network: Any = sam.model
    transform = _transform(network.config.encoder.image_size)
    device = seen.features.device

    def fitted(values: Any) -> torch.Tensor:
        coordinates = transform.apply_coords(np.asarray(values, dtype=np.float64).reshape(-1, 2), seen.size)
        return torch.from_numpy(coordinates).to(device=device, dtype=torch.float32)

    marks = [*(points or []), *(not_points or [])]
    labels = torch.tensor([[1] * len(points or []) + [0] * len(not_points or [])], dtype=torch.int32, device=device)
    logits, quality = network.decode(
        seen.features,
        (fitted(marks)[None], labels) if marks else None,
        None if box is None else fitted(box).reshape(1, 4),
        several=box is None and len(marks) == 1,
    )
    best = int(quality[0].argmax())
    return _at_picture_size(logits[:, best : best + 1], network, seen)


def subject_mask(sam: ModelPatcher, seen: Seen) -> torch.Tensor | None:
    """The picture's subject, (H, W) bool on the CPU; None where SAM is not sure of anything."""
    network: Any = sam.model
    height, width = seen.fitted
    side = (torch.arange(POINTS_A_SIDE, device=seen.features.device) + 0.5) / POINTS_A_SIDE
    grid = torch.cartesian_prod(side * width, side * height)[:, None]  # (points, 1, 2)
    best, best_score = None, 0.0
    for points in grid.split(POINTS_AT_ONCE):
        comfy.model_management.throw_exception_if_processing_interrupted()
        labels = torch.ones(points.shape[:2], dtype=torch.int32, device=points.device)
        logits, quality = network.decode(seen.features, (points, labels), None, several=True)
        logits = logits.flatten(0, 1)
        scores = subject_scores(_within(logits, network, seen), quality.flatten())
        number = int(scores.argmax())
        if float(scores[number]) > best_score:
            best, best_score = logits[number].clone(), float(scores[number])
    return None if best is None else without_specks(_at_picture_size(best[None, None], network, seen) > 0)


def without_specks(mask: torch.Tensor) -> torch.Tensor:
    """A mask (H, W) without islands far smaller than its largest, which would widen the box around it."""
    from scipy import ndimage  # slow to import

    labelled: Any = ndimage.label(mask.cpu().numpy())
    parts, count = torch.from_numpy(labelled[0]).long(), labelled[1]
    areas = torch.bincount(parts.flatten(), minlength=count + 1)
    areas[0] = 0  # of what is not in the mask
    return (areas >= max(1.0, SPECK * float(areas.max())))[parts]


def subject_scores(logits: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """How much each mask looks like the subject of the picture, from 0 to 1; 0 where SAM is not sure of it.

    Args:
        logits: (N, h, w), quality: (N,).

    Returns:
        (N,) share of the picture's middle that the mask covers, times the share of its border that it leaves free.
    """
    from segment_anything.utils.amg import calculate_stability_score  # pyright: ignore[reportMissingImports]

    masks = logits > 0
    height, width = logits.shape[1:]
    middle = _bell(height, logits.device)[:, None] * _bell(width, logits.device)
    covered = (masks * middle).sum(dim=(1, 2)) / middle.sum()
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], dim=1).float().mean(dim=1)
    stability = calculate_stability_score(logits, 0.0, 1.0).nan_to_num()
    sure = (quality >= MIN_QUALITY) & (stability >= MIN_STABILITY)
    return torch.where(sure, covered * (1 - border), 0.0)


def _bell(length: int, device: torch.device) -> torch.Tensor:
    places = (torch.arange(length, device=device) + 0.5) / length - 0.5
    return torch.exp(-0.5 * (places / MIDDLE) ** 2)


def _within(logits: torch.Tensor, network: Any, seen: Seen) -> torch.Tensor:
    """The decoder's masks (N, m, m) without what stands for the padding of a picture that is not square."""
    share = logits.shape[-1] / network.config.encoder.image_size
    height, width = (max(1, round(side * share)) for side in seen.fitted)
    return logits[:, :height, :width]


def _at_picture_size(logits: torch.Tensor, network: Any, seen: Seen) -> torch.Tensor:
    """The decoder's logits (1, 1, m, m) as (H, W)."""
    side = network.config.encoder.image_size
    whole = torch.nn.functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    inner = whole[..., : seen.fitted[0], : seen.fitted[1]]
    return torch.nn.functional.interpolate(inner, seen.size, mode="bilinear", align_corners=False)[0, 0]


def _transform(side: int) -> Any:
    """The library's own fitting of pictures and coordinates to SAM's size."""
    from segment_anything.utils.transforms import ResizeLongestSide  # pyright: ignore[reportMissingImports]

    return ResizeLongestSide(side)
