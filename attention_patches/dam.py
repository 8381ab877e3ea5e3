"""DAM, Dynamic Attention Modulation (One-for-All, section 3.4): every token decides how sharply it looks.

The network is in `dam_generator`. With q, k, v a block's queries, keys and values of head size d, text and image tokens
alike, and one temperature f a token and block:

- Eq. 4: f = softplus(MLP(q)) + t_min
- Eq. 5: A = softmax(q k^T / (sqrt(d) f))

The scores of a token are a product with its query, so Eq. 5 is the plain attention of q / f: the host's own fused
attention still serves, and no matrix of scores is ever in memory. q carries the timestep through the block's modulation,
which makes f aware of timestep and layer. It is read as the host's blocks give it, after the norm of the queries and
before RoPE, which turns vectors and so commutes with the division.

Strength is an exponent, f^strength: 0 is a temperature of 1, 1 is the paper, in between the scores grow or shrink
geometrically, and no strength makes a temperature negative.

Hook: a DIFFUSION_MODEL wrapper puts a patch on the queries of that one call, in front of all others, so that f comes
from the model's own queries whatever else changes them, and nothing outlives the call. A second patch behind the
attention lets the divided queries go: the host's blocks keep what a patch returned until they end, which would add a tenth
to the memory of a double block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .dam_generator import DAMGenerators

KEY = "ensemble_dam"

_LINEAR = 40.0  # from here on softplus(x) is x to the last digit even of float64, and e^x is far from overflow


def temperature(offset: torch.Tensor, t_min: float) -> torch.Tensor:
    """f of Eq. 4, softplus(x) + t_min, from x's offset from the neutral point: o = x - softplus^-1(1 - t_min).

    Written as 1 + log1p((1 - e^(t_min - 1)) expm1(o)), which is the same number. An offset of 0 gives exactly 1 on every
    device, because expm1 and log1p of 0 are 0, where the printed form would be left to rounding.

    Args:
        offset: any shape, float32 or wider.

    Returns:
        Of the same shape and type, above t_min.
    """
    share = -math.expm1(t_min - 1)  # e^x / (1 + e^x) at the neutral point x
    curved = torch.log1p(share * torch.expm1(offset.clamp(max=_LINEAR)))
    return 1 + torch.where(offset > _LINEAR, offset + math.log(share), curved)


def strengthen(f: torch.Tensor, strength: float, t_min: float) -> torch.Tensor:
    """f^strength, not below t_min, so that a large strength cannot make half precision overflow either."""
    return f.pow(strength).clamp_min(t_min)


def divide(q: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
    """q / f, by which the host's attention computes Eq. 5; rounded once, to q's type.

    Args:
        q: (B, heads, L, d).
        f: (B, L), float32 or wider.

    Returns:
        (B, heads, L, d), q's type and memory layout.
    """
    f = f[:, None, :, None]
    if q.requires_grad or f.requires_grad:
        return (q / f).to(q.dtype)
    return torch.div(q, f, out=torch.empty_like(q))  # in one pass, without a float32 copy of half-precision queries


@dataclass
class Tempering:
    """The patches of one call.

    Attributes:
        temperature: (B, L) of the block that the call is in, with strength; None before the first.
        handed: the divided queries, from a block's patches to its attention.
    """

    generators: DAMGenerators
    strength: float
    temperature: torch.Tensor | None = None
    handed: dict[str, torch.Tensor] = field(default_factory=dict)

    def divide_queries(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        pe: torch.Tensor | None,
        attn_mask: torch.Tensor | None,
        extra_options: dict[str, Any],
    ) -> dict[str, torch.Tensor]:
        """`attn1_patch`: q (B, heads, L, d) -> q / f."""
        offset = self.generators.of(extra_options["block_type"], extra_options["block_index"])(q)
        t_min = self.generators.config.t_min
        f = strengthen(temperature(offset, t_min), self.strength, t_min)
        self.temperature = f.detach()  # kept for whoever looks at it, without what a training step holds on to
        self.handed = {"q": divide(q, f)}
        return self.handed

    def let_go(self, attention: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        """`attn1_output_patch`: nobody needs the queries any more."""
        self.handed.clear()
        return attention

    def patches(self, others: Mapping[str, Sequence[Callable[..., Any]]]) -> dict[str, Sequence[Callable[..., Any]]]:
        """The patches of a call with ours before all others."""
        ours = {"attn1_patch": self.divide_queries, "attn1_output_patch": self.let_go}
        return {**others, **{name: [patch, *others.get(name, ())] for name, patch in ours.items()}}


class DAMPatch:
    """Gives every block of a model its temperature generator."""

    def __init__(self, generators: DAMGenerators, strength: float) -> None:
        self.generators = generators
        self.strength = strength

    def temper_queries(
        self,
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
        """DIFFUSION_MODEL wrapper: divide the queries of this call; what does it is found under `KEY` in its options."""
        options = transformer_options or {}
        tempering = Tempering(self.generators, self.strength)
        options = {**options, KEY: tempering, "patches": tempering.patches(options.get("patches", {}))}
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)


def apply_dam(model: ModelPatcher, dam: ModelPatcher, strength: float) -> ModelPatcher:
    """A clone of `model` that carries the generators and divides its queries; applied twice, the last strength holds.

    Raises:
        ValueError: the model carries another DAM.
    """
    held = model.get_additional_models_with_key(KEY)
    if held and not held[0].is_clone(dam):
        raise ValueError("it already carries another DAM; use one for a model")
    patched = model.clone()
    patched.set_additional_models(KEY, [dam])
    patched.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, DAMPatch(dam.model, strength).temper_queries)
    return patched
