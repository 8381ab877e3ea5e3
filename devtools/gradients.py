"""How well gradients agree with what the model does: ours and those of the host's own training node, against differences.

    python dev.py python -m devtools.gradients

Small models of the host's own classes, in float64 wherever the host permits it. A gradient g says that the loss grows by |g|
for a step of length one along g. How much it does grow is measured by central differences of forwards without gradients. The
quotient of the two is 1 where the gradient is right. The host computes RoPE in float32, hence the step of 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host whether there is an accelerator, before anything of it is imported)

# isort: split
import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_train import find_modules_at_depth, patch

from comfyui_ensemble.attention_patches.dam import apply_dam
from comfyui_ensemble.attention_patches.dam_generator import DAMConfig, DAMGenerators, fresh_dam
from comfyui_ensemble.attention_patches.dsm import KEY as DSM_KEY
from comfyui_ensemble.attention_patches.dsm import apply_dsm
from comfyui_ensemble.attention_patches.dsm_adapter import DSMAdapter, DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.europe import EUROPE, apply_europe
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference
from comfyui_ensemble.models_info.tiny_sdxl import HEADS, UNET_CONFIG
from comfyui_ensemble.training.call import predict
from comfyui_ensemble.training.checkpointing import host_in_training
from comfyui_ensemble.training.lora import LowRank
from comfyui_ensemble.training.model import TrainableModel, trainable_network

STEP = 1e-3
TEXT, POOLED, TRUNK = 24, 16, 16
CPU = torch.device("cpu")
LAYOUT = Layout((Reference("subject", (3, 2), "Ada", "person"), Reference("pose", (4, 4))))
FLUX: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": POOLED,
    "context_in_dim": TEXT,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10_000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
UNET: dict[str, Any] = {
    **UNET_CONFIG,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 2],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
    "context_dim": TEXT,
    "adm_in_channels": POOLED + 6 * 256,
}


class SmallSDXL(comfy.supported_models.SDXL):
    """SDXL's entry in the host's list of models, for a U-Net of width 32."""

    unet_config = UNET
    unet_extra_config = HEADS


def random(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of variance 1 / fan-in; biases and scales too are not what they are in a fresh model, so that everything matters."""
    weights = {}
    for seed, (name, value) in enumerate(sorted(network.state_dict().items())):
        spread = 1 / math.sqrt(math.prod(value.shape[1:])) if value.ndim > 1 else 0.2
        scale = value.ndim == 1 and not name.endswith("bias")
        weights[name] = spread * random(seed, *value.shape) + float(scale)
    return weights


def small_flux() -> comfy.model_patcher.ModelPatcher:
    """A FLUX of width 128 with two double and two single blocks, through the host's own loader."""
    network = comfy.ldm.flux.model.Flux(
        dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init, **FLUX
    )
    patcher = comfy.sd.load_diffusion_model_state_dict(_weights(network))
    assert patcher is not None
    return patcher


