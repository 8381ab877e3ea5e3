"""The picture of a fitted alignment score: people against the score, and the threshold on its F1 curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .alignment import PARTS, AlignmentFit

PANEL = 420  # pixels
MARGIN = 56
INK, GRID, PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = {"precision": (214, 110, 20), "recall": (30, 110, 190), "F1": (20, 140, 70)}

Point = tuple[float, float]


def draw_fit(fit: AlignmentFit) -> Image.Image:
    """Left: people's scores over the fitted score. Right: precision, recall and F1 over the threshold."""
    picture = Image.new("RGB", (2 * PANEL, PANEL + 20), PAPER)
    draw = ImageDraw.Draw(picture)
    place = _panel(draw, 0, "score", "people")
    draw.line([place(0, 0), place(1, 1)], fill=GRID, width=2)
    for score, human in zip(fit.scores, fit.human, strict=True):
        x, y = place(score, human)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), outline=COLOURS["recall"])
    place = _panel(draw, PANEL, "threshold", "")
    curves = {"precision": fit.curve.precision, "recall": fit.curve.recall, "F1": fit.curve.f1}
    for row, (name, values) in enumerate(curves.items()):
        _curve(draw, [place(x, y) for x, y in zip(fit.curve.thresholds, values, strict=True)], COLOURS[name])
        draw.text((PANEL + MARGIN + 10, PANEL - MARGIN - 56 + 16 * row), name, fill=COLOURS[name])
    draw.line([place(fit.threshold, 0), place(fit.threshold, 1)], fill=INK, width=1)
    weights = ", ".join(f"{part} {weight:.3f}" for part, weight in zip(PARTS, fit.weights, strict=True))
    best = fit.curve.f1.max()
    draw.text((MARGIN, PANEL - 4), f"weights: {weights}", fill=INK)
    draw.text(
        (PANEL + MARGIN, PANEL - 4), f"threshold {fit.threshold:.3f}, F1 {best:.3f}, n = {len(fit.scores)}", fill=INK
    )
    return picture


def _panel(draw: ImageDraw.ImageDraw, left: int, across: str, up: str) -> Callable[[float, float], Point]:
    """Axes from 0 to 1 and the function that places a point in them."""
    size = PANEL - 2 * MARGIN

    def place(x: float, y: float) -> Point:
        return left + MARGIN + size * float(x), PANEL - MARGIN - size * float(y)

    for tick in np.linspace(0, 1, 6):
        draw.line([place(tick, 0), place(tick, 1)], fill=GRID)
        draw.line([place(0, tick), place(1, tick)], fill=GRID)
        x, y = place(tick, 0)
        draw.text((x - 8, y + 6), f"{tick:.1f}", fill=INK)
        x, y = place(0, tick)
        draw.text((x - 26, y - 6), f"{tick:.1f}", fill=INK)
    draw.rectangle((*place(0, 1), *place(1, 0)), outline=INK)
    draw.text((left + PANEL // 2 - 20, PANEL - MARGIN + 24), across, fill=INK)
    draw.text((left + MARGIN, MARGIN - 18), up, fill=INK)
    return place


def _curve(draw: ImageDraw.ImageDraw, points: Sequence[Point], colour: tuple[int, int, int]) -> None:
    if len(points) > 1:
        draw.line(list(points), fill=colour, width=2)
    else:
        x, y = points[0]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
