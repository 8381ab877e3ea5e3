"""What DAM costs at FLUX.1's dimensions: rows for ``dev.py bench``.

Timed are the host's own double and single block (width 3072, 24 heads) and what DAM adds inside: the generator's MLP on
the queries, and the division. On an accelerator with 512 text and 4,096 canvas tokens and four references of 1,728, one
1024 x 1024 picture; on a CPU with an eighth of all, because a whole block takes it minutes. Fewer tokens only make DAM
look worse: its time grows with the tokens, attention's with their square.

Memory is the most that a block's tensors take at once, with and without DAM. It follows from their sizes alone, so it is
found for all tokens on the device without contents.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, EmbedND, SingleStreamBlock
from comfy.ldm.modules.attention import attention_pytorch

from comfyui_ensemble.attention_patches.dam import Tempering
from comfyui_ensemble.attention_patches.dam_generator import FLUX_DAM, DAMGenerators
from devtools.bench_dsm import HEADS, seconds
from devtools.bench_row import SHARE, Row
from devtools.tensor_memory import TensorMemory

TEXT_TOKENS, IMAGE_TOKENS = 512, 4096 + 4 * 1728
CPU_SHARE = 8  # a CPU is given this fraction of the tokens
PROMISED = 0.03
BLOCKS = {"double": DoubleStreamBlock, "single": SingleStreamBlock}
_HEAD_SIZE, _ROPE_AXES, _ROPE_BASE = 128, [16, 56, 56], 10_000


def rows() -> list[Row]:
    """The shares of a double and of a single block's time and memory that DAM adds, through its patches themselves."""
    device = comfy.model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    share = CPU_SHARE if device.type == "cpu" else 1
    text, image = TEXT_TOKENS // share, IMAGE_TOKENS // share
    found = []
    with torch.inference_mode():
        for kind in BLOCKS:
            time = added_time(kind, text, image, device, dtype)
            name = f"DAM in a FLUX {kind} block, {text} + {image} tokens"
            found.append(Row(f"dam.{kind}", name, SHARE, time, PROMISED, device=str(device)))
        for kind in BLOCKS:
            memory = peak_memory(kind, True) / peak_memory(kind, False) - 1
            name = f"DAM in the memory of a FLUX {kind} block, {TEXT_TOKENS} + {IMAGE_TOKENS} tokens"
            found.append(Row(f"dam.{kind}_memory", name, SHARE, memory, PROMISED, device="any"))
    return found


def added_time(kind: str, text: int, image: int, device: torch.device, dtype: torch.dtype) -> float:
    """Time of what DAM does inside a block over the block's own time."""
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    block, streams = _block(kind, text, image, place)
    generators = DAMGenerators(FLUX_DAM, dtype, device, comfy.ops.manual_cast)
    for weight in (*block.parameters(), *generators.of(kind, 0).parameters()):
        torch.nn.init.normal_(weight, std=0.02)
    vec = torch.randn(1, FLUX_DAM.model_width, **place)
    pe = EmbedND(_HEAD_SIZE, _ROPE_BASE, _ROPE_AXES)(torch.zeros(1, text + image, 3, device=device))
    q = torch.randn(1, HEADS, text + image, _HEAD_SIZE, **place)
    tempering, where = Tempering(generators, 1.0), {"block_type": kind, "block_index": 0}
    added = seconds(lambda: tempering.divide_queries(q, q, q, pe, None, where), device)
    return added / seconds(lambda: block(*streams, vec=vec, pe=pe, transformer_options=where), device)


def peak_memory(kind: str, with_dam: bool, dtype: torch.dtype = torch.bfloat16) -> int:
    """The most bytes that a block's tensors take at once, under the host's fused attention."""
    place: dict[str, Any] = {"device": "meta", "dtype": dtype}
    generators = DAMGenerators(FLUX_DAM, dtype, "meta", comfy.ops.disable_weight_init)
    generators.of(kind, 0).mlp_out.float()  # as the host's casting has it; there is nothing to cast here
    options: dict[str, Any] = {
        "block_type": kind,
        "block_index": 0,
        "patches": Tempering(generators, 1.0).patches({}) if with_dam else {},
        "optimized_attention_override": lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs),
    }
    pe = torch.empty(1, 1, TEXT_TOKENS + IMAGE_TOKENS, _HEAD_SIZE // 2, 2, 2, device="meta")
    with TensorMemory() as memory:
        block, streams = _block(kind, TEXT_TOKENS, IMAGE_TOKENS, place)
        weights = memory.alive - sum(stream.nbytes for stream in streams)
        block(*streams, vec=torch.empty(1, FLUX_DAM.model_width, **place), pe=pe, transformer_options=options)
    return memory.peak - weights


def _block(kind: str, text: int, image: int, place: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
    """A block of the host's without weights, and its streams in the order in which it takes them."""
    bias = {"qkv_bias": True} if kind == "double" else {}
    width, operations = FLUX_DAM.model_width, comfy.ops.disable_weight_init
    block = BLOCKS[kind](width, HEADS, mlp_ratio=4.0, operations=operations, **bias, **place)
    lengths = (image, text) if kind == "double" else (text + image,)
    return block, [torch.randn(1, length, width, **place) for length in lengths]
