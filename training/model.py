"""A host model under training: its own copy of the network, called as the host's sampler calls it.

`TrainableModel` holds a copy of a FLUX or SDXL model, in the hands of a `ModelPatcher` like any other: whatever this pack, or
another, applies to a model for inference may be applied to `.patcher`, and `predict` then runs through the same wrappers,
options and batching as a sampler's call, with gradients. So the modules that are trained are the ones that inference uses.
A network that rides along with a model, an adapter or a ReferenceNet, is made trainable by `trainable_network`.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import comfy.model_management
import comfy.model_sampling
import comfy.utils
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from . import objectives
from .call import predict
from .flux_blocks import train_flux_blocks
from .lora import Choice, attach_lora, lora_state
from .unet_blocks import train_unet_blocks

Mode = Literal["lora", "full", "frozen"]
_HASHED = 64  # numbers a tensor that tell it from others


class TrainableModel:
    """A copy of a host model whose LoRAs, or whose weights, are trained.

    Attributes:
        patcher: holds the copy; apply inference's own patches to it and hand the result to `predict`. As a MODEL of the host's
            it samples with the present values.
        mode: "lora" trains LoRAs beside the frozen weights, "full" the weights, "frozen" nothing of the model.
        objective: what the model predicts, a name of `objectives`.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        mode: Mode = "lora",
        rank: int = 512,
        alpha: float | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
        layers: Choice | None = None,
    ) -> None:
        """
        Args:
            patcher: FLUX or SDXL; left as it is. LoRAs applied to it become part of the weights.
            rank, alpha: of the LoRAs; alpha is the rank where it is None.
            seed: of the LoRAs' first values.
            layers: picks the layers that have a LoRA, by name; None for all that may.

        Raises:
            ValueError: the model is neither FLUX nor SDXL, or another pack has put something in its place.
        """
        if not isinstance(getattr(patcher.model, "diffusion_model", None), (Flux, UNetModel)):
            raise ValueError("it is neither FLUX nor SDXL; connect one of those")
        with torch.inference_mode(False), torch.no_grad():
            self.patcher = own_copy(patcher)
            self.mode = mode
            network = self.network
            self._identity = weights_identity(network)
            if mode == "full":
                _widen(network)
                network.dtype = torch.float32
                self.patcher.model.manual_cast_dtype = None
                self.patcher.size = comfy.model_management.module_size(self.patcher.model)
            _prepare_blocks(network, gradient_checkpointing)
            self._modules: dict[str, nn.Module] = {}
            if mode == "lora":
                loras = attach_lora(network, rank, rank if alpha is None else alpha, seed, layers)
                self._modules["lora"] = loras.to(self.patcher.load_device)
            elif mode == "full":
                self._modules["model"] = network.requires_grad_(True)
        self.objective = _objective(self.sampling)

    @property
    def network(self) -> Any:
        """The diffusion model itself."""
        return self.patcher.model.diffusion_model

    @property
    def sampling(self) -> Any:
        """The host's model sampling: what noise levels mean."""
        return self.patcher.get_model_object("model_sampling")

    def modules(self) -> dict[str, nn.Module]:
        """The trainable modules: "lora" or "model", or none; float32."""
        return self._modules

    def identity(self) -> str:
        """A hash of the weights that training started from; of some numbers of each, so that it takes no time."""
        return self._identity

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        conditionings: Sequence[Any],
        patcher: ModelPatcher | None = None,
    ) -> Tensor:
        """The denoised latents, in one call of the model, with gradients where they are enabled.

        Args:
            x: noisy latents in the model's own scale, (B, C, h, w).
            sigma: (B,) noise levels.
            conditionings: a host CONDITIONING of one entry for each sample.
            patcher: `.patcher` with what inference applies to a model; None for the bare model.

        Returns:
            (B, C, h, w) float32.

        Raises:
            ValueError: conditionings that cannot be in one call, or a model that is not this one's.
        """
        patched = self.patcher if patcher is None else patcher
        if patched.model is not self.patcher.model:
            raise ValueError(
                "the patched model is not a clone of the model under training; apply patches to its .patcher"
            )
        return predict(patched, x, sigma, conditionings)

    def process_latent(self, latent: Tensor) -> Tensor:
        """A VAE's latent in the model's own scale."""
        return self.patcher.model.process_latent_in(latent)

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x0 (B, C, h, w), in the model's own scale, with noise of the levels sigma (B,), as the model expects it."""
        return self.sampling.noise_scaling(sigma.to(x0), noise.to(x0), x0)

    def loss(self, denoised: Tensor, x0: Tensor, sigma: Tensor, min_snr_gamma: float = 0) -> Tensor:
        """The model's own loss, (B,), or with a gamma above 0 the min-SNR one; see `objectives`."""
        if min_snr_gamma:
            return objectives.min_snr_loss(self.objective, denoised, x0, sigma, min_snr_gamma)
        return objectives.loss(self.objective, denoised, x0, sigma)

    def sigmas(self, generator: torch.Generator, count: int, tokens: int | None = None) -> Tensor:
        """Noise levels to train with, (count,) float32 on the CPU.

        Flow matching: logit-normal, shifted for a canvas of `tokens` image tokens, or by the model's own shift. Others: timesteps
        that are equally likely.
        """
        sampling = self.sampling
        if self.objective == objectives.FLOW:
            mu = objectives.shift_of(tokens) if tokens is not None else _own_shift(sampling)
            return objectives.flow_sigmas(generator, count, mu)
        steps = objectives.uniform_timesteps(generator, count, len(sampling.sigmas))
        return sampling.sigmas.detach().to("cpu", torch.float32)[steps]

    def lora_state(self) -> dict[str, Tensor]:
        """The LoRAs in the host's key names, float32 on the CPU; empty without LoRAs."""
        loras = self._modules.get("lora")
        return lora_state(loras) if isinstance(loras, nn.ModuleDict) else {}

    def full_state(self) -> dict[str, Tensor]:
        """The weights in the names of the host's checkpoint of a bare diffusion model, float32 on the CPU."""
        state = self.network.state_dict()
        return {name: value.detach().to("cpu", torch.float32, copy=True).contiguous() for name, value in state.items()}


