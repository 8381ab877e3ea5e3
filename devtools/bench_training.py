"""What a training step costs at the block sizes of FLUX.1 and SDXL: rows for ``dev.py bench``.

Few blocks and, on a CPU, few tokens, so that a step takes seconds: a double and a single block of width 3072 with 24 heads,
and SDXL's levels of 320, 640 and 1280 channels with one residual and one transformer block each. LoRA rank 512, weights and
computation in bfloat16. Peak memory is that of the tensors a step makes, without those that are there before it; with so few tokens
it is the gradients', which no checkpointing changes. What checkpointing saves is what is held for the way back.

Beside them the host's own training functions with the same rank, in the mode that multiplies beside the layers as this pack
does, with its gradient checkpointing of each block. With so few tokens its other mode, which makes a matrix of the layer's
size, would look worse than it is. What its gradients are worth is measured in `devtools.gradients`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.bypass import BypassInjectionManager
from comfy_extras.nodes_train import _create_weight_adapter, find_modules_at_depth, patch

from comfyui_ensemble.training.call import predict
from comfyui_ensemble.training.checkpointing import host_in_training
from comfyui_ensemble.training.lora import adapted_layers
from comfyui_ensemble.training.model import TrainableModel
from comfyui_ensemble.training.task import Prepared, Task
from devtools.bench_row import AT_MOST, Row
from devtools.tensor_memory import TensorMemory

RANK = 512
GIB, MIB = 2**30, 2**20
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56],
    "theta": 10_000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
SDXL: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}


class SDXLPart(comfy.supported_models.SDXL):
    """SDXL's entry in the host's list of models, for the levels above."""

    unet_config = SDXL


@dataclass(frozen=True)
class Case:
    """A model and a batch.

    Attributes:
        size: (h, w) of the latent.
        layers: which have a LoRA.
    """

    name: str
    config: Any
    channels: int
    size: tuple[int, int]
    text: int
    context: int
    pooled: int
    layers: Callable[[str], bool]

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.name} blocks, latent {self.size[0]} x {self.size[1]}, LoRA {RANK}"


def cases(on_cpu: bool) -> list[Case]:
    """With a real picture's tokens on an accelerator."""
    flux = comfy.supported_models.Flux(FLUX)
    side, text = (16, 16) if on_cpu else (128, 512)
    return [
        Case("FLUX.1", flux, 16, (side, side), text, 4096, 768, lambda name: True),
        Case("SDXL", SDXLPart(SDXL), 4, (side, side), 77, 2048, 1280, lambda name: "transformer_blocks" in name),
    ]


@dataclass(frozen=True)
class Measured:
    """A step's seconds, the most bytes its tensors take at once, and those held from the way forth for the way back."""

    seconds: float
    peak: int
    held: int


def rows() -> list[Row]:
    """Step time and peak memory of each case, with and without gradient checkpointing, and beside the host's."""
    device = comfy.model_management.get_torch_device()
    found: list[Row] = []
    for case in cases(device.type == "cpu"):
        base = random_model(case, device)
        plain, checkpointed = (_ours(case, base, on) for on in (False, True))
        host = _host(case, base)
        id = f"training.{case.name.partition('.')[0].lower()}"
        found += step_rows(id, case.title, plain, device)
        found += step_rows(f"{id}_checkpointing", f"{case.title}, checkpointing", checkpointed, device)
        for part, what, ratio, limit in (
            ("held", "memory held with checkpointing, beside none", checkpointed.held / plain.held, 0.5),
            ("time", "time with checkpointing, beside none", checkpointed.seconds / plain.seconds, 2.0),
            ("host_time", "time beside the host's own training", checkpointed.seconds / host.seconds, 1.2),
            ("host_peak", "peak memory beside the host's own training", checkpointed.peak / host.peak, 1.2),
        ):
            name = f"Training, {case.title}: {what}"
            found.append(Row(f"{id}.{part}_ratio", name, "x", ratio, limit, AT_MOST, str(device)))
    return found


def step_rows(id: str, title: str, measured: Measured, device: torch.device) -> list[Row]:
    """A training step's time and memory, about which nothing is promised."""
    name = f"Training step, {title}"
    where: dict[str, Any] = {"device": str(device)}
    return [
        Row(f"{id}.step", name, "s", measured.seconds, **where),
        Row(f"{id}.peak", f"{name}: peak memory", "GiB", measured.peak / GIB, **where),
        Row(f"{id}.held", f"{name}: held for the way back", "MiB", measured.held / MIB, **where),
    ]


