"""AnyStory on SDXL (section 3.3): routes each subject to its pixels, and lets it in there.

The maths is in `anystory_router` (whose is every pixel) and `anystory_injection` (Eq. 5-8), one call of the model in
`anystory_call`; this is what hooks it in:

- OUTER_SAMPLE opens a run. What does not change during it, the keys and values of the subjects and what the routers ask of
  every pixel, is computed when first needed, stays on the device, and is freed when the run ends, also by an interrupt.
- CALC_COND_BATCH notes which prompts of the call are negative ones: their order is the guider's business.
- DIFFUSION_MODEL puts a step in front of every attention of that one call (`attention_chain`), and lets the routers see
  the hidden state that enters each cross-attention.

Negative prompts, classifier-free guidance's other side, have no subjects: all their pixels attend to E of the zero image and
to no reference. They are routed all the same, because other patches may ask where a subject is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

from .anystory_call import NO_REFERENCES, Call, Settings
from .anystory_entries import Entries
from .anystory_features import SubjectFeatures
from .anystory_routing import ROUTING_KEY, CallRouting, Grid, RoutingMaps, StepMaps
from .attention_chain import ROUTED, AttentionChain, Step, add_steps
from .call_state import with_call_state
from .unet_layers import AttentionLayer, Block, attention_layers

KEY = "ensemble_anystory"
NEGATIVES_KEY = "ensemble_anystory_negatives"  # transformer option: the numbers in `cond_or_uncond` that are negative
HOST_NEGATIVES = frozenset({1})  # where nobody says so: the host's order is positive, negative


@dataclass
class SamplingRun:
    """One run of the sampler.

    Attributes:
        guider: whose prompts it samples.
        sigmas: (highest, lowest) noise levels at which AnyStory works.
        size: (h, w) of the latent.
        entries: what has been computed for it.
    """

    guider: CFGGuider
    sigmas: tuple[float, float]
    size: Grid
    entries: Entries


class AnyStoryPatch:
    """Routes and injects the subjects of `features`; fills `maps`."""

    def __init__(self, features: SubjectFeatures, settings: Settings, layers: Sequence[AttentionLayer]) -> None:
        self.features = features
        self.settings = settings
        self.layers = tuple(layers)
        routed = tuple(layer.name for layer in layers if layer.context_width is not None)
        self.maps = RoutingMaps(features.names, routed)
        self.run: SamplingRun | None = None

    def outer_sample(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """OUTER_SAMPLE wrapper: opens a run and frees what it held."""
        guider, noise = executor.class_obj, args[0]
        sampling = guider.model_patcher.get_model_object("model_sampling")
        percents = (self.settings.start_percent, self.settings.end_percent)
        highest, lowest = (float(sampling.percent_to_sigma(percent)) for percent in percents)
        self.run = SamplingRun(guider, (highest, lowest), (noise.shape[-2], noise.shape[-1]), Entries(self.features))
        try:
            return self.maps.recording.outer_sample(executor, *args, **kwargs)
        finally:
            self.run = None

    def calc_cond_batch(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: Sequence[Any],
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any],
    ) -> Any:
        """CALC_COND_BATCH wrapper: tells the calls which of their prompts are negative ones."""
        if self.run is not None:
            numbers = _negatives(self.run.guider, conds)
            options = {**model_options.get("transformer_options", {}), NEGATIVES_KEY: numbers}
            model_options = {**model_options, "transformer_options": options}
        return executor(model, conds, x, timestep, model_options)

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
        """DIFFUSION_MODEL wrapper: one call with its steps, and its maps written down."""
        options = transformer_options or {}
        run = self.run
        if run is None or not run.sigmas[1] <= float(options["sigmas"].max()) <= run.sigmas[0]:
            return executor(x, timesteps, context, y, control, options, **kwargs)
        call = self._call(run, len(x), options)
        out = executor(x, timesteps, context, y, control, self._with_steps(call, options), **kwargs)
        self._write_down(run, call, (x.shape[-2], x.shape[-1]), options)
        return out

    def _call(self, run: SamplingRun, rows: int, options: Mapping[str, Any]) -> Call:
        prompts = options["cond_or_uncond"]
        pictures = rows // len(prompts)
        negatives = options.get(NEGATIVES_KEY, HOST_NEGATIVES)
        positive = [number not in negatives for number in prompts for _ in range(pictures)]
        subject_rows = [row for row in range(rows) if positive[row]]
        return Call(self.settings, run.entries, rows, subject_rows, CallRouting(run.entries.entry_of))

    def _with_steps(self, call: Call, options: dict[str, Any]) -> dict[str, Any]:
        cross: dict[Block, Step] = {
            layer.block: partial(call.cross_attention, layer)
            for layer in self.layers
            if layer.context_width is not None
        }
        patches = options.get("patches", {})
        patches = {**patches, "attn2_patch": [*patches.get("attn2_patch", []), call.see]}
        options = with_call_state({**options, "patches": patches, ROUTING_KEY: call.routing}, call)
        patched = add_steps(options, "attn2", cross, ROUTED)
        if self.settings.gamma == NO_REFERENCES or not call.subject_rows:
            return patched
        references: dict[Block, Step] = {
            layer.block: partial(call.self_attention, layer, number, _is_alone(options, layer.block))
            for number, layer in enumerate(self.layers)
            if self.features.hidden[number] is not None
        }
        return add_steps(patched, "attn1", references, ROUTED)

    def _write_down(self, run: SamplingRun, call: Call, size: Grid, options: Mapping[str, Any]) -> None:
        """Maps of whole pictures only: a prompt for an area sees a cutting, which the call does not place."""
        if not call.subject_rows or size != run.size:
            return
        pictures = call.rows // len(options["cond_or_uncond"])
        step = int((options["sample_sigmas"] >= options["sigmas"].max()).sum())
        self.maps.recording.keep(StepMaps(step, size, call.routing.in_cast_order(call.subject_rows, pictures)))


def _negatives(guider: CFGGuider, conds: Sequence[Any]) -> frozenset[int]:
    """The numbers of the negative prompts among those of a call, by the names that the guider gave them.

    Lists that are not the guider's own, those of context windows, follow the host's order.
    """
    names = {id(entries): name for name, entries in guider.conds.items()}
    return frozenset(
        number
        for number, entries in enumerate(conds)
        if ("negative" in names[id(entries)] if id(entries) in names else number in HOST_NEGATIVES)
    )


def _is_alone(options: Mapping[str, Any], block: Block) -> bool:
    """Whether no other pack has replaced a block's self-attention."""
    found = options.get("patches_replace", {}).get("attn1", {})
    there = found.get(block, found.get(block[:2]))
    return there is None or (isinstance(there, AttentionChain) and there.foreign is None)


def apply_anystory(
    model: ModelPatcher, features: SubjectFeatures, settings: Settings
) -> tuple[ModelPatcher, RoutingMaps]:
    """A clone of `model` with the subjects, and the maps that its runs will fill.

    Raises:
        ValueError: the model has subjects already, or is not the one the features' network was made for.
    """
    if model.get_attachment(KEY) is not None:
        raise ValueError("it went through AnyStory before; put all subjects into one cast instead")
    layers = attention_layers(model.model.diffusion_model)
    if layers != features.network.model.injection.layers:
        raise ValueError("its layers are not those the AnyStory weights were made for; connect their base model")
    patched = model.clone()
    patch = AnyStoryPatch(features, settings, layers)
    patched.set_attachments(KEY, patch)
    patched.set_additional_models(KEY, [features.network])
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch.outer_sample)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, patch.calc_cond_batch)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, patch.diffusion_model)
    return patched, patch.maps
