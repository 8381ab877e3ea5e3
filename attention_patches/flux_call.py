"""What one call of a FLUX model works on: the latents' sizes, which are known where the model is entered and no more inside.

Patches that place or weigh references need them at `post_input` and in the blocks, so they are noted down once a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .layout import Grid, token_grid

KEY = "ensemble_flux_call"


@dataclass(frozen=True)
class FluxCall:
    """Sizes in tokens: (H, W) of the noisy latent, (h, w) of every reference latent in order."""

    canvas: Grid
    references: tuple[Grid, ...]

    @classmethod
    def of(cls, transformer_options: Mapping[str, Any]) -> FluxCall:
        """The call that is going on."""
        return transformer_options[KEY]


def note_flux_calls(model: ModelPatcher) -> None:
    """Let every call of `model` carry its `FluxCall`; doing it twice changes nothing."""
    model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _note)


def _note(
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    y: torch.Tensor | None = None,
    guidance: torch.Tensor | None = None,
    ref_latents: list[torch.Tensor] | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    call = FluxCall(token_grid(x), tuple(map(token_grid, ref_latents or ())))
    options = {**(transformer_options or {}), KEY: call}
    return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)
