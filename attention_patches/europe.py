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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from .flux_call import FluxCall, note_flux_calls
from .layout import Grid, Layout, Reference

EUROPE = "EURoPE"
SYMMETRIC_ROPE = "symmetric RoPE"
SYMMETRIC_UNOPE = "symmetric UnoPE"
MODES = (EUROPE, SYMMETRIC_ROPE, SYMMETRIC_UNOPE)

KEY = "ensemble_europe"


def grid_ids(grid: Grid, origin: Grid = (0, 0), device: torch.device | None = None) -> torch.Tensor:
    """Ids (0, origin_y + y, origin_x + x) of a grid of h x w tokens in reading order: (h * w, 3) float32."""
    height, width = grid
    ids = torch.zeros((height, width, 3), device=device, dtype=torch.float32)
    ids[..., 1] = torch.arange(origin[0], origin[0] + height, device=device, dtype=torch.float32)[:, None]
    ids[..., 2] = torch.arange(origin[1], origin[1] + width, device=device, dtype=torch.float32)[None, :]
    return ids.reshape(-1, 3)


def covering_ids(grid: Grid, canvas: Grid, device: torch.device | None = None) -> torch.Tensor:
    """Ids of a grid stretched over the canvas, token centres on token centres: (h * w, 3) float32.

    y' = (y + 1/2) H / h - 1/2, likewise x; the canvas's own ids where the two grids are equal.
    """
    ids = grid_ids(grid, device=device)
    for axis, (own, whole) in enumerate(zip(grid, canvas, strict=True), start=1):
        ids[:, axis] = (ids[:, axis] + 0.5) * (whole / own) - 0.5
    return ids


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
    parts = [torch.zeros((0, 3), device=device)]
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
    return torch.cat(parts)


def scale_ids(ids: torch.Tensor, rope_options: dict[str, float]) -> torch.Tensor:
    """Ids under the host's "Scale RoPE" node, whose scale and shift hold for the whole coordinate system."""
    scale = [1.0, rope_options.get("scale_y", 1.0), rope_options.get("scale_x", 1.0)]
    shift = [rope_options.get(f"shift_{axis}", 0.0) for axis in "tyx"]
    return ids * ids.new_tensor(scale) + ids.new_tensor(shift)


@dataclass(frozen=True)
class Placement:
    """A layout and the mode in which its references are placed."""

    layout: Layout
    mode: str


class EURoPEPatch:
    """Rewrites the ids of reference tokens; everything else of the call is left as it is.

    Several conditionings with different references can meet in one model, so the patch holds a placement for each and
    picks by the references that a call really carries. A call without references is passed on untouched.
    """

    def __init__(self, placements: Sequence[Placement]) -> None:
        self.placements = tuple(placements)

    def post_input(self, args: dict[str, Any]) -> dict[str, Any]:
        """`post_input` patch: give the reference tokens their ids."""
        call = FluxCall.of(args["transformer_options"])
        canvas = call.canvas
        if not call.references:
            return args
        placement = self._placement(call.references, canvas)
        img_ids = args["img_ids"]  # (B, canvas + reference tokens, axes)
        ids = reference_ids(placement.layout.references, canvas, placement.mode, img_ids.device)
        rope_options = args["transformer_options"].get("rope_options")
        if rope_options is not None:
            ids = scale_ids(ids, rope_options)
        placed = img_ids.clone()
        placed[:, canvas[0] * canvas[1] :, :3] = ids
        return {**args, "img_ids": placed}

    def _placement(self, grids: tuple[Grid, ...], canvas: Grid) -> Placement:
        for placement in self.placements:
            if placement.layout.grids == grids:
                _check_sizes(placement.layout, canvas)
                return placement
        raise ValueError(
            f"EURoPE: the sampler's conditioning carries references of {_spell(grids)} tokens, the connected layout"
            f" describes {_spell(self.placements[-1].layout.grids)}; connect the layout of the same Reference Latents node."
        )


def apply_europe(model: ModelPatcher, layout: Layout, mode: str) -> ModelPatcher:
    """A clone of `model` that places the references of `layout`; a placement already there for other references stays."""
    patched = model.clone()
    earlier = model.get_attachment(KEY)
    held = earlier.placements if earlier is not None else ()
    europe = EURoPEPatch([*(place for place in held if place.layout.grids != layout.grids), Placement(layout, mode)])
    if earlier is not None:
        patches = patched.model_options["transformer_options"]["patches"]
        patches["post_input"] = [patch for patch in patches["post_input"] if patch != earlier.post_input]
    patched.set_attachments(KEY, europe)
    patched.set_model_post_input_patch(europe.post_input)
    note_flux_calls(patched)
    return patched


def _check_sizes(layout: Layout, canvas: Grid) -> None:
    for reference in layout.references:
        if reference.role == "subject" and reference.grid[0] * reference.grid[1] > canvas[0] * canvas[1]:
            raise ValueError(
                f"EURoPE: the reference of '{reference.name}' ({_spell([reference.grid])} tokens) is larger than the canvas"
                f" ({_spell([canvas])}); lower reference_size on Reference Latents or enlarge the latent."
            )


def _spell(grids: Sequence[Grid]) -> str:
    return ", ".join(f"{height} x {width}" for height, width in grids) or "no"
