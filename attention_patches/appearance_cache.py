"""SeAl's appearance cache: the self-attention keys and values of a picture, as the model itself makes them.

The appearance latent goes through the U-Net once a cached timestep, without noise: as it is, scaled as the model scales
its own input at that noise level. K and V of `attn1` in the middle and output blocks are kept; input blocks carry the
structure and are left out. The pass is a run of the host's own sampler machinery with one prompt, so that LoRAs, patches,
prompt encoding and memory management are those of the picture that will use the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.patcher_extension import WrappersMP

from .appearance_tokens import Appearance, AppearanceError, AppearanceTokens, Tokens
from .attention_chain import OBSERVED, Attend, add_steps
from .mask_tokens import covered_tokens
from .one_prompt import OnePrompt
from .schedule import sampling_progress
from .unet_layers import AttentionLayer, Block, attention_layers

KEY = "ensemble_appearance_cache"


def cached_layers(unet: Any) -> tuple[AttentionLayer, ...]:
    """The layers that SeAl caches and infuses: of the middle and the output blocks."""
    return tuple(layer for layer in attention_layers(unet) if layer.block[0] != "input")


def spread_sigmas(sampling: Any, count: int) -> torch.Tensor:
    """Noise levels of `count` timesteps in the middles of equal shares of the run, so that the nearest is never far."""
    return torch.tensor([sampling.percent_to_sigma((number + 0.5) / count) for number in range(count)])


def cache_appearance(
    model: ModelPatcher,
    conditioning: Any,
    latent: torch.Tensor,
    mask: torch.Tensor | None,
    sigmas: torch.Tensor,
) -> Appearance:
    """Run the noise-free passes.

    Args:
        conditioning: a prompt that describes the appearance.
        latent: (1, C, h, w), as the VAE gives it.
        mask: (H, W), 1 where the subject is, over the whole latent; only tokens that show the subject are kept.
        sigmas: (T,) noise levels of the timesteps to cache.

    Raises:
        AppearanceError: with this prompt, or with the patches on the model, not every layer is run just once.
    """
    layers = cached_layers(model.model.diffusion_model)
    collector = _Collector(layers, mask, (latent.shape[-2], latent.shape[-1]), model.offload_device)
    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, collector.watch)
    guider = OnePrompt(watched)
    guider.inner_set_conds({"positive": conditioning})
    guider.sample(torch.zeros_like(latent), latent, _NoiseFree(collector), sigmas, disable_pbar=True)
    sampling: Any = model.get_model_object("model_sampling")
    moments = [sampling_progress(sampling, float(sigma)) for sigma in sigmas]
    network = AppearanceTokens(type(model.model).__name__, layers, moments, collector.moments)
    return Appearance(CoreModelPatcher(network, model.load_device, model.offload_device))


class _NoiseFree(comfy.samplers.Sampler):
    """Shows the clean latent to the model once at each noise level, instead of sampling."""

    def __init__(self, collector: _Collector) -> None:
        self.collector = collector

    def sample(  # the host's signature
        self,
        model_wrap: Callable[..., torch.Tensor],
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        latent = noise if latent_image is None else latent_image
        progress = comfy.utils.ProgressBar(len(sigmas))
        for sigma in sigmas:
            comfy.model_management.throw_exception_if_processing_interrupted()
            model_wrap(latent, sigma[None], **extra_args)
            self.collector.finish_moment()
            progress.update(1)
        return latent


class _Collector:
    """Takes keys and values down as they pass."""

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        mask: torch.Tensor | None,
        canvas: tuple[int, int],
        storage: torch.device,
    ) -> None:
        self.layers = layers
        self.mask = mask
        self.canvas = canvas
        self.storage = storage
        self.moments: list[dict[Block, Tokens]] = []
        self._now: dict[Block, Tokens] = {}

    def watch(
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
        """DIFFUSION_MODEL wrapper."""
        steps = {layer.block: partial(self._take, layer.block) for layer in self.layers}
        options = add_steps(transformer_options or {}, "attn1", steps, OBSERVED)
        return executor(x, timesteps, context, y, control, options, **kwargs)

    def _take(
        self, block: Block, attend: Attend, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]
    ) -> torch.Tensor:
        if block in self._now or len(k) != 1:
            raise AppearanceError(
                "it makes the model look at the picture in several ways at once; connect one plain prompt"
            )
        keys, values = k[0], v[0]  # (M, C)
        if self.mask is not None:
            height, width = extra["activations_shape"][-2:]
            tokens = covered_tokens(self.mask, self.canvas, (height, width)).to(keys.device)
            keys, values = keys[tokens], values[tokens]
        self._now[block] = Tokens.of(keys, values)
        return attend(q, k, v)

    def finish_moment(self) -> None:
        """Put one timestep away."""
        if len(self._now) != len(self.layers):
            raise AppearanceError(
                "the model left layers out, as patches do that reuse earlier steps, or prompts that hold for a part of the"
                " run only; connect model and prompt without such"
            )
        self.moments.append({block: tokens.to(self.storage) for block, tokens in self._now.items()})
        self._now = {}
