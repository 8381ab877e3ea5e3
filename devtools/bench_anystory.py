"""What AnyStory's routing and injection cost at SDXL's dimensions: rows for ``dev.py bench``.

Timed are the host's own transformer blocks at the shapes of one 1024 x 1024 picture, with and without the steps that AnyStory
puts in front of their two attentions: 10 blocks of width 640 on 64 x 64 pixels and 60 of width 1280 on 32 x 32. A step is
their sum; all that stands between them, a sixth of SDXL's work, is left out, and so is the negative prompt, which has no
references: both make AnyStory look worse. Then Eq. 5-8 alone, for areas and casts of our choosing, counted and timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, optimized_attention
from comfy.model_patcher import CoreModelPatcher
from torch.utils.flop_counter import FlopCounterMode

from comfyui_ensemble.attention_patches.anystory_call import Call, Settings
from comfyui_ensemble.attention_patches.anystory_entries import Entries
from comfyui_ensemble.attention_patches.anystory_features import SubjectFeatures
from comfyui_ensemble.attention_patches.anystory_injection import (
    AnyStoryInjection,
    reference_attention,
    subject_attention,
)
from comfyui_ensemble.attention_patches.anystory_network import SDXL_ANYSTORY, base_layers
from comfyui_ensemble.attention_patches.anystory_router import AnyStoryRouters, fresh_routers
from comfyui_ensemble.attention_patches.anystory_routing import CallRouting, split_by_owner
from comfyui_ensemble.attention_patches.attention_chain import ROUTED, add_steps
from comfyui_ensemble.attention_patches.unet_layers import AttentionLayer
from devtools.bench_row import AT_MOST, Row

LATENT = 128  # 1024 x 1024 pixels
REFERENCE_LATENT = SDXL_ANYSTORY.reference_size // 8
TEXT_TOKENS = 77
SHORT_SIDE, SHORT_HEADS = LATENT // 4, 20  # of most layers
REFERENCE_TOKENS = (REFERENCE_LATENT // 4) ** 2
MANY = 12
AREAS = (0.1, 0.4, 0.8)
PROMISED_STEP = 1.35
PROMISED_FEW = 1.35  # of plain self-attention
PROMISED_MANY = 1.5  # of a small cast's time on the same area: own keys are copied for every subject
ROUNDING = 0.005  # a picture has whole pixels
REPEATS, REPEATS_OF_SHORT = 3, 15


def rows() -> list[Row]:
    """A step's time with two subjects over a plain one; how the added time grows with area and with the cast."""
    device = comfy.model_management.get_torch_device()
    place: dict[str, Any] = {"device": device, "dtype": torch.float32 if device.type == "cpu" else torch.float16}
    with torch.inference_mode():
        return [_step(place), *_growth(place)]


def _step(place: dict[str, Any]) -> Row:
    layers = base_layers(SDXL_ANYSTORY)
    plain = routed = 0.0
    for width in sorted({layer.width for layer in layers}):
        alike = [number for number, layer in enumerate(layers) if layer.width == width]
        times = _block_times(layers[alike[1]], alike[1], place)
        plain, routed = plain + len(alike) * times[0], routed + len(alike) * times[1]
    name = f"AnyStory, 2 subjects, {len(layers)} transformer blocks of an SDXL step at 1024 x 1024"
    return _row("step", name, routed / plain, PROMISED_STEP, place)


def _block_times(layer: AttentionLayer, number: int, place: dict[str, Any]) -> tuple[float, float]:
    """Seconds of one transformer block without and with AnyStory, the subjects on about two thirds of it."""
    side = LATENT // layer.factor
    context = SDXL_ANYSTORY.text_width
    block = BasicTransformerBlock(
        layer.width, layer.heads, layer.head_width, context_dim=context, operations=comfy.ops.manual_cast, **place
    )
    features = _features(layer, number, place)
    for name, weight in [*block.named_parameters(), *features.network.model.injection.named_parameters()]:
        if weight.ndim == 1:  # of a norm, or a bias
            torch.nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1.0)
        else:
            torch.nn.init.normal_(weight, std=0.02)
    entries = Entries(features)
    call = Call(Settings(1.0, 0.0), entries, 1, [0], CallRouting(entries.entry_of))
    where = {"block": layer.block[:2], "block_index": layer.block[2], "activations_shape": [1, layer.width, side, side]}
    options: dict[str, Any] = {**where, "patches": {"attn2_patch": [call.see]}}
    options = add_steps(options, "attn2", {layer.block: partial(call.cross_attention, layer)}, ROUTED)
    options = add_steps(options, "attn1", {layer.block: partial(call.self_attention, layer, number, True)}, ROUTED)
    x = torch.randn(1, side * side, layer.width, **place)
    text = torch.randn(1, TEXT_TOKENS, context, **place)
    plain, routed = _paired(
        REPEATS,
        place["device"],
        lambda: block(x, text, transformer_options=dict(where)),
        lambda: block(x, text, transformer_options=options),
    )
    return plain, routed


