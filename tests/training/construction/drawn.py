"""Pictures whose truth is known: bright squares on dark ground, which the brightness SAM cuts out exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CELL = 16  # the brightness SAM's resolution on pictures of 256 pixels
SIDE = 256
Square = tuple[str, tuple[int, int, int, int], int]  # words, left, top, right, bottom in cells, and which pattern


def pattern(number: int, height: int, width: int) -> np.ndarray:
    """A bright pattern of its own colours, (height, width, 3) uint8."""
    random = np.random.default_rng(1000 + number)
    first, second = random.integers(150, 256, (2, 3))
    stripes = (np.arange(width) // (4 + number % 5) % 2)[None, :, None]
    return np.broadcast_to(np.where(stripes, first, second), (height, width, 3)).astype(np.uint8)


def draw(folder: Path, name: str, caption: str, squares: Sequence[Square], seed: int) -> Path:
    """Write a picture and its description."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 90, (8, 8, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).copy()
    phrases = []
    for words, (left, top, right, bottom), number in squares:
        box = [CELL * left, CELL * top, CELL * right, CELL * bottom]
        pixels[box[1] : box[3], box[0] : box[2]] = pattern(number, box[3] - box[1], box[2] - box[0])
        phrases.append([words, box])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path)
    path.with_suffix(".json").write_text(json.dumps({"caption": caption, "phrases": phrases}), encoding="utf-8")
    return path


def draw_world(folder: Path, pictures: int = 6) -> None:
    """Pictures of a woman, a dog and a bag; the women of pictures 2 n and 2 n + 1 are one, and so are the bags."""
    for number in range(pictures):
        who, shift = number // 2, number % 2
        squares: list[Square] = [
            ("A woman", (1 + shift, 2, 6 + shift, 14), who),
            ("a dog", (8, 10, 12, 14), 100 + number),
            ("a bag", (9 + shift, 2, 13 + shift, 6), 200 + who),
        ]
        draw(folder, f"picture {number}", "A woman with a dog and a bag.", squares, number)
