"""AnchorAlign (SeAl, section on geometric pre-alignment): puts the structure's subject where the appearance's subject is.

With the boxes B_s and B_a of the subject in the structure and the appearance picture, their heights h and the middles P of
their lower edges:

- scale: s = h_a / h_s
- translation: t = P_a - s P_s
- a point p of the structure picture goes to s p + t on a canvas of the appearance picture's size; what the scaled picture
  leaves free has the structure picture's own background colour

Pixels are areas: pixel i of an axis covers [i, i + 1), its centre is i + 1/2, and the box around pixels a..b is
[a, b + 1). So boxes, keypoints and pixel centres all move by the one rule above, fractions of pixels included.
`projection` does it to pictures.

Several subjects: each is cut out by its own mask, moved by its own s and t, and laid on the background; who stands lower
on the canvas is nearer and covers the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .projection import Move, Size

# A picture's background counts as plain when this share of its border is this close to one colour: drawn poses, depth maps
# and cut-outs have such borders even where a subject is cut off by the picture's edge.
PLAIN_SHARE = 0.7
PLAIN_TOLERANCE = 16 / 255


class Box(NamedTuple):
    """A subject's box in pixels, edges included as described above."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def anchor(self) -> tuple[float, float]:
        """P: the middle of the lower edge, (x, y)."""
        return (self.left + self.right) / 2, self.bottom


class CutOff(NamedTuple):
    """What of a box lies outside the canvas, as shares: of its area, and of its width or height on each side."""

    area: float
    left: float
    top: float
    right: float
    bottom: float


def align(structure: Box, appearance: Box) -> Move:
    """s = h_a / h_s and t = P_a - s P_s."""
    scale = appearance.height / structure.height
    (appearance_x, appearance_y), (structure_x, structure_y) = appearance.anchor, structure.anchor
    return Move(scale, appearance_x - scale * structure_x, appearance_y - scale * structure_y)


def moved_box(box: Box, move: Move) -> Box:
    """Where a box of the structure picture comes to lie."""
    scale, x, y = move
    return Box(scale * box.left + x, scale * box.top + y, scale * box.right + x, scale * box.bottom + y)


def cut_off(box: Box, size: Size) -> CutOff:
    """What a canvas of `size` does not show of a box."""
    height, width = size
    left, right = (min(max(0.0, over) / box.width, 1.0) for over in (-box.left, box.right - width))
    top, bottom = (min(max(0.0, over) / box.height, 1.0) for over in (-box.top, box.bottom - height))
    seen = max(0.0, 1 - left - right) * max(0.0, 1 - top - bottom)
    return CutOff(1 - seen, left, top, right, bottom)


def union(boxes: Sequence[Box]) -> Box:
    """The box around several."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def mask_box(mask: torch.Tensor) -> Box | None:
    """The box around a mask (H, W) where it is above one half; None where it nowhere is."""
    # The largest value of each line is ten times as fast to find as where the mask is above one half.
    rows, columns = ((mask.amax(dim=axis) > 0.5).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return None
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def box_mask(box: Box, size: Size) -> torch.Tensor:
    """A box as a mask: the share of each pixel that it covers, (H, W)."""
    sides = []
    for start, stop, length in ((box.top, box.bottom, size[0]), (box.left, box.right, size[1])):
        edges = torch.arange(length + 1, dtype=torch.float64).clamp(start, stop)
        sides.append(edges.diff().float())
    return sides[0][:, None] * sides[1][None, :]


def background_colour(picture: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The colour of a picture's background: the median of its outermost pixels, each channel for itself.

    Args:
        picture: (H, W, C).
        mask: (H, W), where the subject is; its pixels do not count. Where it takes the whole border, all pixels outside it
            count; where it takes the whole picture, the border counts after all.

    Returns:
        (C,)
    """
    border = _border(picture)
    if mask is not None:
        free = _border(mask[..., None])[:, 0] <= 0.5
        outside = border[free] if free.any() else picture[mask <= 0.5]
        border = outside if len(outside) else border
    return border.median(dim=0).values


def plain_subject(picture: torch.Tensor) -> torch.Tensor | None:
    """What stands out from a plain background, (H, W) of 0 and 1; None where the background is not plain."""
    border = _border(picture)
    colour = border.median(dim=0).values
    plain = ((border - colour).abs().amax(dim=-1) <= PLAIN_TOLERANCE).float().mean()
    if plain < PLAIN_SHARE:
        return None
    apart = torch.zeros(picture.shape[:2], dtype=torch.bool, device=picture.device)
    for channel, value in enumerate(colour):  # one at a time is six times as fast as a maximum over three
        apart |= (picture[..., channel] - value).abs_() > PLAIN_TOLERANCE
    return apart.to(picture.dtype)


def _border(picture: torch.Tensor) -> torch.Tensor:
    """The outermost pixels of (H, W, C): (2 H + 2 W, C)."""
    return torch.cat([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