def _features(layer: AttentionLayer, number: int, place: dict[str, Any]) -> SubjectFeatures:
    """Two subjects as one layer needs them."""
    config, device = SDXL_ANYSTORY, place["device"]
    module = torch.nn.Module()
    first = AttentionLayer(("input", 0, 0), 64, 1, 64, None, 1)
    module.injection = AnyStoryInjection([first, layer], config.text_width, operations=comfy.ops.manual_cast, **place)
    module.routers = AnyStoryRouters([layer], config.router_width, operations=comfy.ops.manual_cast, **place)
    module.routers.load_state_dict(fresh_routers([layer], config.router_width, 0))  # which deals the pixels out evenly
    tokens = torch.randn(3, config.queries, config.text_width, **place)
    hidden = torch.randn(2, (REFERENCE_LATENT // layer.factor) ** 2, layer.width, **place)
    network = CoreModelPatcher(module, load_device=device, offload_device=device)
    router = torch.randn(3, config.router_width, device=device)
    states = (*[None] * number, hidden)
    return SubjectFeatures(("a", "b"), tokens, tokens[-1], router, states, network)


def _growth(place: dict[str, Any]) -> list[Row]:
    """All of Eq. 5-8 at the shape of 60 of the 70 layers: by the area, and by the cast on the same area.

    Arithmetic is counted for what it should be to the digit; time is taken in the middle.
    """
    plain = _plain(place)
    found = []
    for area in AREAS:
        ratio = _arithmetic(_injecting(2, area, place)) / _arithmetic(plain)
        expected = 1 + (SDXL_ANYSTORY.queries + area * REFERENCE_TOKENS) / SHORT_SIDE**2
        name = f"AnyStory, Eq. 5-8 over plain self-attention, 2 subjects on {area:.0%} of the picture, arithmetic"
        found.append(_row(f"area_{100 * area:.0f}_arithmetic", name, ratio, expected + ROUNDING, place))
    middle = AREAS[len(AREAS) // 2]
    few, many = (_injecting(count, middle, place) for count in (2, MANY))
    times = _paired(REPEATS_OF_SHORT, place["device"], plain, few, many)
    name = f"AnyStory, Eq. 5-8, 2 subjects on {middle:.0%} over plain self-attention, time"
    found.append(_row("few_time", name, times[1] / times[0], PROMISED_FEW, place))
    name = f"AnyStory, Eq. 5-8, {MANY} subjects over 2 on the same {middle:.0%}"
    counted = _arithmetic(many) / _arithmetic(few)
    found.append(_row("many_arithmetic", f"{name}, arithmetic", counted, 1 + ROUNDING, place))
    found.append(_row("many_time", f"{name}, time", times[2] / times[1], PROMISED_MANY, place))
    return found


def _row(id: str, name: str, ratio: float, promised: float, place: dict[str, Any]) -> Row:
    return Row(f"anystory.{id}", name, "x", ratio, promised, AT_MOST, str(place["device"]))


def _plain(place: dict[str, Any]) -> Callable[[], Any]:
    q, k, v = _queries_keys_values(place)
    return lambda: _attention(q, k, v, None)


def _queries_keys_values(place: dict[str, Any]) -> list[torch.Tensor]:
    return [torch.randn(1, SHORT_SIDE**2, SHORT_HEADS * 64, **place) for _ in range(3)]


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return optimized_attention(q, k, v, SHORT_HEADS, mask=mask)


def _injecting(subjects: int, area: float, place: dict[str, Any]) -> Callable[[], Any]:
    """Eq. 5 and Eq. 6-8, with the subjects side by side on a share of the picture."""
    q, k, v = _queries_keys_values(place)

    def pairs(count: int, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shape = (tokens, SHORT_HEADS * 64)
        return [(torch.randn(*shape, **place), torch.randn(*shape, **place)) for _ in range(count)]

    entries = pairs(subjects + 1, SDXL_ANYSTORY.queries)
    references = [*pairs(subjects, REFERENCE_TOKENS), None]
    owners = torch.arange(SHORT_SIDE**2, device=place["device"]) * subjects // round(area * SHORT_SIDE**2)
    owners = owners.clamp(max=subjects)[None]

    def injecting() -> None:
        members = dict(enumerate(split_by_owner(owners, subjects + 1)))
        subject_attention(_attention, q, members, entries, entries[-1])
        reference_attention(_attention, q, k, v, members, references, 0.0)

    return injecting


def _arithmetic(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _paired(repeats: int, device: torch.device, *calls: Callable[[], Any]) -> list[float]:
    """Seconds of each call at best, taken in turns; of the processor's own time on a CPU, where others may be at work."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(clock() - start)
    return [min(taken) for taken in times]
