"""What SeAl's appearance infusion and cache cost at SDXL's dimensions: rows for ``dev.py bench``.

A step of the U-Net at 1024 x 1024 is put together from its parts: a residual block, transformer block or resampling of every
kind is timed once, at its own size, and counted as often as it occurs. Infusion adds to 46 of the 70 transformer blocks; these
are timed with and without, in turns, through the patch itself. On a CPU that takes two minutes, and a real step would not fit
the memory of many. Of caching, what it adds to a pass is timed: its keys are brought to unit length. Carrying them off to main
memory is not in it.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from comfy.model_patcher import CoreModelPatcher

from comfyui_ensemble.attention_patches.appearance_cache import cached_layers
from comfyui_ensemble.attention_patches.appearance_infusion import CONSTANT, Schedule
from comfyui_ensemble.attention_patches.appearance_patch import InfusionPatch, Settings, Source
from comfyui_ensemble.attention_patches.appearance_tokens import Appearance, AppearanceTokens, Tokens
from comfyui_ensemble.attention_patches.unet_call import KEY, UNetCall
from comfyui_ensemble.attention_patches.unet_layers import AttentionLayer, attention_modules

from .bench_row import AT_MOST, SHARE, Row
from .real_sdxl import real_sdxl_unet
from .tensor_memory import TensorMemory

LATENT = 128  # 1024 x 1024 pixels
TEXT_TOKENS, TEXT_WIDTH, VECTOR = 77, 2048, 2816
PARTS = (ResBlock, BasicTransformerBlock, Downsample, Upsample)
PROMISED, PROMISED_CACHE = 0.10, 1.05
REPEATS = 3

Place = dict[str, Any]


def rows() -> list[Row]:
    """The share of a step that infusion adds, with one appearance and with two; its memory; a caching pass over a plain one."""
    device = comfy.model_management.get_torch_device()
    place = {"device": device, "dtype": torch.float32 if device.type == "cpu" else torch.float16}
    with torch.inference_mode():
        unet = real_sdxl_unet("meta", place["dtype"])
        step = _step_seconds(unet, place)
        one, two, kept = (_added(unet, place, prepare) for prepare in (_one, _two_halves, None))
        memory = _memory(unet, place)
    found = [
        ("infusion", "infusion in a step of SDXL at 1024 x 1024", SHARE, one / step, PROMISED),
        ("two_appearances", "infusion of 2 appearances, half the picture each", SHARE, two / step, PROMISED),
        ("memory", "infusion's peak memory in the block that takes most", SHARE, memory, PROMISED),
        ("caching", "caching a timestep over a plain pass", "x", 1 + kept / step, PROMISED_CACHE),
    ]
    return [
        Row(f"seal.{id}", f"SeAl, {name}", unit, ratio, bound, AT_MOST, str(device))
        for id, name, unit, ratio, bound in found
    ]


def _step_seconds(unet: UNetModel, place: Place) -> float:
    """Seconds of all parts of one pass, each kind timed once."""
    kinds: Counter[tuple[Any, ...]] = Counter()
    examples: dict[tuple[Any, ...], tuple[torch.nn.Module, Any, Any]] = {}

    def note(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        shapes = tuple(tuple(value.shape) for value in (*args, *module.parameters()) if isinstance(value, torch.Tensor))
        kinds[type(module), shapes] += 1
        examples.setdefault((type(module), shapes), (module, args, kwargs))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in unet.modules()
        if isinstance(module, PARTS)
    ]
    like = {"device": "meta", "dtype": place["dtype"]}
    unet(
        torch.empty(1, 4, LATENT, LATENT, **like),
        torch.empty(1, device="meta"),
        torch.empty(1, TEXT_TOKENS, TEXT_WIDTH, **like),
        torch.empty(1, VECTOR, **like),
        transformer_options={"optimized_attention_override": lambda attention, q, k, v, *args, **kwargs: q},
    )
    for hook in hooks:
        hook.remove()
    return sum(count * _part_seconds(*examples[kind], place) for kind, count in kinds.items())


def _part_seconds(module: torch.nn.Module, args: Any, kwargs: Any, place: Place) -> float:
    part = _real(module, place)
    args = [torch.randn(value.shape, **place) if isinstance(value, torch.Tensor) else value for value in args]
    kwargs = {
        name: torch.randn(value.shape, **place) if isinstance(value, torch.Tensor) else value
        for name, value in kwargs.items()
        if name != "transformer_options"
    }
    return _paired(place["device"], lambda: part(*args, **kwargs))[0]


def _real(module: torch.nn.Module, place: Place) -> torch.nn.Module:
    """A copy of a module of the meta device, with weights."""
    part = copy.deepcopy(module).to_empty(device=place["device"])
    for weight in part.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return part


def _blocks(unet: UNetModel) -> list[tuple[AttentionLayer, BasicTransformerBlock, int]]:
    """A cached layer of every width, its module, and how many cached layers there are like it."""
    layers = cached_layers(unet)
    modules = dict(attention_modules(unet))
    first = {layer.width: layer for layer in reversed(layers)}
    return [(layer, modules[layer], sum(other.width == width for other in layers)) for width, layer in first.items()]


def _added(unet: UNetModel, place: Place, prepare: Callable[[Place, AttentionLayer], InfusionPatch] | None) -> float:
    """Seconds that infusion adds to a step; without `prepare`, those that caching adds."""
    total = 0.0
    for layer, module, count in _blocks(unet):
        block = _real(module, place)
        if prepare is None:
            keys = torch.randn((LATENT // layer.factor) ** 2, layer.width, **place)
            total += count * _paired(place["device"], partial(Tokens.of, keys, keys))[0]
            continue
        plain, infused = _paired(place["device"], *_calls(block, prepare(place, layer), layer, place))
        total += count * (infused - plain)
    return total


def _calls(
    block: torch.nn.Module, patch: InfusionPatch, layer: AttentionLayer, place: Place
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A transformer block as it is, and with infusion."""
    side = LATENT // layer.factor
    x = torch.randn(1, side * side, layer.width, **place)
    text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, **place)
    call = UNetCall(1.0, (LATENT, LATENT), ((0, 0, LATENT, LATENT),), 1)
    options = {
        KEY: call,
        "block": layer.block[:2],
        "block_index": layer.block[2],
        "activations_shape": [1, layer.width, side, side],
    }

    def run(x: Any, timesteps: Any, context: Any, y: Any, control: Any, options: dict[str, Any]) -> torch.Tensor:
        return block(x, context, transformer_options=options)

    return (
        lambda: run(x, None, text, None, None, dict(options)),
        lambda: patch.diffusion_model(run, x, None, text, None, None, dict(options)),
    )


