"""What one call of a FLUX model works on, which is known where the model is entered and no more inside.

Patches that place or weigh references need it at `post_input` and in the blocks, so it is noted down once a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.ldm.flux.model import Flux
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .layout import PATCH_SIZE, Grid, token_grid

KEY = "ensemble_flux_call"


def flux_network(model: ModelPatcher) -> Flux:
    """The network of a FLUX.1, whose tokens are 2 x 2 latent pixels.

    Raises:
        ValueError: it is another model; one sentence without the full stop.
    """
    network = model.model.diffusion_model
    if not isinstance(network, Flux) or network.patch_size != PATCH_SIZE:
        wanted = "FLUX.1" if isinstance(network, Flux) else "FLUX"
        raise ValueError(f"it is a {type(model.model).__name__} model; connect a {wanted} model")
    return network


@dataclass(frozen=True)
class FluxCall:
    """One call.

    Attributes:
        canvas: (H, W) of the noisy latent in tokens.
        references: (h, w) of every reference latent in order, in tokens. Those of the conditioning's layout come first;
            after them there may be copies of some, which condition positions give to the model once more.
        carried: what the conditionings brought along under keys of their own (see `carried`).
    """

    canvas: Grid
    references: tuple[Grid, ...]
    carried: Mapping[str, Any] = field(default_factory=dict, compare=False)

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
    call = FluxCall(token_grid(x), tuple(map(token_grid, ref_latents or ())), kwargs)
    options = {**(transformer_options or {}), KEY: call}
    return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)
