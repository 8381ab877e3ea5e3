"""The loss over the steps, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = (640, 360)
SMOOTH = 0.02  # share of the run over which the strong line averages
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 30, 20, 34  # margins
_PAPER, _GRID, _INK, _FAINT, _LINE = (255, 255, 255), (226, 229, 235), (60, 64, 72), (178, 198, 234), (28, 88, 200)


def loss_plot(entries: Sequence[Mapping[str, float]]) -> Image.Image:
    """The losses of a log's entries: pale as they were, strong averaged; where they span decades, on a logarithmic scale."""
    picture = Image.new("RGB", SIZE, _PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    steps = np.array([entry["step"] for entry in entries], dtype=np.float64)
    losses = np.array([entry["loss"] for entry in entries], dtype=np.float64)
    finite = np.isfinite(losses)
    steps, losses = steps[finite], losses[finite]
    if not len(losses):
        draw.text((SIZE[0] / 2, SIZE[1] / 2), "no step yet", fill=_INK, font=font, anchor="mm")
        return picture
    smooth = smoothed(losses, max(1, round(SMOOTH * len(losses))))
    draw.text((_LEFT, 8), f"loss {smooth[-1]:.4g} after {int(steps[-1])} steps", fill=_INK, font=font)
    logarithmic = losses.min() > 0 and losses.max() > 20 * losses.min()
    low, high, marks = _scale(losses, logarithmic)

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - steps[0]) / max(1.0, steps[-1] - steps[0])
        value = math.log10(value) if logarithmic else value
        up = (value - low) / (high - low)
        return _LEFT + across * (SIZE[0] - _LEFT - _RIGHT), SIZE[1] - _BOTTOM - up * (SIZE[1] - _TOP - _BOTTOM)

    for mark in marks:
        height = place(steps[0], mark)[1]
        draw.line((_LEFT, height, SIZE[0] - _RIGHT, height), fill=_GRID)
        draw.text((_LEFT - 8, height), f"{mark:.4g}", fill=_INK, font=font, anchor="rm")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        step = steps[0] + share * (steps[-1] - steps[0])
        label = (place(step, marks[0])[0], SIZE[1] - _BOTTOM + 8)
        draw.text(label, f"{step:.0f}", fill=_INK, font=font, anchor="ma")
    for values, colour, width in ((losses, _FAINT, 1), (smooth, _LINE, 2)):
        kept = _thinned(len(values))
        points = [place(steps[number], values[number]) for number in kept]
        draw.line(points if len(points) > 1 else points * 2, fill=colour, width=width)
        if len(points) == 1:
            draw.circle(points[0], 2, fill=colour)
    return picture


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value (n,) and the `window - 1` before it, of fewer at the beginning."""
    sums = np.concatenate([[0.0], values.cumsum()])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _scale(losses: np.ndarray, logarithmic: bool) -> tuple[float, float, list[float]]:
    """The lowest and highest value of the axis (their logarithms on a logarithmic one) and the values to mark."""
    low, high = float(losses.min()), float(losses.max())
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    marks = [low + share * (high - low) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return low, high, [10**mark for mark in marks] if logarithmic else marks


def _thinned(count: int) -> list[int]:
    """At most four points a pixel of the plot's width: no more can be seen."""
    most = 4 * SIZE[0]
    if count <= most:
        return list(range(count))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]
