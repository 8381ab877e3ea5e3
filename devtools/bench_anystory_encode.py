"""What AnyStory's simplified ReferenceNet costs beside the whole U-Net, at SDXL's size: rows for ``dev.py bench``.

On an accelerator both are timed as the paper times them (its Table 1), one picture of 64 x 64 latents. A CPU takes half a
minute for that and has no room for two such networks, so there the arithmetic of 64 x 64 latents is counted, and the time is
taken at 32 x 32 with one tensor standing for all weights of its shape: the work is the same, only less memory is read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from comfyui_ensemble.attention_patches.anystory_network import SDXL_ANYSTORY
from comfyui_ensemble.attention_patches.reference_net import ReferenceNet, build_unet
from devtools.bench_row import AT_MOST, Row

PROMISED = 0.86  # the paper's 53.2 / 62.0 ms
LATENT, CPU_LATENT = 64, 32
PAIRS, CPU_PAIRS = 20, 3
_TEXT_TOKENS = 77

Forward = Callable[[], Any]


def rows() -> list[Row]:
    """The ReferenceNet's share of a U-Net forward: in time, and on a CPU in arithmetic at the paper's size too."""
    device = comfy.model_management.get_torch_device()
    on_cpu = device.type == "cpu"
    found = []
    with torch.inference_mode():
        if on_cpu:
            name = f"arithmetic of ReferenceNet / U-Net, {LATENT} x {LATENT} latents"
            found.append(_row("arithmetic", name, _arithmetic(), device))
        latent, pairs = (CPU_LATENT, CPU_PAIRS) if on_cpu else (LATENT, PAIRS)
        name = f"time of ReferenceNet / U-Net, {latent} x {latent} latents"
        found.append(_row("time", name, _time(device, latent, pairs, shared=on_cpu), device))
    return found


def _row(id: str, name: str, ratio: float, device: torch.device) -> Row:
    return Row(f"anystory_encode.{id}", f"AnyStory, {name}", "x", ratio, PROMISED, AT_MOST, str(device))


def _arithmetic() -> float:
    """Multiplications and additions of the two forwards; tensors without memory."""
    with FakeTensorMode():
        forwards = _forwards(torch.device("cpu"), torch.float32, LATENT, lambda shape: torch.empty(shape))
        reference, unet = (_operations(forward) for forward in forwards)
    return reference / unet


def _operations(forward: Forward) -> int:
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def _time(device: torch.device, latent: int, pairs: int, shared: bool) -> float:
    """Median of the paired ratios."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    known: dict[torch.Size, torch.Tensor] = {}

    def make(shape: torch.Size) -> torch.Tensor:
        if not shared:
            return 0.02 * torch.randn(shape, device=device, dtype=dtype)
        if shape not in known:
            known[shape] = 0.02 * torch.randn(shape, device=device, dtype=dtype)
        return known[shape]

    reference, unet = _forwards(device, dtype, latent, make)
    for forward in (reference, unet):
        _seconds(forward, device)  # kernels are chosen and memory is taken the first time
    return statistics.median(_seconds(reference, device) / _seconds(unet, device) for _ in range(pairs))


def _seconds(forward: Forward, device: torch.device) -> float:
    start = time.perf_counter()
    forward()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def _forwards(
    device: torch.device, dtype: torch.dtype, latent: int, make: Callable[[torch.Size], torch.Tensor]
) -> tuple[Forward, Forward]:
    """A forward of the ReferenceNet and one of SDXL's U-Net, with weights from `make(shape)`."""
    sizes = SDXL_ANYSTORY.unet
    reference = ReferenceNet(sizes, dtype, "meta", comfy.ops.disable_weight_init)
    unet = build_unet(sizes, dtype, "meta", comfy.ops.disable_weight_init)
    for network in (reference, unet):
        for module in network.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(make(value.shape), requires_grad=False))
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    picture = torch.ones(1, sizes["in_channels"], latent, latent, **place)
    timestep, vector = torch.zeros(1, **place), torch.zeros(1, sizes["adm_in_channels"], **place)
    text = torch.zeros(1, _TEXT_TOKENS, sizes["context_dim"], **place)
    return lambda: reference(picture, picture[:, :1]), lambda: unet(picture, timestep, text, vector)
