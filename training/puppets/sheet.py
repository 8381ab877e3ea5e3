"""A contact sheet of samples: each target with its references beside it and its caption below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..sample import TrainingSample

COLUMNS = 3
_INK, _PAPER = (40, 40, 40), 255
_LINE, _LETTER, _FONT_SCALE = 13, 6.4, 0.36  # pixels: a line of text, a letter's usual width; OpenCV's scale for them


def draw_sheet(samples: Sequence[TrainingSample], zoom: int = 2) -> np.ndarray:
    """All samples, of one size, in rows of `COLUMNS`, as (H, W, 3) uint8.

    Args:
        samples: at least one; pictures of bytes (`PuppetSource.stored`).
        zoom: how many times larger than the samples.
    """
    most = max(len(sample.subjects) for sample in samples)
    tiles = [_tile(sample, most, zoom) for sample in samples]
    tiles += [np.full_like(tiles[0], _PAPER)] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[start : start + COLUMNS], axis=1) for start in range(0, len(tiles), COLUMNS)]
    return np.concatenate(rows)


def _tile(sample: TrainingSample, most: int, zoom: int) -> np.ndarray:
    import cv2

    target = cv2.resize(sample.target.numpy(), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    height, width = target.shape[:2]
    columns = -(-most // 2)
    side = height // 2
    tile = np.full((height + 3 * _LINE, width + columns * side + 8, 3), _PAPER, dtype=np.uint8)
    tile[:height, :width] = target
    for number, subject in enumerate(sample.subjects):
        top, left = side * (number % 2), width + side * (number // 2)
        tile[top : top + side, left : left + side] = cv2.resize(
            subject.reference.numpy(), (side, side), interpolation=cv2.INTER_NEAREST
        )
    for number, text in enumerate(_lines(sample.caption, int((tile.shape[1] - 8) / _LETTER))[:3]):
        place = (2, height + _LINE * (number + 1) - 3)
        cv2.putText(tile, text, place, cv2.FONT_HERSHEY_SIMPLEX, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    return tile


def _lines(text: str, letters: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
