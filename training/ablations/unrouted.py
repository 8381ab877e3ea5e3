"""AnyStory without its routers: every pixel attends to all subjects at once.

Eq. 5 and 6 are those of training's stage 1, where there are no routers yet (`anystory_assign.everywhere`); of several subjects,
the tokens E_i stand in one row, as the references' keys do in Eq. 6 already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...attention_patches.anystory import HOST_NEGATIVES
from ...attention_patches.anystory_assign import everywhere
from ...attention_patches.anystory_features import SubjectFeatures
from ...attention_patches.anystory_rows import RowCall, RowSubjects

KEY = "ensemble_anystory_unrouted"


def apply_unrouted(model: ModelPatcher, features: SubjectFeatures, eta: float, gamma: float) -> ModelPatcher:
    """A clone of `model` with the subjects everywhere."""
    patched = model.clone()
    patched.set_additional_models(KEY, [features.network])
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, Unrouted(features, eta, gamma).diffusion_model)
    return patched


def row_subjects(features: SubjectFeatures, negative: torch.Tensor, like: torch.Tensor) -> RowSubjects:
    """The N subjects of a call's rows; negative ones (B,) bool have the zero image's tokens, as often, and no reference."""
    count = len(features.names)
    negative = negative.to(features.tokens.device)
    there = features.tokens[:-1].flatten(0, 1)  # (N m, d_c)
    nobody = features.null_tokens.repeat(count, 1)
    tokens = torch.where(negative[:, None, None], nobody, there)[:, None]  # (B, 1, N m, d_c)
    places = torch.where(negative[:, None], count, torch.arange(count, device=negative.device))
    hidden = tuple(like.new_zeros(count, 0, 0) if states is None else states.to(like) for states in features.hidden)
    return RowSubjects(tokens.to(like), hidden, places.to(like.device))


@dataclass
class Unrouted:
    """The hook; strengths as on AnyStory."""

    features: SubjectFeatures
    eta: float
    gamma: float

    def diffusion_model(
        self,
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """DIFFUSION_MODEL wrapper."""
        options = transformer_options or {}
        prompts = options["cond_or_uncond"]
        pictures = len(x) // len(prompts)
        negative = torch.tensor([number in HOST_NEGATIVES for number in prompts]).repeat_interleave(pictures)
        call = RowCall(
            self.features.network.model, row_subjects(self.features, negative, x), everywhere, self.eta, self.gamma
        )
        return call.diffusion_model(executor, x, timesteps, context, y, control, options, **kwargs)