def random_model(case: Case, device: torch.device) -> ModelPatcher:
    """The host's own model; its numbers are random but repeat themselves, which takes less time to make."""
    case.config.set_inference_dtype(torch.bfloat16, None)
    model = case.config.get_model({}, device=device)
    noise = 0.02 * torch.randn(2**16, device=device, dtype=torch.bfloat16)
    for weight in model.diffusion_model.parameters():
        flat = weight.data.view(-1)
        for start in range(0, len(flat), len(noise)):
            part = flat[start : start + len(noise)]
            part.copy_(noise[: len(part)])
    return ModelPatcher(model, load_device=device, offload_device=comfy.model_management.unet_offload_device())


def _ours(case: Case, base: ModelPatcher, checkpointing: bool) -> Measured:
    trained = TrainableModel(base, "lora", RANK, gradient_checkpointing=checkpointing, layers=case.layers)
    return _measured(case, trained.patcher, list(trained.modules()["lora"].parameters()))


def _host(case: Case, base: ModelPatcher) -> Measured:
    """What the host's training node sets up: its adapters on the same layers, beside them, and its checkpointing of blocks."""
    network, manager, parameters = base.model.diffusion_model, BypassInjectionManager(), []
    layers = {name: layer for name, layer in adapted_layers(network).items() if case.layers(name)}
    # Its checkpointing of FLUX runs at all only where something in front of the first block is trained.
    layers |= {name: layer for name, layer in network.named_children() if name in ("img_in", "txt_in")}
    for name, layer in layers.items():
        full = f"diffusion_model.{name}"
        adapter: Any
        adapter, named = _create_weight_adapter(layer, full, {}, "LoRA", torch.float32, RANK)
        manager.add_adapter(f"{full}.weight", adapter, strength=1.0)
        parameters += [value for value in named.values() if value.requires_grad]
    for module in find_modules_at_depth(network, 2):
        patch(module)
    for injection in manager.create_injections(base.model):
        injection.inject(base)
    with host_in_training():
        return _measured(case, base, parameters)


def _measured(case: Case, patcher: ModelPatcher, parameters: Sequence[torch.Tensor]) -> Measured:
    x = torch.randn(1, case.channels, *case.size, device=patcher.load_device)
    prompt = [
        [torch.randn(1, case.text, case.context), {"pooled_output": torch.randn(1, case.pooled), "guidance": 1.0}]
    ]
    return _of_steps(
        lambda: predict(patcher, x, torch.tensor([0.5]), [prompt]).square().mean(), parameters, patcher.load_device
    )


def task_rows(id: str, title: str, make: Callable[[bool], Task], sample: Prepared, device: torch.device) -> list[Row]:
    """What a step of a training costs, of one sample; `make` builds it with and without gradient checkpointing."""
    found: list[Row] = []
    for checkpointing in (False, True):
        measured = _measured_task(make(checkpointing), sample, device)
        more = ("_checkpointing", ", checkpointing") if checkpointing else ("", "")
        found += step_rows(f"{id}{more[0]}", f"{title}{more[1]}", measured, device)
        gc.collect()
    return found


def _measured_task(task: Task, sample: Prepared, device: torch.device) -> Measured:
    parameters = [value for module in task.modules().values() for value in module.parameters() if value.requires_grad]
    with host_in_training():
        return _of_steps(lambda: task.losses([sample], [0])["loss"].mean(), parameters, device)


def _of_steps(loss: Callable[[], torch.Tensor], parameters: Sequence[torch.Tensor], device: torch.device) -> Measured:
    """One step for its memory, which also chooses kernels, then some for their time; the fastest counts."""

    def forth() -> torch.Tensor:
        for value in parameters:
            value.grad = None
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return loss()

    def step() -> None:
        forth().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with TensorMemory() as memory:
        found = forth()
        held = memory.alive
        found.backward()
        del found
    gc.collect()
    # On a processor its time, which other work on the machine disturbs far less than the clock on the wall.
    clock, repeats = (time.process_time, 2) if device.type == "cpu" else (time.perf_counter, 5)
    return Measured(min(_timed(step, clock) for _ in range(repeats)), memory.peak, held)


def _timed(call: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start
