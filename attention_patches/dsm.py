"""DSM, Disentangled Semantic Modulation (ASTRA, section 3.2): identity as offsets on the text.

The network is in `dsm_adapter`. Its trunk is run once a prompt, where the conditioning is made: the global offset
goes into the text embeddings there and then, and the trunk's output travels with the conditioning. At every step the
text stream that enters block b is given dT_b = head_b(trunk): a head is one small matrix, while all offsets of one
FLUX prompt would hold 57 x 512 x 3072 numbers, 179 MB. Heads have no bias, so strength scales the trunk that travels,
and a conditioning without DSM is a trunk of zeros, which lets the host put it into one batch with the others.

Hooks: an OUTER_SAMPLE wrapper hands every conditioning's trunk to the host's batching, a DIFFUSION_MODEL wrapper
reads what arrived and replaces the blocks of that one call. The replacement calls whatever already replaces a block,
no matter which of the two was applied first, and nothing outlives the call.

A conditioning carries, besides its trunk under `KEY`, optionally its item spans under `item_spans.SPANS_KEY`:
``{subject's name: [(start, stop), ...]}``, the tokens of the text embeddings that describe the subject. Whoever
encodes a prompt with known descriptions writes them; `item_mask` turns them into per-item attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.conds import CONDRegular
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .carried import Entry, entries_of, take_along
from .dsm_adapter import DSMAdapter
from .item_spans import Spans

KEY = "ensemble_dsm"


def item_mask(spans: Sequence[Spans], length: int, tokens_per_subject: int) -> torch.Tensor:
    """Which features a word may look at: a subject's description at that subject only, all other words at everybody.

    Args:
        spans: for each subject its description's token ranges [start, stop); empty where it has none.
        length: L, tokens of the text.
        tokens_per_subject: features a subject has.

    Returns:
        (L, S * tokens_per_subject) bool. Words that describe several subjects at once look at all of those.
    """
    owners = torch.zeros(length, len(spans), dtype=torch.bool)
    for subject, ranges in enumerate(spans):
        for start, stop in ranges:
            owners[start:stop, subject] = True
    owners[~owners.any(dim=1)] = True
    return owners.repeat_interleave(tokens_per_subject, dim=1)


def fit_length(trunk: torch.Tensor, length: int) -> torch.Tensor:
    """(B, L, d) -> (B, length, d): text appended after DSM has no offset, text that was cut off loses its own."""
    return torch.nn.functional.pad(trunk, (0, 0, 0, length - trunk.shape[1]))


@dataclass(frozen=True)
class Modulation:
    """What DSM makes of one conditioning.

    Attributes:
        text: E' of Eq. 8, (B, L, d_txt), of the text's own dtype and device.
        trunk: (B, L, d) float32, what the blocks' offsets are made from, on the text's device.
    """

    text: torch.Tensor
    trunk: torch.Tensor


def modulation(
    network: DSMAdapter,
    text: torch.Tensor,
    hidden: torch.Tensor,
    global_strength: float,
    allowed: torch.Tensor | None,
) -> Modulation:
    """Run the trunk and the global head in float32 where the network and `hidden` are; shapes as in `DSMAdapter.trunk`."""
    trunk = network.trunk(text.to(hidden.device, torch.float32), hidden.to(torch.float32), allowed)
    if global_strength != 0:
        text = text + (global_strength * network.global_offset(trunk)).to(text)
    return Modulation(text, trunk.to(text.device))


def modulate(
    adapter: ModelPatcher,
    text: torch.Tensor,
    hidden: torch.Tensor,
    global_strength: float,
    allowed: torch.Tensor | None,
) -> Modulation:
    """As `modulation`, on the adapter's own device, whatever that of text and hidden states is."""
    comfy.model_management.load_models_gpu([adapter])
    device = adapter.load_device
    allowed = None if allowed is None else allowed.to(device)
    return modulation(adapter.model, text, hidden.to(device), global_strength, allowed)


class DSMPatch:
    """Brings the trunks of a run's conditionings to the blocks."""

    def __init__(self, adapter: DSMAdapter) -> None:
        self.adapter = adapter

    def hand_over(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """OUTER_SAMPLE wrapper: every conditioning of this run takes its trunk along, so that the host batches them."""
        entries = entries_of(executor.class_obj)
        if any(KEY in entry for entry in entries):
            for entry in entries:
                take_along(entry, KEY, CONDRegular(self._trunk_of(entry)))
        return executor(*args, **kwargs)

    def _trunk_of(self, entry: Entry) -> torch.Tensor:
        text = entry["cross_attn"]  # (B, L, d_txt)
        trunk = entry.get(KEY)
        if trunk is None:
            return torch.zeros((*text.shape[:2], self.adapter.config.width), device=text.device)
        if trunk.shape[2] != self.adapter.config.width:
            raise ValueError("DSM: the prompt went through another DSM adapter than the model; use one for both.")
        return fit_length(trunk.to(text.device), text.shape[1])

    def add_offsets(
        self,
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
        """DIFFUSION_MODEL wrapper: give this call's rows the offsets of the trunks that came with them."""
        trunk = kwargs.pop(KEY, None)  # (B, L, d) in the model's dtype, on its device
        options = transformer_options or {}
        if trunk is not None:
            if trunk.shape[1] != context.shape[1]:
                raise ValueError(
                    f"DSM: this model pads the prompt from {trunk.shape[1]} to {context.shape[1]} tokens,"
                    " which DSM cannot follow."
                )
            options = self._with_replaced_blocks(options, trunk)
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)

    def _with_replaced_blocks(self, options: Mapping[str, Any], trunk: torch.Tensor) -> dict[str, Any]:
        replaced = options.get("patches_replace", {})
        blocks = dict(replaced.get("dit", {}))
        for kind, heads in (("double_block", self.adapter.double_heads), ("single_block", self.adapter.single_heads)):
            for index, head in enumerate(heads):
                blocks[kind, index] = OffsetBlock(head, trunk, blocks.get((kind, index)))
        return {**options, "patches_replace": {**replaced, "dit": blocks}}


@dataclass(frozen=True)
class OffsetBlock:
    """A block replacement of one call: adds head(trunk) to the text stream, then runs the block.

    Attributes:
        head: (d_model, d) matrix of this block.
        trunk: (B, L, d).
        earlier: the replacement that was there, to be run in the block's place.
    """

    head: torch.nn.Module
    trunk: torch.Tensor
    earlier: Callable[..., dict[str, Any]] | None

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        # Never in place: the stream may be held by whoever called, a checkpointed training step for one.
        offset = self.head(self.trunk)  # (B, L, d_model)
        if "txt" in args:  # a double block: the text has a stream of its own
            args = {**args, "txt": args["txt"] + offset}
        else:  # a single block: (B, L + image tokens, d_model), text first
            length = offset.shape[1]
            args = {**args, "img": torch.cat((args["img"][:, :length] + offset, args["img"][:, length:]), dim=1)}
        return self.earlier(args, extra) if self.earlier is not None else extra["original_block"](args)


def apply_dsm(model: ModelPatcher, adapter: ModelPatcher) -> ModelPatcher:
    """A clone of `model` that carries the adapter and adds its offsets; the model itself where it already does.

    Raises:
        ValueError: the model carries another adapter.
    """
    held = model.get_additional_models_with_key(KEY)
    if held:
        if not held[0].is_clone(adapter):
            raise ValueError("it already carries another DSM adapter; use one adapter for all prompts of a model")
        return model
    patched = model.clone()
    patched.set_additional_models(KEY, [adapter])
    patch = DSMPatch(adapter.model)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch.hand_over)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, patch.add_offsets)
    return patched
