"""Draws whose every place of a picture is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..attention_patches.anystory_routing import StepMaps, shares
from .contact_sheet import Tile, draw_contact_sheet
from .heat_map import heat_map, percent
from .lettering import lettering
from .token_strip import colour_of

TOGETHER, LAYERS, STEPS = "all together", "each layer", "each step"
VIEWS = (TOGETHER, LAYERS, STEPS)
MAX_STEPS_SHOWN = 8

CELL = 24  # pixels of a layer's longer side in a mosaic
GAP = 2
COVER = 0.55  # of a subject's colour over its picture
LABEL = 18  # pixels


class RoutingView:
    """Chosen steps and layers of one run."""

    def __init__(self, names: Sequence[str], records: Sequence[StepMaps], layers: Sequence[int]) -> None:
        self.names = names
        self.records = records
        self.layers = layers

    def shares(
        self, picture: int, records: Sequence[StepMaps] | None = None, layers: Sequence[int] | None = None
    ) -> torch.Tensor:
        """(N + 1, h, w), of all that was chosen or of a part of it."""
        return shares(records or self.records, layers or self.layers, picture, len(self.names) + 1)

    def sheet(self, number: int, show: str, picture: np.ndarray | None) -> np.ndarray:
        """The contact sheet of one picture of the batch, a row or a tile a subject: (height, width, 3)."""
        groups = self._by_step() if show == STEPS else {"": self.records}
        columns = [self._column(number, title, records, show, picture) for title, records in groups.items()]
        rows = zip(*columns, strict=True)  # a subject's tiles
        return draw_contact_sheet([tile for row in rows for tile in row], len(groups) if show == STEPS else None)

    def _by_step(self) -> dict[str, list[StepMaps]]:
        steps = _spread(sorted({record.step for record in self.records}))
        return {f", step {step}": [record for record in self.records if record.step == step] for step in steps}

    def _column(
        self, number: int, title: str, records: Sequence[StepMaps], show: str, picture: np.ndarray | None
    ) -> list[Tile]:
        """A tile for every subject."""
        found = self.shares(number, records).numpy()[:-1]
        texts = [f"{percent(float(share.mean()))} of the picture" for share in found]
        if show == TOGETHER or len(self.layers) == 1:
            drawn = [heat_map(share, 1.0, picture) for share in found]
        else:
            each = [self.shares(number, records, [layer]).numpy() for layer in self.layers]
            drawn = [heat_map(mosaic([maps[subject] for maps in each]), 1.0, None) for subject in range(len(found))]
        named = zip(self.names, texts, drawn, strict=True)
        return [Tile(shown, None, name + title, text) for name, text, shown in named]


def _spread(steps: Sequence[int]) -> list[int]:
    """At most `MAX_STEPS_SHOWN` of the steps, evenly spread, the first and the last among them."""
    places = np.linspace(0, len(steps) - 1, min(len(steps), MAX_STEPS_SHOWN))
    return [steps[round(place)] for place in places.tolist()]


def mosaic(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Maps (h, w) of many layers in rows, first to last, each on the same area: one map of them all."""
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    height, width = maps[0].shape
    scale = CELL / max(height, width)
    cell = (max(1, round(height * scale)), max(1, round(width * scale)))
    sheet = np.zeros((rows * (cell[0] + GAP) - GAP, columns * (cell[1] + GAP) - GAP), np.float32)
    for number, shown in enumerate(maps):
        y, x = number // columns * (cell[0] + GAP), number % columns * (cell[1] + GAP)
        fitted = Image.fromarray(shown.astype(np.float32)).resize((cell[1], cell[0]), Image.Resampling.BOX)
        sheet[y : y + cell[0], x : x + cell[1]] = np.asarray(fitted)
    return sheet


def draw_overlay(picture: np.ndarray, masks: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The picture in grey with every subject in a colour of its own and its name on it.

    Args:
        picture: (H, W, 3) float in [0, 1].
        masks: (N, H, W) of zeros and ones.

    Returns:
        (H, W, 3) float32 in [0, 1].
    """
    grey = picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    for number, mask in enumerate(masks):
        colour = np.array(colour_of(number), np.float32) / 255
        cover = COVER * mask[..., None]
        grey = (1 - cover) * grey + cover * colour
    sheet = Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(sheet)
    for number, (mask, name) in enumerate(zip(masks, names, strict=True)):
        if mask.any():
            y, x = (float(np.median(places)) for places in np.nonzero(mask))
            text, font = lettering(name, LABEL)
            draw.text((x, y), text, fill=colour_of(number), font=font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(sheet, dtype=np.float32) / 255.0
