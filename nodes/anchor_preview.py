"""Draws what Anchor Align did: both pictures with their boxes, the result, and the result over the appearance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..attention_patches.anchor_align import Box, moved_box
from ..attention_patches.projection import Move, project
from .contact_sheet import BACKGROUND, FOREGROUND

PANEL = 512  # pixels, the square a picture is fitted into
MARGIN = 14
CAPTION = 30  # pixels below a panel
TEXT = 15
GREY = (150, 150, 158)
DARK = (0, 0, 0)
# Told apart by people who do not see all colours (Okabe and Ito, 2008), one a subject.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178))
DOT = 5  # pixels, radius of the anchor


def draw_alignment(
    structure: torch.Tensor,
    appearance: torch.Tensor,
    aligned: torch.Tensor,
    structure_boxes: Sequence[Box],
    appearance_boxes: Sequence[Box],
    moves: Sequence[Move],
) -> np.ndarray:
    """Four panels, two by two.

    Args:
        structure, appearance, aligned: (H, W, 3) each in [0, 1]; the last two of one size.

    Returns:
        (height, width, 3) float32 in [0, 1].
    """
    target = _shrink(appearance)
    result = _shrink(aligned)
    moved = [moved_box(box, move) for box, move in zip(structure_boxes, moves, strict=True)]
    scales = ", ".join(f"{move.scale:.3g}" for move in moves[:4]) + (" …" if len(moves) > 4 else "")
    panels = [
        _panel(_shrink(structure), structure, structure_boxes, f"structure   {_size(structure)}"),
        _panel(target, appearance, appearance_boxes, f"appearance   {_size(appearance)}"),
        _panel(result, aligned, moved, f"aligned   scale {scales}"),
        _panel(Image.blend(target, result, 0.5), aligned, moved, "aligned over the appearance"),
    ]
    rows = [panels[:2], panels[2:]]
    heights = [max(panel.height for panel in row) for row in rows]
    sheet = Image.new("RGB", (2 * PANEL + 3 * MARGIN, sum(heights) + 3 * MARGIN), BACKGROUND)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (MARGIN + column * (PANEL + MARGIN), top + height - panel.height))
        top += height + MARGIN
    return np.divide(np.asarray(sheet), 255.0, dtype=np.float32)


def _size(picture: torch.Tensor) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


def _fit(picture: torch.Tensor) -> float:
    return PANEL / max(picture.shape[:2])


def _shrink(picture: torch.Tensor) -> Image.Image:
    """A picture (H, W, 3) fitted into a panel."""
    scale = _fit(picture)
    size = (max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale)))
    while scale <= 0.5 and min(picture.shape[:2]) > 1:  # quick, and enough for a preview: of 2 x 2 pixels a diagonal
        height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
        picture = (picture[:height:2, :width:2] + picture[1:height:2, 1:width:2]).mul_(0.5)
        scale *= 2
    if scale != 1:
        picture = project(picture, Move(scale, 0.0, 0.0), size, picture.new_zeros(3))
    return Image.fromarray(picture.clamp(0, 1).mul_(255).round_().to(device="cpu", dtype=torch.uint8).numpy())


def _panel(fitted: Image.Image, picture: torch.Tensor, boxes: Sequence[Box], caption: str) -> Image.Image:
    """A fitted picture with the boxes of the whole one, and a caption below."""
    panel = Image.new("RGB", (PANEL, fitted.height + CAPTION), BACKGROUND)
    left = (PANEL - fitted.width) // 2
    panel.paste(fitted, (left, 0))
    draw = ImageDraw.Draw(panel)
    for number, box in enumerate(boxes):
        label = str(number + 1) if len(boxes) > 1 else ""
        _draw_box(draw, moved_box(box, Move(_fit(picture), left, 0)), COLOURS[number % len(COLOURS)], label)
    draw.rectangle((0, fitted.height, PANEL, panel.height), fill=BACKGROUND)  # a box may reach below the picture
    draw.rectangle((left, 0, left + fitted.width - 1, fitted.height - 1), outline=GREY)
    draw.text((PANEL / 2, fitted.height + 8), caption, fill=FOREGROUND, font=ImageFont.load_default(TEXT), anchor="ma")
    return panel


def _draw_box(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, int, int], label: str) -> None:
    """A box, its anchor and its number, with a dark rim, so that they are seen on any picture."""
    left, top, right, bottom = box.left, box.top, max(box.right - 1, box.left), max(box.bottom - 1, box.top)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK, width=4)
    draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    x, y = box.anchor
    draw.ellipse((x - DOT - 1, y - DOT - 1, x + DOT + 1, y + DOT + 1), fill=DARK)
    draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)
    if label:
        draw.rectangle((left, top, left + 18, top + 20), fill=colour, outline=DARK)
        draw.text((left + 9, top + 10), label, fill=DARK, font=ImageFont.load_default(TEXT), anchor="mm")
