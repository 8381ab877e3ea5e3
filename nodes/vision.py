"""What a CLIP vision model sees in the cast."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.utils
import torch
from comfy.clip_model import CLIPVisionModelProjection
from comfy.clip_vision import ClipVisionModel
from comfy.model_management import throw_exception_if_processing_interrupted

from ..attention_patches.dsm_features import vision_states
from .cast import Cast
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
    progress = comfy.utils.ProgressBar(len(cast.subjects))
    states = []
    for subject in cast.subjects:
        throw_exception_if_processing_interrupted()
        states.append(vision_states(clip_vision, subject.cut_out(), layers))
        progress.update(1)
    return torch.cat(states)
