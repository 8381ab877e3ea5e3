"""What one call of a U-Net works on, which is known where the sampler enters the model and no more inside.

The host crops the latent where a prompt is limited to an area, and puts prompts, pictures and areas into one call or
splits them, as memory allows. So a mask over the picture fits a call's rows only when it is known which part of the
picture each of them shows. How far the run has come is told by the noise that is left, never by counting: samplers call
the model several times a step, and a second pass begins in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .schedule import sampling_progress

KEY = "ensemble_unet_call"
_AREAS = "ensemble_unet_areas"

Size = tuple[int, int]  # height, width in latent pixels
Part = tuple[int, int, int, int]  # y, x, height, width in latent pixels


@dataclass(frozen=True)
class UNetCall:
    """One call.

    Attributes:
        progress: how far the run is, 0 at full noise and 1 at none, as on every start_percent input.
        canvas: size of the whole latent.
        parts: for each group of rows the part of the canvas it shows; None where that cannot be known, because somebody
            resized or cut the latent on the way.
        batch: rows of a group, one for each picture of the batch; groups follow each other.
    """

    progress: float
    canvas: Size
    parts: tuple[Part | None, ...]
    batch: int

    @classmethod
    def of(cls, transformer_options: Mapping[str, Any]) -> UNetCall:
        """The call that is going on."""
        return transformer_options[KEY]


def note_unet_calls(model: ModelPatcher) -> None:
    """Let every call of `model` carry its `UNetCall`; doing it twice changes nothing."""
    for kind, wrapper in ((WrappersMP.CALC_COND_BATCH, _note_areas), (WrappersMP.APPLY_MODEL, _note_call)):
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)


@dataclass(frozen=True)
class _Areas:
    """What the prompts of a step are limited to: (height, width, y, x) by prompt, or None for the whole canvas."""

    canvas: Size
    of: Mapping[UUID, Sequence[int] | None]

    def part(self, prompt: UUID | None) -> Part:
        """The part of the canvas that the host cuts out for a prompt."""
        area = None if prompt is None else self.of.get(prompt)
        if area is None:
            return (0, 0, *self.canvas)
        height, width, y, x = area
        return (y, x, min(height, self.canvas[0] - y), min(width, self.canvas[1] - x))


def _note_areas(executor: Any, *args: Any) -> Any:
    # Other wrappers may add prompts of their own, so the areas are read behind all of them.
    executor.original = partial(_with_areas, executor.original)
    return executor(*args)


def _with_areas(
    calc_cond_batch: Callable[..., Any],
    model: Any,
    conds: list[list[dict[str, Any]] | None],
    x: torch.Tensor,
    timestep: torch.Tensor,
    model_options: dict[str, Any],
) -> Any:
    found = {cond["uuid"]: cond.get("area") for prompts in conds if prompts is not None for cond in prompts}
    areas = _Areas((x.shape[-2], x.shape[-1]), found)
    options = {**model_options.get("transformer_options", {}), _AREAS: areas}
    return calc_cond_batch(model, conds, x, timestep, {**model_options, "transformer_options": options})


def _note_call(
    executor: Any,
    x: torch.Tensor,
    t: torch.Tensor,
    c_concat: torch.Tensor | None = None,
    c_crossattn: torch.Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    options = transformer_options or {}
    size = (x.shape[-2], x.shape[-1])
    areas = options.get(_AREAS) or _Areas(size, {})
    parts: tuple[Part | None, ...] = tuple(map(areas.part, options.get("uuids") or [None]))
    parts = tuple(part if part is not None and part[2:] == size else None for part in parts)
    if len(x) % len(parts):  # rows that no prompt of the host stands for
        parts = (None,)
    progress = round(sampling_progress(executor.class_obj.model_sampling, float(t.max())), 4)  # found by halving
    call = UNetCall(progress, areas.canvas, parts, len(x) // len(parts))
    return executor(x, t, c_concat, c_crossattn, control, {**options, KEY: call}, **kwargs)