def small_sdxl() -> comfy.model_patcher.ModelPatcher:
    """An SDXL of width 32 with two levels."""
    config = SmallSDXL(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    model.load_model_weights(_weights(model.diffusion_model), "")
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def riding(network: torch.nn.Module, fresh: Mapping[str, torch.Tensor]) -> comfy.model_patcher.ModelPatcher:
    """A network that rides along with a model, trainable, with nothing left at zero."""
    network.load_state_dict({name: value + 0.05 * random(len(name), *value.shape) for name, value in fresh.items()})
    return trainable_network(comfy.model_patcher.ModelPatcher(network, load_device=CPU, offload_device=CPU))


def dsm_for(config: Mapping[str, Any]) -> comfy.model_patcher.ModelPatcher:
    """A DSM adapter for a FLUX of these sizes."""
    sizes = DSMConfig(
        TEXT, TRUNK, 2, 8, 3, (1,), 2, config["hidden_size"], config["depth"], config["depth_single_blocks"]
    )
    return riding(DSMAdapter(sizes, torch.float32, "cpu", comfy.ops.manual_cast), fresh_dsm(sizes, 0))


def dam_for(config: Mapping[str, Any]) -> comfy.model_patcher.ModelPatcher:
    """DAM's generators for a FLUX of these sizes."""
    sizes = DAMConfig(config["hidden_size"], 8, config["depth"], config["depth_single_blocks"])
    return riding(DAMGenerators(sizes, torch.float32, "cpu", comfy.ops.manual_cast), fresh_dam(sizes, 0))


def flux_prompt(seed: int, adapter: comfy.model_patcher.ModelPatcher | None = None) -> Any:
    """A conditioning with a subject's reference and a pose map, and with what a DSM adapter makes of a subject."""
    text, pooled = random(seed, 1, 5, TEXT), random(seed + 1, 1, POOLED)
    references = [random(seed + 2, 1, 16, 6, 4), random(seed + 3, 1, 16, 8, 8)]
    options = {
        "pooled_output": pooled,
        "guidance": 2.0,  # the host makes 1000 times this a half-precision number
        "reference_latents": references,
        "reference_latents_method": "uxo",
        LAYOUT_KEY: LAYOUT,
    }
    if adapter is None:
        return [[text, options]]
    text = text.to(adapter.model.to_out.weight.dtype)  # as `modulate` does, but in the adapter's own precision
    trunk = adapter.model.trunk(text, random(seed + 4, 1, 1, 3, 8).to(text))
    return [[text + adapter.model.global_offset(trunk), {**options, DSM_KEY: trunk}]]


def sdxl_prompt(seed: int) -> Any:
    """A conditioning."""
    return [[random(seed, 1, 5, TEXT), {"pooled_output": random(seed + 1, 1, POOLED), "width": 96, "crop_h": 8}]]


@dataclass
class Scene:
    """A model in float64 with a batch and a loss.

    Attributes:
        patcher: the model with all that is applied to it.
        modules: those whose parameters are looked at.
        x, sigma: of two samples.
        prompts: makes their conditionings.
        dtype: of all weights.
    """

    patcher: comfy.model_patcher.ModelPatcher
    modules: Sequence[torch.nn.Module]
    x: torch.Tensor
    sigma: torch.Tensor
    prompts: Callable[[], Sequence[Any]]
    dtype: torch.dtype = torch.float64
    raw: torch.Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.patcher = self.patcher.clone()
        self.patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "keep", self._keep)
        network = self.patcher.model.diffusion_model
        for module in (network, *self.modules):
            module.to(self.dtype)
        network.dtype = self.dtype
        self.parameters: dict[str, torch.Tensor] = {
            f"{number}.{name}": value
            for number, module in enumerate(self.modules)
            for name, value in module.named_parameters()
        }

    def _keep(self, executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.raw = executor(*args, **kwargs)
        return self.raw

    def loss(self) -> torch.Tensor:
        """Of what the network puts out, which the host afterwards makes float32."""
        predict(self.patcher, self.x, self.sigma, self.prompts())
        assert self.raw is not None
        return (self.raw.double() - random(99, *self.raw.shape)).square().mean()

    def gradients(self) -> dict[str, torch.Tensor]:
        """By parameter; zeros where the loss does not depend on it."""
        for value in self.parameters.values():
            value.grad = None
        self.loss().backward()
        return {
            name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
            for name, value in self.parameters.items()
        }

    @torch.no_grad()
    def slope(self, direction: Mapping[str, torch.Tensor]) -> float:
        """Central difference of the loss along a direction."""
        losses = []
        for step in (STEP, -2 * STEP):
            for name, value in direction.items():
                self.parameters[name].add_(step * value)
            losses.append(float(self.loss()))
        for name, value in direction.items():
            self.parameters[name].add_(STEP * value)
        return (losses[0] - losses[1]) / (2 * STEP)

    def agreement(self, gradients: Mapping[str, torch.Tensor], names: Sequence[str]) -> float:
        """How much the loss grows along a gradient, by how much the gradient says that it does."""
        length = math.sqrt(sum(float(gradients[name].square().sum()) for name in names))
        return self.slope({name: gradients[name] / length for name in names}) / length


def shake_loras(trained: TrainableModel) -> None:
    """As after some steps: while B is zero, A has no gradient."""
    for module in trained.modules().values():
        for lora in module.modules():
            if isinstance(lora, LowRank):
                lora.up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(lora.up.numel()))