def own_copy(patcher: ModelPatcher) -> ModelPatcher:
    """A model of its own with the same weights, frozen, with the same LoRAs merged in and nothing else applied.

    Memory is shared with `patcher` where nothing is changed. The copy can be trained even where the host made the original's
    weights under inference mode.
    """
    with torch.inference_mode(False), torch.no_grad():
        source = patcher
        if patcher.is_dynamic():
            if patcher.cached_patcher_init is None:
                raise ValueError(
                    "it does not say which file it is from, so that it cannot be loaded anew; use a stock loader"
                )
            source = patcher.clone(disable_dynamic=True)
        comfy.model_management.unload_model_and_clones(source, unload_additional_models=False)
        memo: dict[int, Any] = {}
        for tensor in _tensors(source.model):
            memo[id(tensor)] = _same_memory(tensor)
        for shared in ("model_config", "config"):  # descriptions, which nobody changes
            described = getattr(source.model, shared, None)
            memo[id(described)] = described
        memo[id(getattr(source.model, "current_patcher", None))] = None
        copied = ModelPatcher(copy.deepcopy(source.model, memo), source.load_device, source.offload_device)
        for name, value in source.object_patches.items():
            comfy.utils.set_attr(copied.model, name, copy.deepcopy(value))
        copied.patches = {key: list(patches) for key, patches in source.patches.items()}
        for key in source.patches:
            merged = copied.patch_weight_to_device(key, return_weight=True)
            comfy.utils.set_attr_param(copied.model, key, merged)
        copied.patches = {}
        copied.model.requires_grad_(False)
        return copied


def trainable_network(patcher: ModelPatcher) -> ModelPatcher:
    """A network that rides along with a model, as one to be trained: a copy, in float32, whose parameters ask for gradients.

    Apply the mechanism with the result: what its hooks call then is `.model`, the module to be trained.
    """
    own = own_copy(patcher)
    with torch.inference_mode(False), torch.no_grad():
        _widen(own.model)
        own.model.requires_grad_(True)
        own.size = comfy.model_management.module_size(own.model)
    return own


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _same_memory(tensor: Tensor) -> Tensor:
    """The same numbers in the same place, as a tensor that autograd accepts; a copy where it is no plain tensor."""
    if type(tensor.data) is not Tensor or tensor.layout != torch.strided or tensor.is_meta:
        return copy.deepcopy(tensor)
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain


def _widen(network: nn.Module) -> None:
    """Float32 weights of the network's own."""
    for tensor in _tensors(network):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32, copy=True)


def _prepare_blocks(network: nn.Module, checkpointing: bool) -> None:
    if isinstance(network, Flux):
        train_flux_blocks(network, checkpointing)
    else:
        train_unet_blocks(network, checkpointing)


def _objective(sampling: Any) -> str:
    if isinstance(sampling, comfy.model_sampling.CONST):
        return objectives.FLOW
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        return objectives.VELOCITY
    if type(sampling).calculate_denoised is comfy.model_sampling.EPS.calculate_denoised:
        return objectives.EPSILON
    raise ValueError("it predicts neither noise nor velocity; connect the model without a sampling patch")


def _own_shift(sampling: Any) -> float:
    """mu of FLUX's sampling; other flow models state e^mu."""
    if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux):
        return float(sampling.shift)
    return math.log(float(getattr(sampling, "shift", 1.0)))


def weights_identity(network: nn.Module) -> str:
    """A hash of a network's weights; of some numbers of each, so that it takes no time."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        flat = value.detach().flatten()
        chosen = flat[:: max(1, len(flat) // _HASHED)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(chosen.contiguous().numpy().tobytes())
    return digest.hexdigest()
