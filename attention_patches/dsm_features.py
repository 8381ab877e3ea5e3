"""What a CLIP vision model sees in pictures: V of DSM's Eq. 7, the same at inference as in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from comfy.clip_vision import ClipVisionModel

from ..models_info.vision_input import square


def vision_states(clip_vision: ClipVisionModel, picture: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """The hidden states of a cut-out subject (1, H, W, 3) after the chosen layers, counted from 0: (1, layers, patches, width)."""
    encoder = copy.copy(clip_vision)  # same weights; the one given stays as it is
    encoder.return_all_hidden_states = True
    return encoder.encode_image(square(picture))["all_hidden_states"][:, list(layers)]
