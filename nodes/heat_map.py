"""Draws how much of something there is at every place of a picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .contact_sheet import BACKGROUND, FOREGROUND, TILE
from .errors import InputError

BAR = 26  # pixels below the map for its scale
LEAST, MOST = 26, 60  # pixels for the number at the scale's left and right end

# From little to much; every colour is lighter than the one before it, so the order also shows without colour.
_COLOURS = np.array(
    [(10, 8, 34), (64, 16, 104), (140, 32, 112), (212, 66, 78), (247, 138, 44), (250, 204, 88), (253, 250, 190)],
    dtype=np.float32,
)


def pictures_below(node: str, image: torch.Tensor | None, count: int) -> list[np.ndarray | None]:
    """For every picture of a run what its maps are laid over: (H, W, 3), or None without an `image`.

    Raises:
        InputError: the image is not of this run.
    """
    if image is None:
        return [None] * count
    if len(image) != count:
        problem = f"it holds {len(image)} pictures, the run made {count}; decode the same samples"
        raise InputError(node, "image", problem)
    return [picture[..., :3].cpu().numpy() for picture in image]


def percent(share: float) -> str:
    """A share in words, to three digits."""
    return f"{100 * share:.3g} %" if share >= 1e-5 or share == 0 else "<0.001 %"


def colours(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] of any shape -> colours (..., 3) float32 in [0, 255]."""
    place = values.clip(0, 1) * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(np.int64), len(_COLOURS) - 2)
    part = (place - below)[..., None]
    return (1 - part) * _COLOURS[below] + part * _COLOURS[below + 1]


def heat_map(values: np.ndarray, top: float, picture: np.ndarray | None) -> np.ndarray:
    """A map over its picture with a scale below, ready to be a tile of a contact sheet.

    Args:
        values: (rows, columns), at least 0.
        top: what the lightest colour stands for.
        picture: (H, W, 3) float in [0, 1], shown grey below the colours; None for the map alone.

    Returns:
        (TILE, TILE, 3) float32 in [0, 1].
    """
    height, width = values.shape if picture is None else picture.shape[:2]
    scale = min(TILE / width, (TILE - BAR) / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tile = Image.new("RGB", (TILE, TILE), BACKGROUND)
    tile.paste(_picture(values / top if top > 0 else values, size, picture), (0, TILE - BAR - size[1]))
    _draw_scale(tile, top)
    return np.asarray(tile, dtype=np.float32) / 255.0


def _picture(values: np.ndarray, size: tuple[int, int], picture: np.ndarray | None) -> Image.Image:
    heat = np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
    coloured = colours(heat)
    if picture is not None:
        grey = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).convert("L")
        grey = np.asarray(grey.resize(size, Image.Resampling.LANCZOS), dtype=np.float32)[..., None]
        # Where there is little the picture shows through, where there is much its lights still do.
        cover = 0.35 + 0.5 * heat[..., None]
        coloured = cover * coloured + (1 - cover) * grey * (0.5 + 0.5 * coloured / 255)
    return Image.fromarray(coloured.round().astype(np.uint8))


def _draw_scale(tile: Image.Image, top: float) -> None:
    left, right, above = LEAST, TILE - MOST, TILE - BAR + 9
    ramp = colours(np.linspace(0, 1, right - left, dtype=np.float32)[None].repeat(10, axis=0))
    tile.paste(Image.fromarray(ramp.round().astype(np.uint8)), (left, above))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(12)
    draw.text((0, above + 5), "0 %", fill=FOREGROUND, font=font, anchor="lm")
    draw.text((right + 6, above + 5), percent(top), fill=FOREGROUND, font=font, anchor="lm")
