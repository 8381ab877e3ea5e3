"""What a CLIP vision model sees in the cast."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import comfy.utils
import torch
from comfy.clip_model import CLIPVisionModelProjection
from comfy.clip_vision import ClipVisionModel
from comfy.model_management import throw_exception_if_processing_interrupted

from .cast import WHITE, Cast
from .errors import InputError


def check_clip_vision(node: str, clip_vision: ClipVisionModel, width: int, depth: int) -> None:
    """Raise `InputError` where the encoder is not one of `depth` layers of `width`."""
    if not isinstance(clip_vision.model, CLIPVisionModelProjection):
        raise InputError(
            node, "clip_vision", f"it is a {clip_vision.model_type} model; connect the CLIP vision model of the adapter"
        )
    its_width, its_depth = clip_vision.config["hidden_size"], clip_vision.config["num_hidden_layers"]
    if (its_width, its_depth) != (width, depth):
        raise InputError(
            node,
            "clip_vision",
            f"it has {its_depth} layers of width {its_width}, the adapter was trained with {depth} of {width};"
            " connect that CLIP vision model",
        )


def hidden_states(clip_vision: ClipVisionModel, cast: Cast, layers: Sequence[int]) -> torch.Tensor:
    """The hidden states after the chosen layers, counted from 0: (subjects, layers, patches, width)."""
    encoder = copy.copy(clip_vision)  # same weights; the one given stays as it is
    encoder.return_all_hidden_states = True
    progress = comfy.utils.ProgressBar(len(cast.subjects))
    states = []
    for subject in cast.subjects:
        throw_exception_if_processing_interrupted()
        states.append(encoder.encode_image(square(subject.cut_out()))["all_hidden_states"][:, list(layers)])
        progress.update(1)
    return torch.cat(states)


def square(picture: torch.Tensor) -> torch.Tensor:
    """(1, H, W, 3) in the middle of a white square, because CLIP's own centre crop takes heads and feet off."""
    height, width = picture.shape[1:3]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return torch.nn.functional.pad(picture, (0, 0, left, side - width - left, top, side - height - top), value=WHITE)
