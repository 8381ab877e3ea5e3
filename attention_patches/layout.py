"""What a conditioning's reference latents are: role, size in tokens, and which subject of the cast they show.

FLUX sees references as tokens appended to the noisy picture's. A model patch gets numbers only, so the node that encodes
the references also writes down what they are; patches that place or weigh references read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

PATCH_SIZE = 2  # a FLUX token is 2 x 2 latent pixels
LAYOUT_KEY = "ensemble_layout"  # conditioning option: the `Layout` of its reference latents

Role = Literal["subject", "pose"]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Reference:
    """One reference latent.

    Attributes:
        role: "subject" for the picture of a cast member, "pose" for a pose map.
        grid: (h, w) in tokens.
        name, category: the subject's, empty for a pose map.
        spans: the tokens [start, stop) of the conditioning's first prompt that describe the subject, for whoever shows or
            counts them. They change with the prompt, so two references are equal whatever their spans.
    """

    role: Role
    grid: Grid
    name: str = ""
    category: str = ""
    spans: tuple[tuple[int, int], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Layout:
    """The references of one conditioning, in the order of its reference latents: subjects in cast order, then the pose map."""

    references: tuple[Reference, ...]

    @property
    def grids(self) -> tuple[Grid, ...]:
        """(h, w) in tokens of every reference."""
        return tuple(reference.grid for reference in self.references)


def token_grid(latent: torch.Tensor) -> Grid:
    """(h, w) in tokens of a latent (..., height, width); a side that is not a multiple of the patch is padded up."""
    height, width = latent.shape[-2:]
    return (-(-height // PATCH_SIZE), -(-width // PATCH_SIZE))
