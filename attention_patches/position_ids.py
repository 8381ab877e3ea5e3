"""Position ids (t, y, x), by which FLUX's attention finds a token: those of grids of tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .layout import Grid


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


def scale_ids(ids: torch.Tensor, rope_options: Mapping[str, float] | None) -> torch.Tensor:
    """Ids under the host's "Scale RoPE" node, whose scale and shift hold for the whole coordinate system."""
    if rope_options is None:
        return ids
    scale = [1.0, rope_options.get("scale_y", 1.0), rope_options.get("scale_x", 1.0)]
    shift = [rope_options.get(f"shift_{axis}", 0.0) for axis in "tyx"]
    return ids * ids.new_tensor(scale) + ids.new_tensor(shift)
