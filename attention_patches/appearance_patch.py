"""Brings cached appearances into the self-attention of a sampling run: the hook around `appearance_infusion`.

A DIFFUSION_MODEL wrapper asks the schedule, and where there is something to infuse, gives every cached layer of that one
call a step in front of its attention. All rows of a call are infused, the negative prompt's too: so guidance compares two
pictures of the same subject and goes on to mean the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .anystory_routing import ROUTING_KEY, CallRouting
from .appearance_infusion import CONCATENATED, Infused, Offer, Schedule, infuse
from .appearance_tokens import Appearance, AppearanceError
from .attention_chain import INFUSED, Attend, add_steps
from .infusion_maps import InfusionRecord, InfusionRecording
from .mask_tokens import coverage
from .unet_call import Size, UNetCall, note_unet_calls
from .unet_layers import AttentionLayer

KEY = "ensemble_appearance_infusion"

# Which query tokens an appearance may change and how much of each: (n,) indices and (n,) shares.
Place = tuple[torch.Tensor | None, torch.Tensor | None]


@dataclass(frozen=True)
class Source:
    """An appearance and where it belongs.

    Attributes:
        mask: (H, W) in [0, 1] over the picture; None for all of it.
        subject: its number, from 0, in the routing of the model, which then says where it belongs; None without routing.
    """

    appearance: Appearance
    mask: torch.Tensor | None = None
    subject: int | None = None

    @property
    def placed(self) -> bool:
        return self.mask is not None or self.subject is not None


@dataclass(frozen=True)
class Settings:
    """How strongly and by what similarity; see `appearance_infusion`."""

    schedule: Schedule
    top_k: int = 1
    similarity: str = CONCATENATED


@dataclass
class _Call:
    """One call of the model.

    Attributes:
        moments: for each source the number of the cached timestep nearest to this call's.
        numbers: layer -> (rows, h, w) uint8, see `Infused.number`; of layers whose tokens are the picture's.
    """

    unet: UNetCall
    tau: float
    delta: float
    moments: tuple[int, ...]
    numbers: dict[AttentionLayer, torch.Tensor] = field(default_factory=dict)


class InfusionPatch:
    """Infuses its sources, and writes down where."""

    def __init__(self, sources: Sequence[Source], settings: Settings) -> None:
        self.sources = tuple(sources)
        self.settings = settings
        self.recording = InfusionRecording()
        self._places: dict[Any, Place] = {}  # masks on token grids, for one run

    def outer_sample(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """OUTER_SAMPLE wrapper: one recording and one set of masks a run."""
        try:
            return self.recording.outer_sample(executor, *args, **kwargs)
        finally:
            self._places.clear()

    def diffusion_model(
        self,
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """DIFFUSION_MODEL wrapper: infuse in this call, if the schedule says so."""
        options = transformer_options or {}
        unet = UNetCall.of(options)
        tau, delta = self.settings.schedule.at(unet.progress)
        if delta == 0 or tau > 1:
            return executor(x, timesteps, context, y, control, options, **kwargs)
        networks = [source.appearance.network for source in self.sources]
        call = _Call(unet, tau, delta, tuple(network.nearest_moment(unet.progress) for network in networks))
        steps = {layer.block: partial(self._step, call, layer) for layer in networks[0].layers}
        options = add_steps(options, "attn1", steps, INFUSED)
        out = executor(x, timesteps, context, y, control, options, **kwargs)
        self.recording.keep(InfusionRecord.of(unet, len(self.sources), call.numbers))
        return out

    def _step(
        self,
        call: _Call,
        layer: AttentionLayer,
        attend: Attend,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        extra: dict[str, Any],
    ) -> torch.Tensor:
        base = attend(q, k, v)  # (rows, N, C)
        height, width = extra["activations_shape"][-2:]
        rows = len(call.unet.parts) * call.unet.batch
        whole = q.shape[:2] == (rows, height * width)  # otherwise tokens were merged or put into tiles
        offers = []
        for number, (source, moment) in enumerate(zip(self.sources, call.moments, strict=True)):
            place = self._place(number, call.unet, (height, width), whole, q.device, extra)
            offers.append(Offer(source.appearance.network.tokens(moment, layer), *place))
        infused = self._infuse(base, q, offers, call, extra["n_heads"])
        if whole:
            call.numbers[layer] = infused.number.view(rows, height, width)
        return infused.attention.view(base.shape)

    def _infuse(self, base: torch.Tensor, q: torch.Tensor, offers: Sequence[Offer], call: _Call, heads: int) -> Infused:
        return infuse(
            base.flatten(0, 1),
            q.flatten(0, 1),
            offers,
            heads,
            call.tau,
            call.delta,
            self.settings.top_k,
            self.settings.similarity,
        )

    def _place(
        self, number: int, call: UNetCall, grid: Size, whole: bool, device: torch.device, extra: dict[str, Any]
    ) -> Place:
        source = self.sources[number]
        if not source.placed:
            return None, None
        if not whole:
            raise AppearanceError(
                "Appearance Infusion: another node (HyperTile, a token merger) takes the picture's tokens apart, so that"
                " masks and routing have no place; remove that node, or the masks and the routing."
            )
        rows, share = self._masked(number, call, grid, device)
        if source.subject is None:
            return rows, share
        routing: CallRouting | None = extra.get(ROUTING_KEY)
        owned = None if routing is None else routing.owned(source.subject, grid)  # (rows, N) bool
        if owned is None:  # nobody has said yet whose the tokens are
            return torch.empty(0, dtype=torch.int64, device=device), None
        own = owned.flatten().to(torch.float32)
        return (None, own) if rows is None or share is None else (rows, share * own[rows])

    def _masked(self, number: int, call: UNetCall, grid: Size, device: torch.device) -> Place:
        mask = self.sources[number].mask
        if mask is None:
            return None, None
        key = (number, call.canvas, call.parts, call.batch, grid, device)
        if key not in self._places:
            shares = torch.cat([_on_part(mask, call, part, grid).repeat(call.batch) for part in call.parts])
            rows = torch.nonzero(shares)[:, 0]
            self._places[key] = rows.to(device), shares[rows].to(device)
        return self._places[key]


def _on_part(mask: torch.Tensor, call: UNetCall, part: Any, grid: Size) -> torch.Tensor:
    if part is None:
        raise AppearanceError(
            "Appearance Infusion: the model is shown pieces of the picture whose place is unknown (tiled sampling inside the"
            " model, or a changed size), so that masks have no place; remove that node, or the masks."
        )
    return coverage(mask, call.canvas, part, grid)


def apply_infusion(
    model: ModelPatcher, sources: Sequence[Source], settings: Settings
) -> tuple[ModelPatcher, InfusionRecording]:
    """A clone of `model` that infuses the sources, whose layers must be the model's; an infusion that is there goes first."""
    patched, patch = model.clone(), InfusionPatch(sources, settings)
    held = [*model.get_additional_models_with_key(KEY), *(source.appearance.patcher for source in sources)]
    patched.set_additional_models(KEY, list({id(cache.model): cache for cache in held}.values()))
    note_unet_calls(patched)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, patch.diffusion_model)
    return patched, patch.recording
