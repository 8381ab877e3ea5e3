"""A further prompt on a model, predicted in the same batch as the prompts of whatever sampler or guider runs.

The host's guiders bring their own prompts and know nothing of this one, so here it goes through what theirs go through:
hooks are registered, ControlNets loaded, areas, masks and time ranges resolved, and the model's own conditions encoded. What
belongs to one run travels in that run's model options. The guider's prompts take nothing over from this one, so a step that
does not ask for it is exactly the guider's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher, ModelPatcherDynamic
from comfy.patcher_extension import CallbacksMP, WrappersMP

KEY = "ensemble_extra_prompt"

Conds = list[dict[str, Any]]  # one prompt as the host's samplers hold it
_LIMITS = {"area", "mask", "timestep_start", "timestep_end"}


def coverage(conds: Conds, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor | None:
    """How much a prompt with areas, masks or time ranges says at every place of x: 0 to 1, x's shape; None for all of it."""
    if any("default" in cond for cond in conds) or not any(_LIMITS & cond.keys() for cond in conds):
        return None
    covered = torch.zeros_like(x)
    for cond in conds:
        part = comfy.samplers.get_area_and_mult(cond, x, timestep)
        if part is None:
            continue
        place = covered
        if part.area is not None:
            axes = len(part.area) // 2
            for axis in range(axes):
                place = place.narrow(axis + 2, part.area[axes + axis], part.area[axis])
        place += part.mult
    return covered.clamp(0, 1)


class ExtraPrompt:
    """One conditioning beside those of the guider.

    Args:
        name: how messages call what the artist sees.
        conditioning: as nodes hand it on.
    """

    def __init__(self, name: str, conditioning: Any) -> None:
        self.name = name
        self.conditioning = node_helpers.conditioning_set_values(conditioning, {"prompt_type": "positive"})
        self._key = f"{KEY} {id(self)}"

    def install(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of `model` whose runs carry the prompt; `predict` may then be called in its PREDICT_NOISE wrappers."""
        if model.is_dynamic() and comfy.sampler_helpers.cond_has_hooks(self.conditioning):  # as the host's guiders do
            model = cast(ModelPatcherDynamic, model).get_non_dynamic_delegate()
        carrying = model.clone()
        carrying.add_callback_with_key(CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, KEY, self._register_hooks)
        carrying.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self._prepare_sampling)
        carrying.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self._sampler_sample)
        return carrying

    def predict(
        self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any], seed: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What a PREDICT_NOISE wrapper's executor predicts, and the positive prompt's prediction minus this prompt's.

        The difference is 0 where this prompt says nothing. Both are predictions of the clean latent, of x's shape.
        """
        guider, own = executor.class_obj, model_options[self._key]
        batch = _Batch(guider.conds["positive"], own, x)
        joined = _with_wrapper(model_options, WrappersMP.CALC_COND_BATCH, batch.calc_cond_batch, outermost=False)
        predicted = executor(x, timestep, joined, seed)
        if batch.difference is None:  # the guider works on pieces of the latent, or changed its prompts
            batch.calc_cond_batch(
                comfy.samplers.calc_cond_batch,
                guider.inner_model,
                [batch.positive, None],
                x,
                timestep,
                model_options,
            )
        covered = coverage(own[: len(self.conditioning)], x, timestep)  # the rest are the host's copies for equal areas
        difference: Any = batch.difference
        return predicted, difference if covered is None else difference * covered

    def _conds(self) -> Conds:
        conds = comfy.sampler_helpers.convert_cond(self.conditioning)
        comfy.samplers.preprocess_conds_hooks({self._key: conds})
        return conds

    def _register_hooks(self, model: ModelPatcher, _hooks: Any, target: Any, options: Any, registered: Any) -> None:
        """ON_REGISTER_ALL_HOOK_PATCHES callback, after the hooks of the guider's prompts."""
        for hook in comfy.sampler_helpers.get_hooks_from_cond(self._conds(), comfy.hooks.HookGroup()).hooks:
            if registered.contains(hook):
                continue
            if hook.hook_ref in model.hook_patches:
                registered.add(hook)
                continue
            if model.hook_patches_backup is None:  # what the host goes back to after the run
                model.hook_patches_backup = comfy.model_patcher.create_hook_patches_clone(model.hook_patches)
            hook.add_hook_patches(model, options, target, registered)

    def _prepare_sampling(
        self, executor: Callable[..., Any], model: ModelPatcher, shape: Any, conds: dict[str, Conds], **kwargs: Any
    ) -> Any:
        """PREPARE_SAMPLING wrapper: what the prompt needs beside the model (a ControlNet) is loaded with the rest."""
        own = self._conds()
        _check(self.name, own, conds)
        network, prepared, models = executor(model, shape, {**conds, self._key: own}, **kwargs)
        return network, {name: prompt for name, prompt in prepared.items() if name != self._key}, models

    def _sampler_sample(
        self,
        executor: Callable[..., torch.Tensor],
        guider: comfy.samplers.CFGGuider,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        *args: Any,
    ) -> torch.Tensor:
        """SAMPLER_SAMPLE wrapper: encodes the prompt for the model; the positive hands on its areas, and its ControlNets to a
        prompt that has none, so that the two differ in their words only and fit into one call."""
        options, own = extra_args["model_options"], self._conds()
        comfy.samplers.filter_registered_hooks_on_conds({self._key: own}, options)
        positive = [{**cond, "control_apply_to_uncond": True} for cond in guider.conds["positive"]]
        prompts = {"positive": positive, self._key: own}
        own = comfy.samplers.process_conds(
            guider.inner_model, noise, prompts, noise.device, latent_image, denoise_mask, extra_args["seed"]
        )[self._key]
        extra_args = {**extra_args, "model_options": {**options, self._key: own}}
        try:
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args)
        finally:
            comfy.sampler_helpers.cleanup_models({self._key: own}, [])


