"""One call of a model under training, through everything that the host's sampler would run it through.

Every sample is a row with a conditioning of its own, as several prompts of a picture are for the host: `cond_or_uncond` and
`uuids` have one entry a row. The wrappers OUTER_SAMPLE, CALC_COND_BATCH, APPLY_MODEL and DIFFUSION_MODEL run as in sampling.
Those that stand around guidance and the sampler's steps (PREDICT_NOISE, SAMPLER_SAMPLE) do not, for there is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_basic, attention_pytorch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from .checkpointing import host_in_training

ATTENTION = "optimized_attention_override"
MOST_SCORES = 1 << 18  # of one head that are held in memory rather than computed again
_NOT_TRAINED = {"area": "an area", "mask": "a mask", "control": "a ControlNet", "gligen": "GLIGEN", "hooks": "hooks"}
_SAMPLER = comfy.samplers.sampler_object("euler")


def predict(patcher: ModelPatcher, x: Tensor, sigma: Tensor, conditionings: Sequence[Any]) -> Tensor:
    """The denoised latents of one call; arguments as in `TrainableModel.predict`."""
    if len(conditionings) != len(x):
        raise ValueError(f"there are {len(conditionings)} conditionings for {len(x)} samples; give every sample one")
    _load(patcher)
    device = patcher.load_device
    guider = TrainingGuider(patcher)
    guider.inner_set_conds({"positive": [_only_entry(conditioning) for conditioning in conditionings]})
    with comfy.model_management.cuda_device_context(device), host_in_training():
        return guider.call(_plain(x.to(device)), _plain(sigma.to(device, torch.float32)))


class TrainingGuider(comfy.samplers.CFGGuider):
    """The guider of one call; `conds` holds the rows' entries under "positive", where wrappers look for them."""

    denoised: Tensor

    def call(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What `CFGGuider.sample` does, for one call instead of a schedule."""
        self.conds = self.original_conds
        self.model_options = comfy.model_patcher.create_model_options_clone(self.model_patcher.model_options)
        comfy.sampler_helpers.prepare_model_patcher(self.model_patcher, {}, self.model_options)
        wrappers = self._wrappers(WrappersMP.OUTER_SAMPLE)
        outer = WrapperExecutor.new_class_executor(self._run, self, wrappers)
        levels = torch.cat((sigma.detach().unique().flip(0), sigma.new_zeros(1)))
        self.sigma = sigma
        shapes = [tuple(x.shape)]
        outer.execute(x, torch.zeros_like(x), _SAMPLER, levels, None, None, True, None, latent_shapes=shapes)
        return self.denoised

    def _wrappers(self, kind: str) -> list[Any]:
        return comfy.patcher_extension.get_all_wrappers(kind, self.model_options, is_model_options=True)

    def _run(self, x: Tensor, latent: Tensor, sampler: Any, levels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The host's `outer_sample` and `inner_sample`."""
        self.inner_model = self.model_patcher.model
        self.model_patcher.pre_run()
        try:
            conds = {name: list(entries) for name, entries in self.conds.items()}
            for name, entries in conds.items():
                conds[name] = comfy.samplers.encode_model_conds(
                    self.inner_model.extra_conds,
                    entries,
                    x[:1].detach(),
                    x.device,
                    name,
                    latent_image=latent[:1],
                    **kwargs,
                )
            self.conds = conds
            options = self.model_options["transformer_options"]
            options["sample_sigmas"] = levels
            # Not every attention function of the host has gradients, and the CPU's usual one is slow with them.
            options.setdefault(ATTENTION, training_attention)
            calc = WrapperExecutor.new_executor(_rows_in_one_call, self._wrappers(WrappersMP.CALC_COND_BATCH))
            rows = [conds["positive"]]
            self.denoised = calc.execute(self.inner_model, rows, x, self.sigma, self.model_options)[0]
        finally:
            self.model_patcher.cleanup()
        # Wrappers may keep what a run resulted in, and the graph of a step must not live on there.
        return self.denoised.detach()


def training_attention(function: Any, q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What stands for the host's attention `function`, unless somebody has put something else there."""
    # On a CPU the fused kernel's way back is two to five times slower in half precision than plain products.
    small = q.shape[-2] * k.shape[-2] <= MOST_SCORES
    plain = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16) and small
    return (attention_basic if plain else attention_pytorch)(q, k, *args, **kwargs)


def _rows_in_one_call(
    model: Any, conds: Sequence[Sequence[dict[str, Any]]], x: Tensor, sigma: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """The host's `calc_cond_batch` where entry i is for row i of x alone."""
    model.current_patcher.prepare_state(sigma, model_options)
    entries = conds[0]
    rows = [
        {key: value.process_cond(batch_size=1, area=None) for key, value in entry["model_conds"].items()}
        for entry in entries
    ]
    for row in rows[1:]:
        if not comfy.samplers.cond_equal_size(rows[0], row):
            raise ValueError("the samples of one call have prompts or references of different sizes; group them first")
    call = comfy.samplers.cond_cat(rows)
    options = comfy.patcher_extension.merge_nested_dicts(
        model.current_patcher.apply_hooks(hooks=None), model_options["transformer_options"], copy_dict1=False
    )
    options["cond_or_uncond"] = [0] * len(rows)
    options["uuids"] = [entry["uuid"] for entry in entries]
    options["sigmas"] = sigma
    call["transformer_options"] = options
    if "model_function_wrapper" in model_options:
        arguments = {"input": x, "timestep": sigma, "c": call, "cond_or_uncond": options["cond_or_uncond"]}
        return [model_options["model_function_wrapper"](model.apply_model, arguments)]
    return [model.apply_model(x, sigma, **call)]


def _only_entry(conditioning: Any) -> Any:
    if len(conditioning) != 1:
        raise ValueError(f"a sample has a conditioning of {len(conditioning)} entries; give it one")
    found = [word for key, word in _NOT_TRAINED.items() if conditioning[0][1].get(key) is not None]
    if found:
        raise ValueError(f"a sample's conditioning carries {found[0]}, which cannot be trained with; leave it out")
    return conditioning[0]


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that autograd accepts; those made under inference mode are copied."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def _load(patcher: ModelPatcher) -> None:
    """Have the model and what rides with it on its device, whole, and let nobody send it away in the middle of a step.

    Weights that the host streams in layer by layer cannot be trained through. Encoders that work ahead of the step, in threads
    of their own, make the host look for memory: what it has on its list it would take off the device, whoever uses it.
    """
    models = [patcher, *patcher.get_nested_additional_models()]
    if not all(map(_is_there, models)):
        comfy.model_management.load_models_gpu(models, force_full_load=True)
    ours = {id(model.model) for model in models}
    listed = comfy.model_management.current_loaded_models
    listed[:] = [held for held in listed if held.model is None or id(held.model.model) not in ours]


def _is_there(patcher: ModelPatcher) -> bool:
    model = patcher.model
    return model.model_loaded_weight_memory > 0 and not model.model_lowvram and model.device == patcher.load_device
