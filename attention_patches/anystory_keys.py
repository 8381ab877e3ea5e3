"""Checkpoints that name their tensors otherwise than this pack does.

The authors of AnyStory published weights for FLUX.1 alone, which is another network (no QFormer, no ReferenceNet, no
routers); no names of the SDXL network that this pack builds are public. So there is no converter for an official file. What
does exist is ReferenceNets: they are U-Nets, and trained outside of ComfyUI they have the names of diffusers.

A further layout is one more `Converter` in `CONVERTERS`; the file's metadata stays this pack's own (`anystory_file`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import comfy.utils
import torch

from .anystory_network import AnyStoryConfig

Weights = Mapping[str, torch.Tensor]
_REFERENCE = "reference_net."


@dataclass(frozen=True)
class Converter:
    """One way of naming.

    Attributes:
        layout: what it is called.
        recognises: whether these tensors are named so; looks at names and shapes alone.
        convert: the same tensors under this pack's names, for a network of the given sizes. What has no place there
            keeps its name, so that the check that follows can name it.
    """

    layout: str
    recognises: Callable[[Weights], bool]
    convert: Callable[[Weights, AnyStoryConfig], dict[str, torch.Tensor]]


def own_names(weights: Weights, config: AnyStoryConfig) -> Weights:
    """The tensors under this pack's names, whichever known layout they come in."""
    for converter in CONVERTERS:
        if converter.recognises(weights):
            weights = converter.convert(weights, config)
    return weights


def _has_diffusers_reference(weights: Weights) -> bool:
    return f"{_REFERENCE}conv_in.weight" in weights


def _from_diffusers_reference(weights: Weights, config: AnyStoryConfig) -> dict[str, torch.Tensor]:
    """Cross-attention that was skipped in training, and left in the file, is left out."""
    names = comfy.utils.unet_to_diffusers(dict(config.unet))  # diffusers' name -> the host's
    converted = {}
    for name, value in weights.items():
        published = name.removeprefix(_REFERENCE) if name.startswith(_REFERENCE) else None
        own = names.get(published, published)
        if own is None:
            converted[name] = value
        elif ".attn2." not in own and not (".transformer_blocks." in own and ".norm2." in own):
            converted[_REFERENCE + own] = value
    return converted


CONVERTERS = (Converter("diffusers' names in the ReferenceNet", _has_diffusers_reference, _from_diffusers_reference),)
