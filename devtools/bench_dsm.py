"""What DSM costs at FLUX.1's dimensions: rows for ``dev.py bench``.

Timed are the host's own double and single block (width 3072, 24 heads) and what DSM adds before each: its head's
matrix, the addition, and, for a single block, the copy of the joint stream. On an accelerator with 512 text and 4096
canvas tokens, one 1024 x 1024 picture; on a CPU with an eighth of both, because a whole block takes it minutes. Fewer
tokens only make DSM look worse: its share is the text's share of the tokens, while attention grows with their square.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, EmbedND, SingleStreamBlock

from comfyui_ensemble.attention_patches.dsm import OffsetBlock
from comfyui_ensemble.attention_patches.dsm_adapter import FLUX_DSM
from devtools.bench_row import SHARE, Row

TEXT_TOKENS, CANVAS_TOKENS = 512, 4096
CPU_SHARE = 8  # a CPU is given this fraction of the tokens
HEADS = 24
PROMISED = 0.02
REPEATS = 5
SLOW = 1.0  # seconds; what takes longer is timed fewer times
_ROPE_AXES, _ROPE_BASE = [16, 56, 56], 10_000


def rows() -> list[Row]:
    """The share of a double and of a single block's time that DSM adds, through the block replacement itself."""
    device = comfy.model_management.get_torch_device()
    on_cpu = device.type == "cpu"
    dtype = torch.float32 if on_cpu else torch.bfloat16
    share = CPU_SHARE if on_cpu else 1
    text, canvas = TEXT_TOKENS // share, CANVAS_TOKENS // share
    found = []
    with torch.inference_mode():
        for name, block in (("double", DoubleStreamBlock), ("single", SingleStreamBlock)):
            ratio = _added(block, text, canvas, device, dtype)
            title = f"DSM in a FLUX {name} block, {text} + {canvas} tokens"
            found.append(Row(f"dsm.{name}", title, SHARE, ratio, PROMISED, device=str(device)))
    return found


def _added(kind: Any, text: int, canvas: int, device: torch.device, dtype: torch.dtype) -> float:
    """Time of what DSM does before a block over the block's own time."""
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    width = FLUX_DSM.model_width
    bias = {"qkv_bias": True} if kind is DoubleStreamBlock else {}
    block = kind(width, HEADS, mlp_ratio=4.0, operations=comfy.ops.disable_weight_init, **bias, **place)
    head = comfy.ops.manual_cast.Linear(FLUX_DSM.width, width, bias=False, **place)
    for weight in (*block.parameters(), *head.parameters()):
        torch.nn.init.normal_(weight, std=0.02)
    vec = torch.randn(1, width, **place)
    pe = EmbedND(128, _ROPE_BASE, _ROPE_AXES)(torch.zeros(1, text + canvas, 3, device=device))
    if kind is DoubleStreamBlock:
        args = {"txt": torch.randn(1, text, width, **place), "img": torch.randn(1, canvas, width, **place)}
    else:
        args = {"img": torch.randn(1, text + canvas, width, **place)}

    def run(streams: dict[str, torch.Tensor]) -> Any:
        if kind is DoubleStreamBlock:
            return block(img=streams["img"], txt=streams["txt"], vec=vec, pe=pe)
        return block(streams["img"], vec=vec, pe=pe)

    offset = OffsetBlock(head, torch.randn(1, text, FLUX_DSM.width, **place), None)
    before = {"original_block": lambda streams: streams}
    return seconds(lambda: offset(args, before), device) / seconds(lambda: run(args), device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time of a call; short ones are repeated within a measurement, so that the clock does not matter."""
    first = _once(call, device, 1)  # kernels are chosen and memory is taken the first time
    times = 1 if first > SLOW else max(1, round(0.05 / max(_once(call, device, 1), 1e-6)))
    return statistics.median(_once(call, device, times) for _ in range(REPEATS)) / times


def _once(call: Callable[[], Any], device: torch.device, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
