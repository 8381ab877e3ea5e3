"""Puts a picture, scaled and moved by fractions of pixels, onto a canvas.

A point p of the picture goes to s p + t. Pixels are areas: pixel i of an axis covers [i, i + 1), its centre is i + 1/2. A
canvas pixel takes the mean of the picture around the point it comes from, weighted by a triangle as wide as one pixel of the
coarser of the two grids: bilinear when enlarging, free of aliases when shrinking, never brighter or darker than the picture
itself, and at s = 1 and whole t an exact copy. Beyond the picture's edge lies one colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

Size = tuple[int, int]  # height, width
STRIP = 64  # canvas rows worked on at once


class Move(NamedTuple):
    """p' = scale p + (x, y)."""

    scale: float
    x: float
    y: float


def project(picture: torch.Tensor, move: Move, size: Size, outside: torch.Tensor) -> torch.Tensor:
    """A picture scaled and moved onto a canvas.

    Args:
        picture: (H, W, C).
        size: height and width of the canvas.
        outside: (C,), what lies beyond the picture's edge.

    Returns:
        (height, width, C), of the picture's type.
    """
    rows, columns = _axes(picture, move, size)
    canvas, outside = picture.new_empty((*size, picture.shape[-1])), outside.to(picture)
    canvas[: rows.start] = canvas[rows.stop :] = outside
    beside = canvas[rows.start : rows.stop]
    beside[:, : columns.start] = beside[:, columns.stop :] = outside
    for place, strip in _strips(picture, rows, columns, outside):
        canvas[place] = strip
    return canvas


def project_mask(mask: torch.Tensor, move: Move, size: Size) -> torch.Tensor:
    """A mask (H, W) scaled and moved onto a canvas of nothing, (height, width)."""
    canvas = mask.new_zeros(size)
    corner, cut = _cut(mask, move)
    cut_out = mask[cut][..., None]
    for place, strip in _strips(cut_out, *_axes(cut_out, corner, size), mask.new_zeros(1)):
        canvas[place] = strip[..., 0]
    return canvas