def _one(place: Place, layer: AttentionLayer) -> InfusionPatch:
    return InfusionPatch([Source(_appearance(place, layer))], _SETTINGS)


def _two_halves(place: Place, layer: AttentionLayer) -> InfusionPatch:
    left = torch.zeros(LATENT, LATENT)
    left[:, : LATENT // 2] = 1
    appearance = _appearance(place, layer)
    return InfusionPatch([Source(appearance, left), Source(appearance, 1 - left)], _SETTINGS)


_SETTINGS = Settings(Schedule(0.0, 0.0, 3.0, 3.0, CONSTANT))  # random cosines are small: all places pass a tau of 0


def _appearance(place: Place, layer: AttentionLayer) -> Appearance:
    """One layer of a cache of a 1024 x 1024 picture."""
    count = (LATENT // layer.factor) ** 2
    tokens = Tokens.of(torch.randn(count, layer.width, **place), torch.randn(count, layer.width, **place))
    network = AppearanceTokens("SDXL", [layer], [1.0], [{layer.block: tokens}])
    return Appearance(CoreModelPatcher(network, place["device"], place["device"]))


def _memory(unet: UNetModel, place: Place) -> float:
    """How much more than without is alive at the peak of the block with the most tokens; the cache itself not counted."""
    layer, module, _ = max(_blocks(unet), key=lambda entry: -entry[0].factor)
    peaks = []
    for call in _calls(_real(module, place), _one(place, layer), layer, place):
        with TensorMemory() as memory:
            call()
        peaks.append(memory.peak)
    return peaks[1] / peaks[0] - 1


def _paired(device: torch.device, *calls: Callable[[], Any]) -> list[float]:
    """Seconds of each call at best, taken in turns; of the processor's own time on a CPU, where others may be at work."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for call, taken in zip(calls, times, strict=True):
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(clock() - start)
    return [min(taken) for taken in times]
