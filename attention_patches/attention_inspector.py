"""Looks into the attention of one block in one step of a run and writes down what the picture looked at.

The maths is in `attention_maps`. What is looked at are the queries and keys that really reach the host's attention, after
RoPE and after every other patch, whatever the order of the nodes: the host lets `optimized_attention_override` stand in
for its attention function, and ours, put there for the one call that matters, reads and then calls what it stands in
for with the very same tensors. So the picture is the same bit for bit.

Hooks: an OUTER_SAMPLE wrapper notes which prompts carry the layout's references, a DIFFUSION_MODEL wrapper finds their
rows and the step by what the call says (`uuids`, `sigmas`). Nothing outlives a run but its entry in the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .attention_maps import Shares, attention_shares, key_groups
from .dam import KEY as DAM
from .flux_call import FluxCall, note_flux_calls
from .item_spans import SPANS_KEY, Spans
from .layout import LAYOUT_KEY, Grid, Layout, Reference, token_grid
from .recording import Recording
from .reference_positions import KEY as POSITIONS

KEY = "ensemble_attention_inspector"


@dataclass(frozen=True)
class Spot:
    """Where to look: a block as the host names it ("double" or "single", index), and a step, both counted from 0."""

    block_type: str
    block_index: int
    step: int


@dataclass
class Observation:
    """What was seen in one run.

    Attributes:
        spot: where it was looked for.
        steps: of the run.
        canvas: (H, W) of the run's latent in tokens.
        prompts: the item spans of every prompt that carries the layout's references, in order.
        shares: of the prompts that were seen.
        areas: whether a prompt was not looked at because it is for an area alone.
    """

    spot: Spot
    steps: int
    canvas: Grid
    prompts: dict[UUID, Mapping[str, Spans]]
    shares: dict[UUID, Shares] = field(default_factory=dict)
    areas: bool = False

    def first(self) -> Shares | None:
        """What was seen of the first prompt that was seen at all."""
        return next((self.shares[uuid] for uuid in self.prompts if uuid in self.shares), None)


def step_of(sigma: float, schedule: list[float]) -> int:
    """The step that a call at noise level `sigma` belongs to: the last one that begins at this level or above.

    Args:
        schedule: falling noise levels, one more than steps. Samplers also ask between them, and slightly above the first.
    """
    return max(0, sum(level >= sigma * (1 - 1e-5) for level in schedule) - 1)


@dataclass
class Look:
    """The patches of one call.

    Attributes:
        observation: of the run.
        rows: which rows of the call belong to which prompt.
        layout: of the references.
        override: what stood in for the host's attention before.
        img_slice: [text tokens, all tokens] of the block, from its patches to its attention; None elsewhere.
    """

    observation: Observation
    rows: Mapping[UUID, slice]
    layout: Layout
    override: Callable[..., torch.Tensor] | None
    img_slice: list[int] | None = None

    def enter(self, *args: Any, extra_options: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        """`attn1_patch`: changes nothing, knows which block's attention comes next."""
        spot = self.observation.spot
        here = (extra_options["block_type"], extra_options["block_index"]) == (spot.block_type, spot.block_index)
        self.img_slice = extra_options["img_slice"] if here else None
        return {}

    def attend(self, attention: Callable[..., torch.Tensor], q: Any, k: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`optimized_attention_override`: q (B, heads, L, d), k (B, heads, N, d)."""
        # A patch may attend to something of its own before the block does; the block's keys are never fewer than its tokens.
        if self.img_slice is not None and q.ndim == 4 and q.shape[2] == self.img_slice[1] <= k.shape[2]:
            self._observe(q, k, self.img_slice[0], kwargs)
            self.img_slice = None
        if self.override is not None:
            return self.override(attention, q, k, *args, **kwargs)
        return attention(q, k, *args, **kwargs)

    def _observe(self, q: torch.Tensor, k: torch.Tensor, text: int, kwargs: Mapping[str, Any]) -> None:
        options = kwargs["transformer_options"]
        call, dam = FluxCall.of(options), options.get(DAM)
        if call.canvas != self.observation.canvas:
            self.observation.areas = True
            return
        count = call.canvas[0] * call.canvas[1]
        tokens = slice(text, text + count)
        mask = _mask_of_rows(kwargs.get("mask"))
        for uuid, rows in self.rows.items():
            spans = self.observation.prompts[uuid]
            groups, parts = key_groups(text, count, self._references(call, rows.start), spans, k.shape[2])
            seen = [
                attention_shares(
                    q[row, :, tokens],
                    k[row],
                    parts,
                    kwargs.get("scale", q.shape[3] ** -0.5),
                    None if mask is None else _queries(mask[row % len(mask)], tokens),
                    None if dam is None else dam.temperature[row, tokens],
                )
                for row in range(rows.start, rows.stop)
            ]
            shares = torch.stack([with_dam for with_dam, _ in seen]).cpu()
            plain = None if dam is None else torch.stack([plain for _, plain in seen if plain is not None]).cpu()
            self.observation.shares[uuid] = Shares(groups, call.canvas, shares, plain)

    def _references(self, call: FluxCall, row: int) -> list[Reference]:
        """The layout's references and, after them, those that the placement of this row gives to the model once more."""
        references = list(self.layout.references)
        positions = call.carried.get(POSITIONS)
        if positions is not None and positions[row] is not None:
            references += [references[index] for index in positions[row].claimant("subject").copies()]
        return references


def _mask_of_rows(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask as the host's attention takes it, as (1 or B, 1 or heads, 1 or L, N)."""
    if mask is None or mask.ndim == 4:
        return mask
    return mask[None, None] if mask.ndim == 2 else mask[:, None]


def _queries(mask: torch.Tensor, tokens: slice) -> torch.Tensor:
    return mask if mask.shape[1] == 1 else mask[:, tokens]


class AttentionInspector:
    """Looks at one spot of every run of a model."""

    def __init__(self, recording: Recording[Observation], layout: Layout, spot: Spot) -> None:
        self.recording = recording
        self.layout = layout
        self.spot = spot

    def outer_sample(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """OUTER_SAMPLE wrapper: keep this run's observation with the latent it gives."""

        def observed(
            noise: torch.Tensor, latent: Any, sampler: Any, sigmas: torch.Tensor, *rest: Any, **more: Any
        ) -> Any:
            current = self.recording.current
            if current is not None:
                prompts = self._prompts(executor.class_obj.conds)
                current.records.append(Observation(self.spot, len(sigmas) - 1, token_grid(noise), prompts))
            return executor(noise, latent, sampler, sigmas, *rest, **more)

        return self.recording.outer_sample(observed, *args, **kwargs)

    def _prompts(self, conditionings: Mapping[str, list[dict[str, Any]]]) -> dict[UUID, Mapping[str, Spans]]:
        return {
            entry["uuid"]: entry.get(SPANS_KEY) or {}
            for kind, entries in conditionings.items()
            for entry in entries
            if kind != "negative" and self._carries_references(entry)
        }

    def _carries_references(self, entry: Mapping[str, Any]) -> bool:
        grids = tuple(map(token_grid, entry.get("reference_latents") or ()))
        described = entry.get(LAYOUT_KEY, self.layout) == self.layout
        return described and grids[: len(self.layout.grids)] == self.layout.grids

    def look(
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
        """DIFFUSION_MODEL wrapper: let the attention of this call be looked at where it is the one asked for."""
        options = transformer_options or {}
        current = self.recording.current
        if current is not None and ref_latents:
            rows = self._wanted_rows(current.records[0], options, len(x))
            if rows:
                options = self._watched(options, Look(current.records[0], rows, self.layout, None))
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)

    def _wanted_rows(self, observation: Observation, options: Mapping[str, Any], count: int) -> dict[UUID, slice]:
        uuids = options.get("uuids", [])
        wanted = [uuid for uuid in uuids if uuid in observation.prompts and uuid not in observation.shares]
        if not wanted or step_of(float(options["sigmas"][0]), options["sample_sigmas"].tolist()) != self.spot.step:
            return {}
        pictures = count // len(uuids)
        places = {uuid: slice(number * pictures, (number + 1) * pictures) for number, uuid in enumerate(uuids)}
        return {uuid: places[uuid] for uuid in wanted}

    @staticmethod
    def _watched(options: Mapping[str, Any], look: Look) -> dict[str, Any]:
        look.override = options.get("optimized_attention_override")
        patches = options.get("patches", {})
        queries = [*patches.get("attn1_patch", ()), look.enter]
        watched = {**options, "patches": {**patches, "attn1_patch": queries}}
        return {**watched, "optimized_attention_override": look.attend}


def apply_inspector(model: ModelPatcher, layout: Layout, spot: Spot) -> tuple[ModelPatcher, Recording[Observation]]:
    """A clone of `model` whose runs are looked at, and where their observations are kept; several may share a model."""
    recording: Recording[Observation] = Recording()
    inspector = AttentionInspector(recording, layout, spot)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, inspector.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, inspector.look)
    note_flux_calls(patched)
    return patched, recording
