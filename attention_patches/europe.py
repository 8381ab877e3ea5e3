"""EURoPE, Enhanced Universal Rotary Position Embedding (ASTRA, section 3.2).

Attention finds a token by its position id (t, y, x). EURoPE is asymmetric: a subject's reference is moved off the canvas,
so that "who" carries no "where", while the pose map takes the very ids of the canvas, so that every pose token is bound to
the place it describes. With a canvas of H x W tokens and references of h_i x w_i:

- canvas: (0, y, x)
- reference i, UnoPE: (0, H + sum_{j<i} h_j + y, W + sum_{j<i} w_j + x); the offsets grow along both axes, so no two tokens
  of canvas and references share an id
- pose map of h_p x w_p: (0, (y + 1/2) H / h_p - 1/2, (x + 1/2) W / w_p - 1/2), which is (0, y, x) at the canvas's own size

The two symmetric modes are rows (b) and (c) of the paper's Table 4: every condition on the canvas's ids, and every
condition, the pose map too, off the canvas. UnoPE: Wu et al., "Less-to-More Generalization" (UNO), 2025.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher

from .layout import Grid, Layout, Reference, Role
from .position_ids import covering_ids, grid_ids
from .reference_positions import Placement, place, spell_grids

EUROPE = "EURoPE"
SYMMETRIC_ROPE = "symmetric RoPE"
SYMMETRIC_UNOPE = "symmetric UnoPE"
MODES = (EUROPE, SYMMETRIC_ROPE, SYMMETRIC_UNOPE)


def reference_ids(
    references: Sequence[Reference], canvas: Grid, mode: str, device: torch.device | None = None
) -> torch.Tensor:
    """Position ids of all reference tokens of one conditioning, in order.

    Args:
        references: the layout's references.
        canvas: (H, W) of the noisy latent in tokens.
        mode: one of `MODES`.

    Returns:
        (sum of h_i * w_i, 3) float32, columns t, y, x.
    """
    return torch.cat([torch.zeros((0, 3), device=device), *_each_reference(references, canvas, mode, device)])


def _each_reference(
    references: Sequence[Reference], canvas: Grid, mode: str, device: torch.device | None
) -> list[torch.Tensor]:
    parts = []
    origin_y, origin_x = canvas
    for reference in references:
        bound_to_canvas = mode == SYMMETRIC_ROPE or (mode == EUROPE and reference.role == "pose")
        if not bound_to_canvas:
            parts.append(grid_ids(reference.grid, (origin_y, origin_x), device))
            origin_y, origin_x = origin_y + reference.grid[0], origin_x + reference.grid[1]
        elif reference.role == "pose":
            parts.append(covering_ids(reference.grid, canvas, device))
        else:
            parts.append(grid_ids(reference.grid, device=device))
    return parts


@dataclass(frozen=True)
class EURoPEPlacement(Placement):
    """The references of a layout under EURoPE, in one of its modes."""

    NAME = "EURoPE"
    PRECEDENCE = {"subject": 0, "pose": 1}  # noqa: RUF012 (a ClassVar of the base class)

    mode: str

    def describes(self, layout: Layout) -> bool:
        return [reference.role for reference in layout.references] == [entry.role for entry in self.layout.references]

    def reference_ids(self, canvas: Grid, roles: Collection[Role], device: torch.device) -> list[torch.Tensor]:
        if "subject" in roles:
            _check_sizes(self.layout, canvas)
        return _each_reference(self.layout.references, canvas, self.mode, device)


def apply_europe(model: ModelPatcher, layout: Layout, mode: str) -> ModelPatcher:
    """A clone of `model` that places the references of `layout`; a placement already there for other references stays."""
    return place(model, EURoPEPlacement(layout, mode))


def larger_than(canvas: Grid, layout: Layout) -> Reference | None:
    """The first subject's reference that is larger than the canvas, which EURoPE has no place for."""
    subjects = [reference for reference in layout.references if reference.role == "subject"]
    return next((each for each in subjects if each.grid[0] * each.grid[1] > canvas[0] * canvas[1]), None)


def _check_sizes(layout: Layout, canvas: Grid) -> None:
    reference = larger_than(canvas, layout)
    if reference is not None:
        raise ValueError(
            f"EURoPE: the reference of '{reference.name}' ({spell_grids([reference.grid])} tokens) is larger than the canvas"
            f" ({spell_grids([canvas])}); lower reference_size on Reference Latents or enlarge the latent."
        )
