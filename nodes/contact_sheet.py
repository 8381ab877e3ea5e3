"""Draws labelled pictures side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

TILE = 256  # pixels, the square a picture is fitted into
MARGIN = 12
LINE = 20  # pixels a line of text
TEXT_LINES = 4  # one of title, three of text
BACKGROUND = (24, 24, 27)
FOREGROUND = (235, 235, 235)
OUTLINE = (255, 64, 160)

# Pillow's own font knows Latin letters alone; these are what common systems have for the rest.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet.

    Attributes:
        picture: (H, W, 3) float in [0, 1].
        mask: (H, W) float, its outline is drawn; or None.
        title, text: written below, the text wrapped and cut after three lines.
    """

    picture: np.ndarray
    mask: np.ndarray | None
    title: str
    text: str


def draw_contact_sheet(tiles: list[Tile], columns: int | None = None) -> np.ndarray:
    """All tiles on one sheet, as near to square as they go if not told: (H, W, 3) float32 in [0, 1]."""
    columns = columns or max(1, math.ceil(math.sqrt(len(tiles))))
    rows = max(1, math.ceil(len(tiles) / columns))
    step_x, step_y = TILE + MARGIN, TILE + TEXT_LINES * LINE + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), BACKGROUND)
    for number, tile in enumerate(tiles):
        x, y = MARGIN + number % columns * step_x, MARGIN + number // columns * step_y
        _draw_tile(sheet, tile, x, y)
    return np.asarray(sheet, dtype=np.float32) / 255.0


def _draw_tile(sheet: Image.Image, tile: Tile, x: int, y: int) -> None:
    picture = Image.fromarray((tile.picture.clip(0, 1) * 255).round().astype(np.uint8))
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    if tile.mask is not None:
        picture.paste(OUTLINE, mask=_outline(tile.mask, size))
    sheet.paste(picture, (x + (TILE - size[0]) // 2, y + (TILE - size[1]) // 2))
    draw = ImageDraw.Draw(sheet)
    for line, text in enumerate([tile.title, *wrap(tile.text, TEXT_LINES - 1)]):
        draw.text((x, y + TILE + line * LINE + 4), _cut(text), fill=FOREGROUND, font=_font(text))


def _outline(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A two-pixel line along the mask's edge, as an alpha mask of `size`."""
    shape = Image.fromarray(((mask > 0.5) * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    inner = shape.filter(ImageFilter.MinFilter(5))
    edge = np.asarray(shape).astype(np.int16) - np.asarray(inner)
    return Image.fromarray(edge.astype(np.uint8))


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if not text.isascii():
        for name in _WIDE_FONTS:
            try:
                return ImageFont.truetype(name, 14)
            except OSError:
                continue
    return ImageFont.load_default(14)


def _cut(text: str) -> str:
    """`text` shortened to a tile's width."""
    font = _font(text)
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "…") > TILE:
        text = text[:-1]
    return text.rstrip() + "…"


def wrap(text: str, lines: int) -> list[str]:
    """`text` in at most `lines` lines of a tile's width; what is left over joins the last line, to be cut there."""
    font, out = _font(text), [""]
    for word in text.split():
        longer = f"{out[-1]} {word}".strip()
        if font.getlength(longer) <= TILE or len(out) == lines or not out[-1]:
            out[-1] = longer
        else:
            out.append(word)
    return out
