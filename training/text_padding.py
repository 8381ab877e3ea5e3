"""Prompts of unequal length in one forward pass, each as if it stood alone.

A text encoder such as T5 as FLUX.1 reads it pads every prompt to 256 embeddings, which the model attends to like any other.
One that pads nothing, such as MiniLM, gives prompts of many lengths. At inference a prompt has the length it has, so here the
shorter ones of a batch are filled up with zeros that no token of the model may look at: what comes out is, up to rounding,
what each prompt gives on its own. A batch of equal lengths runs without any mask.

Hook: a DIFFUSION_MODEL wrapper makes the mask of a call, which the host's FLUX takes as `attention_mask`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..attention_patches.layout import token_grid

KEY = "ensemble_text_length"


def pad_texts(texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Texts (1, L_i, d) as one tensor (B, longest L, d), filled up with zeros."""
    longest = max(text.shape[1] for text in texts)
    return torch.cat([torch.nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


def padding_mask(lengths: Sequence[int], text: int, others: int, like: torch.Tensor) -> torch.Tensor | None:
    """What to add to the scores of every token: minus infinity where a key is padding; None where nothing is.

    Args:
        lengths: true lengths of the B texts.
        text: L, tokens of the text in the call.
        others: tokens after the text.
        like: a tensor of the device and type of the scores.

    Returns:
        (B, 1, 1, text + others).
    """
    if all(length == text for length in lengths):
        return None
    mask = like.new_zeros(len(lengths), 1, 1, text + others)
    for row, length in enumerate(lengths):
        mask[row, ..., length:text] = -torch.inf
    return mask


def ignore_padding(model: ModelPatcher, lengths: Sequence[int]) -> ModelPatcher:
    """A clone of `model` (a FLUX) for one call whose texts have these lengths; `model` itself where all are equal."""
    if len(set(lengths)) == 1:
        return model
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, partial(_mask_call, tuple(lengths)))
    return patched


def _mask_call(
    lengths: Sequence[int],
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    y: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
    ref_latents: list[torch.Tensor] | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    grids = [token_grid(latent) for latent in (x, *(ref_latents or ()))]
    tokens = sum(height * width for height, width in grids)
    mask = padding_mask(lengths, context.shape[1], tokens, context)
    return executor(
        x, timestep, context, y, guidance, ref_latents, control, transformer_options, **kwargs, attention_mask=mask
    )