def project_cast(
    picture: torch.Tensor,
    masks: torch.Tensor,
    moves: Sequence[Move],
    size: Size,
    background: torch.Tensor,
    far_to_near: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Several subjects of one picture, each moved for itself.

    Args:
        picture: (H, W, C).
        masks: (N, H, W), who is where.
        moves: one a subject.
        background: (C,)
        far_to_near: the subjects' numbers; later ones cover earlier ones.

    Returns:
        (height, width, C), and what is to be seen of each subject, (N, height, width).
    """
    canvas = background.to(picture).expand(*size, -1).clone()
    seen = masks.new_zeros((len(masks), *size))
    nothing = picture.new_zeros(picture.shape[-1] + 1)
    for number in far_to_near:
        corner, cut = _cut(masks[number], moves[number])
        mask = masks[number][cut][..., None].to(picture)
        cut_out = torch.cat([picture[cut] * mask, mask], dim=-1)  # premultiplied: no colour of elsewhere bleeds in
        for place, strip in _strips(cut_out, *_axes(cut_out, corner, size), nothing):
            cover = strip[..., -1]
            canvas[place] = canvas[place] * (1 - cover[..., None]) + strip[..., :-1]
            seen[(slice(None), *place)] *= 1 - cover
            seen[(number, *place)] = cover.to(seen)
    return canvas, seen


Place = tuple[slice, slice]  # rows and columns


def _cut(mask: torch.Tensor, move: Move) -> tuple[Move, Place]:
    """Where a mask (H, W) is not zero, and the move of what is cut out there."""
    cut = []
    for axis in (1, 0):
        places = mask.amax(dim=axis).nonzero()[:, 0]
        cut.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 1))
    rows, columns = cut
    return Move(move.scale, move.x + move.scale * columns.start, move.y + move.scale * rows.start), (rows, columns)


def _axes(picture: torch.Tensor, move: Move, size: Size) -> tuple[_Taps, _Taps]:
    """Rows and columns of the canvas that a picture (H, W, C) reaches."""
    return (
        _taps(move.scale, move.y, picture.shape[0], size[0], picture.device),
        _taps(move.scale, move.x, picture.shape[1], size[1], picture.device),
    )


def _strips(
    picture: torch.Tensor, rows: _Taps, columns: _Taps, outside: torch.Tensor
) -> Iterator[tuple[Place, torch.Tensor]]:
    """What the canvas shows of a picture (H, W, C), from top to bottom: places, and (h, w, C) float32 for each.

    Strips fit the processor's caches, and need little memory.
    """
    height, width, channels = picture.shape
    columns = columns.spread(channels)
    lines = picture.float().reshape(height, width * channels)
    outside = outside.float().repeat(columns.stop - columns.start)  # (w * C,)
    beside, above_or_below = (1 - columns.inside) * outside, columns.inside * outside
    for start in range(rows.start, rows.stop, STRIP):
        strip = rows.part(start, min(start + STRIP, rows.stop))
        mixed = columns.mix(strip.mix_rows(lines)).add_(beside)
        mixed.addcmul_(1 - strip.inside[:, None], above_or_below)
        yield (
            (slice(strip.start, strip.stop), slice(columns.start, columns.stop)),
            mixed.view(len(mixed), -1, channels),
        )


class _Taps(NamedTuple):
    """For every canvas pixel start..stop of an axis, which K picture pixels it is the mean of."""

    start: int
    stop: int
    index: torch.Tensor  # (n, K)
    weight: torch.Tensor  # (n, K), sums to `inside`
    inside: torch.Tensor  # (n,) the weight that falls within the picture

    def part(self, start: int, stop: int) -> _Taps:
        """Of some of the canvas pixels."""
        cut = slice(start - self.start, stop - self.start)
        return _Taps(start, stop, self.index[cut], self.weight[cut], self.inside[cut])

    def spread(self, channels: int) -> _Taps:
        """For an axis whose pixels are `channels` numbers one after the other: n * channels entries."""
        index = self.index[:, None] * channels + torch.arange(channels, device=self.index.device)[:, None]  # (n, C, K)
        weight, inside = (values.repeat_interleave(channels, dim=0) for values in (self.weight, self.inside))
        return self._replace(index=index.flatten(0, 1), weight=weight, inside=inside)

    def mix_rows(self, lines: torch.Tensor) -> torch.Tensor:
        """(picture rows, M) -> (n, M)."""
        return torch.nn.functional.embedding_bag(self.index, lines, per_sample_weights=self.weight, mode="sum")

    def mix(self, lines: torch.Tensor) -> torch.Tensor:
        """(M, picture columns) -> (M, n)."""
        taps = zip(self.index.t().contiguous(), self.weight.t().contiguous(), strict=True)
        index, weight = next(taps)
        mixed = lines.index_select(1, index).mul_(weight)
        for index, weight in taps:
            mixed.addcmul_(lines.index_select(1, index), weight)
        return mixed


def _taps(scale: float, shift: float, length: int, canvas: int, device: torch.device) -> _Taps:
    """Triangle weights of one axis; only canvas pixels that the picture reaches are listed."""
    half_width = max(1.0, 1 / scale)  # of the triangle, in picture pixels
    reach = scale * half_width
    start = min(max(0, math.floor(shift - reach)), canvas)
    stop = max(start, min(canvas, math.ceil(shift + scale * length + reach)))
    centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5 - shift) / scale - 0.5
    first = torch.floor(centre - half_width).long() + 1
    index = first[:, None] + torch.arange(math.ceil(2 * half_width))
    weight = (1 - (index - centre[:, None]).abs() / half_width).clamp(min=0)
    weight = weight / weight.sum(dim=1, keepdim=True)
    weight = torch.where((index >= 0) & (index < length), weight, 0.0).float()
    index = index.clamp(0, length - 1)
    return _Taps(start, stop, index.to(device), weight.to(device), weight.sum(dim=1).to(device))