class _Batch:
    """Puts the prompt into the batch that computes the positive one, and keeps the difference; for one prediction."""

    def __init__(self, positive: Conds, own: Conds, x: torch.Tensor) -> None:
        self.positive = positive
        self.own = own
        self.x = x
        self.difference: Any = None

    def calc_cond_batch(
        self,
        executor: Callable[..., list[torch.Tensor]],
        model: Any,
        conds: list[Conds | None],
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any],
    ) -> list[torch.Tensor]:
        """CALC_COND_BATCH wrapper, behind those that expect two prompts.

        Other calls (a second one with changed attention, windows of a video) pass untouched.
        """
        place = next((index for index, prompt in enumerate(conds) if prompt is self.positive), None)
        if place is None or x is not self.x or self.difference is not None:
            return executor(model, conds, x, timestep, model_options)
        number = len(conds)
        options = _with_wrapper(model_options, WrappersMP.APPLY_MODEL, _as_positive(number), outermost=True)
        out = executor(model, [*conds, self.own], x, timestep, options)
        self.difference = out[place] - out[number]
        return out[:number]


def _as_positive(number: int) -> Callable[..., torch.Tensor]:
    """APPLY_MODEL wrapper, before those of others: patches know 0 for positive and 1 for negative, and some stumble over 2."""

    def apply_model(
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Any,
        c_crossattn: Any,
        control: Any,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        kinds = [0 if kind == number else kind for kind in transformer_options["cond_or_uncond"]]
        options = {**transformer_options, "cond_or_uncond": kinds}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return apply_model


def _with_wrapper(
    model_options: dict[str, Any], kind: str, wrapper: Callable[..., Any], outermost: bool
) -> dict[str, Any]:
    options = comfy.model_patcher.create_model_options_clone(model_options)
    wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
    there, own = wrappers.get(kind, {}), {f"{KEY} {id(wrapper)}": [wrapper]}
    wrappers[kind] = own | there if outermost else there | own
    return options


def _check(name: str, own: Conds, conds: dict[str, Conds]) -> None:
    if "positive" not in conds:
        raise ValueError(
            f"{name}: this guider has no positive prompt to hold the appearance prompt against; use KSampler or CFG Guider."
        )
    mine, theirs = _widths(own), _widths(conds["positive"])
    if not mine <= theirs:
        raise ValueError(
            f"{name}: the text of the appearance prompt is {max(mine - theirs)} wide, that of the positive prompt"
            f" {max(theirs, default=0)}; encode both with this model's own text encoder."
        )


def _widths(conds: Conds) -> set[int]:
    return {cond["cross_attn"].shape[-1] for cond in conds if "cross_attn" in cond}