def flux_scene(mode: Any, checkpointing: bool, everything: bool = True, dtype: torch.dtype = torch.float64) -> Scene:
    """Two samples with references; with EURoPE, DSM and DAM where `everything` is asked for."""
    trained = TrainableModel(small_flux(), mode, rank=3, alpha=2.0, gradient_checkpointing=checkpointing)
    shake_loras(trained)
    patched, dsm, riders = trained.patcher, None, []
    if everything:
        dsm, dam = riders = [dsm_for(FLUX), dam_for(FLUX)]
        patched = apply_dam(apply_dsm(apply_europe(patched, LAYOUT, EUROPE), dsm), dam, 0.8)
    modules = [*trained.modules().values(), *(rider.model for rider in riders)]
    return Scene(patched, modules, *_FLUX_BATCH, lambda: [flux_prompt(1, dsm), flux_prompt(10, dsm)], dtype)


def sdxl_scene(mode: Any, checkpointing: bool, dtype: torch.dtype = torch.float64) -> Scene:
    """Two samples."""
    trained = TrainableModel(small_sdxl(), mode, rank=3, alpha=2.0, gradient_checkpointing=checkpointing)
    shake_loras(trained)
    return Scene(trained.patcher, list(trained.modules().values()), *_SDXL_BATCH, _sdxl_prompts, dtype)


def host_scene(model: comfy.model_patcher.ModelPatcher, depth: int | None) -> Scene:
    """The same full training as the host's node sets it up, with its gradient checkpointing at `depth` or without."""
    network = model.model.diffusion_model.requires_grad_(True)
    if depth is not None:
        for module in find_modules_at_depth(network, depth):
            patch(module)
    if isinstance(network, comfy.ldm.flux.model.Flux):
        return Scene(model, [network], *_FLUX_BATCH, lambda: [flux_prompt(1), flux_prompt(10)])
    return Scene(model, [network], *_SDXL_BATCH, _sdxl_prompts)


_FLUX_BATCH = (random(0, 2, 16, 8, 8), torch.tensor([0.8, 0.3]))
_SDXL_BATCH = (random(0, 2, 4, 8, 8), torch.tensor([7.0, 0.6]))


def _sdxl_prompts() -> Sequence[Any]:
    return [sdxl_prompt(1), sdxl_prompt(10)]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of the angle between two gradients."""
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


LOOKED_AT = {
    "FLUX": ("txt_in.weight", "double_blocks.0.img_attn.qkv.weight", "single_blocks.1.linear2.weight"),
    "SDXL": ("time_embed.0.weight", "input_blocks.3.0.in_layers.2.weight", "output_blocks.3.0.out_layers.3.weight"),
}


def rows() -> list[tuple[str, ...]]:
    """Model, who trains it, and for each tensor looked at and for all weights: quotient, and cosine to our gradient."""
    found = []
    for model, ours, load in (
        ("FLUX", lambda on: flux_scene("full", on, everything=False), small_flux),
        ("SDXL", lambda on: sdxl_scene("full", on), small_sdxl),
    ):
        makers: dict[str, Callable[[], Scene]] = {
            "this pack": lambda ours=ours: ours(False),
            "this pack, checkpointing": lambda ours=ours: ours(True),
            "the host": lambda load=load: host_scene(load(), None),
            "the host, checkpointing (its default depth 1)": lambda load=load: host_scene(load(), 1),
            "the host, checkpointing at depth 2": lambda load=load: host_scene(load(), 2),
        }
        right: dict[str, torch.Tensor] = {}
        for who, make in makers.items():
            scene = make()
            try:
                with host_in_training():
                    gradients = scene.gradients()
            except RuntimeError as error:
                if "inplace operation" not in str(error):
                    raise
                found.append((model, who, *["refused by autograd"] * 4))
                continue
            right = right or gradients
            groups = [[f"0.{name}"] for name in LOOKED_AT[model]] + [list(gradients)]
            cells = []
            for names in groups:
                angle = cosine(*(torch.cat([g[name].flatten() for name in names]) for g in (gradients, right)))
                cells.append(f"{scene.agreement(gradients, names):.5f} ({angle:.5f})")
            found.append((model, who, *cells))
    return found


def main() -> None:
    found = rows()
    for model, names in LOOKED_AT.items():
        print(f"| {model} | " + " | ".join(f"`{name}`" for name in names) + " | all weights |")
        print("|---" * (len(names) + 2) + "|")
        for of, who, *cells in found:
            if of == model:
                print(f"| {who} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
