"""Draws the sample people, garments and things of the example workflows, as pictures with an alpha channel.

python dev.py python -m devtools.sample_images [FOLDER]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (384, 512)
SMOOTH = 3  # drawn this many times larger, then scaled down
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "workflows" / "input"


@dataclass(frozen=True)
class Look:
    """Colours of one figure; `hat` and `bag` may be missing."""

    skin: str
    hair: str
    top: str
    legs: str
    shoes: str
    hat: str | None = None
    bag: str | None = None


LOOKS = {
    "ensemble_alice.png": Look("#e8b894", "#8a3b12", "#c8102e", "#26324a", "#1c1c1c", bag="#e0a526"),
    "ensemble_bruno.png": Look("#8d5a3b", "#1e1511", "#1f8a70", "#b9a37e", "#5a3a22", hat="#f0c419"),
    "ensemble_chiyo.png": Look("#f1cfae", "#20202c", "#7b4fa3", "#e7e2da", "#a83252"),
}


class Sketch:
    """A transparent sheet whose coordinates run from 0 to 1."""

    def __init__(self) -> None:
        self.width, self.height = (side * SMOOTH for side in SIZE)
        self.picture = Image.new("RGBA", (self.width, self.height), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.picture)

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * self.width, y * self.height) for x, y in points]

    def limb(self, colour: str, thickness: float, *points: tuple[float, float]) -> None:
        line = self.at(*points)
        self.draw.line(line, fill=colour, width=round(thickness * self.width), joint="curve")
        radius = thickness * self.width / 2
        for x, y in line:
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def polygon(self, colour: str, *points: tuple[float, float]) -> None:
        self.draw.polygon(self.at(*points), fill=colour)

    def ellipse(self, colour: str, first: tuple[float, float], last: tuple[float, float]) -> None:
        (x0, y0), (x1, y1) = self.at(first, last)
        self.draw.ellipse((x0, y0, x1, y1), fill=colour)

    def half_disc(self, colour: str, first: tuple[float, float], last: tuple[float, float]) -> None:
        (x0, y0), (x1, y1) = self.at(first, last)
        self.draw.pieslice((x0, y0, x1, y1), 180, 360, fill=colour)

    def box(self, colour: str, first: tuple[float, float], last: tuple[float, float], radius: float) -> None:
        (x0, y0), (x1, y1) = self.at(first, last)
        self.draw.rounded_rectangle((x0, y0, x1, y1), radius=radius * self.width, fill=colour)

    def finished(self) -> Image.Image:
        return self.picture.resize(SIZE, Image.Resampling.LANCZOS)


def draw_figure(look: Look) -> Image.Image:
    """A standing figure, front view: RGBA of `SIZE` pixels."""
    sketch = Sketch()
    for side in (-1, 1):
        sketch.limb(look.legs, 0.11, (0.5 + side * 0.07, 0.56), (0.5 + side * 0.08, 0.74), (0.5 + side * 0.08, 0.90))
        sketch.limb(look.shoes, 0.10, (0.5 + side * 0.08, 0.935), (0.5 + side * 0.12, 0.945))
        sketch.limb(look.top, 0.09, (0.5 + side * 0.14, 0.30), (0.5 + side * 0.19, 0.42), (0.5 + side * 0.18, 0.52))
        sketch.limb(look.skin, 0.07, (0.5 + side * 0.18, 0.545), (0.5 + side * 0.18, 0.555))
    sketch.limb(look.skin, 0.08, (0.5, 0.20), (0.5, 0.27))
    sketch.polygon(look.top, (0.34, 0.27), (0.66, 0.27), (0.64, 0.58), (0.36, 0.58))
    sketch.ellipse(look.hair, (0.385, 0.045), (0.615, 0.235))
    sketch.ellipse(look.skin, (0.405, 0.075), (0.595, 0.235))
    sketch.half_disc(look.hair, (0.40, 0.055), (0.60, 0.20))
    for side in (-1, 1):
        sketch.limb("#20201f", 0.018, (0.5 + side * 0.042, 0.152))
    sketch.limb("#a04038", 0.012, (0.475, 0.195), (0.525, 0.195))
    if look.hat:
        sketch.half_disc(look.hat, (0.39, 0.015), (0.61, 0.19))
        sketch.limb(look.hat, 0.03, (0.36, 0.105), (0.64, 0.105))
    if look.bag:
        sketch.limb("#6b4a12", 0.014, (0.36, 0.28), (0.66, 0.50))
        sketch.box(look.bag, (0.60, 0.48), (0.76, 0.60), 0.03)
    return sketch.finished()


def draw_face() -> Image.Image:
    """A head with shoulders left out."""
    sketch = Sketch()
    sketch.ellipse("#3a1f14", (0.16, 0.08), (0.84, 0.80))
    sketch.limb("#d9a079", 0.20, (0.5, 0.78), (0.5, 0.90))
    sketch.ellipse("#e3ad86", (0.23, 0.18), (0.77, 0.84))
    sketch.half_disc("#3a1f14", (0.21, 0.10), (0.79, 0.60))
    for side in (-1, 1):
        sketch.limb("#3a1f14", 0.016, (0.5 + side * 0.17, 0.43), (0.5 + side * 0.08, 0.43))
        sketch.ellipse("#ffffff", (0.5 + side * 0.125 - 0.06, 0.46), (0.5 + side * 0.125 + 0.06, 0.52))
        sketch.limb("#2b5d43", 0.045, (0.5 + side * 0.125, 0.49))
    sketch.limb("#c98f67", 0.025, (0.5, 0.52), (0.485, 0.61), (0.515, 0.61))
    sketch.limb("#b2433c", 0.032, (0.42, 0.70), (0.5, 0.715), (0.58, 0.70))
    return sketch.finished()


def draw_top() -> Image.Image:
    """A striped jumper."""
    sketch = Sketch()
    for side in (-1, 1):
        sketch.limb("#24507a", 0.17, (0.5 + side * 0.19, 0.25), (0.5 + side * 0.33, 0.48), (0.5 + side * 0.36, 0.66))
    sketch.polygon("#24507a", (0.24, 0.17), (0.76, 0.17), (0.73, 0.84), (0.27, 0.84))
    for y in (0.34, 0.48, 0.62):
        sketch.limb("#f2efe6", 0.045, (0.28, y), (0.72, y))
    sketch.ellipse("#18375a", (0.40, 0.13), (0.60, 0.22))
    return sketch.finished()


def draw_bottom() -> Image.Image:
    """A pair of trousers."""
    sketch = Sketch()
    for side in (-1, 1):
        sketch.limb("#c2a25a", 0.21, (0.5 + side * 0.11, 0.26), (0.5 + side * 0.15, 0.86))
    sketch.box("#c2a25a", (0.28, 0.10), (0.72, 0.34), 0.03)
    sketch.box("#5b3d1d", (0.28, 0.10), (0.72, 0.155), 0.02)
    sketch.box("#e6d27a", (0.46, 0.10), (0.54, 0.155), 0.01)
    return sketch.finished()


def draw_bag() -> Image.Image:
    """A handbag."""
    sketch = Sketch()
    sketch.limb("#4b1c1c", 0.03, (0.28, 0.50), (0.34, 0.20), (0.66, 0.20), (0.72, 0.50))
    sketch.box("#a11f2d", (0.14, 0.44), (0.86, 0.86), 0.08)
    sketch.box("#7d1622", (0.14, 0.44), (0.86, 0.60), 0.08)
    sketch.limb("#e8c15a", 0.07, (0.5, 0.61))
    return sketch.finished()


def draw_dress() -> Image.Image:
    """A dress with dots."""
    sketch = Sketch()
    for side in (-1, 1):
        sketch.limb("#2f7f5f", 0.05, (0.5 + side * 0.12, 0.08), (0.5 + side * 0.15, 0.22))
    sketch.polygon("#2f7f5f", (0.32, 0.18), (0.68, 0.18), (0.62, 0.42), (0.84, 0.92), (0.16, 0.92), (0.38, 0.42))
    sketch.limb("#f0d9a0", 0.035, (0.38, 0.42), (0.62, 0.42))
    for x, y in ((0.40, 0.27), (0.52, 0.33), (0.60, 0.25), (0.42, 0.54), (0.58, 0.58), (0.34, 0.70), (0.50, 0.72),
                 (0.66, 0.74), (0.27, 0.85), (0.44, 0.86), (0.60, 0.87), (0.75, 0.86)):  # fmt: skip
        sketch.limb("#f4ead0", 0.045, (x, y))
    return sketch.finished()


THINGS = {
    "ensemble_face.png": draw_face,
    "ensemble_top.png": draw_top,
    "ensemble_bottom.png": draw_bottom,
    "ensemble_bag.png": draw_bag,
    "ensemble_dress.png": draw_dress,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, look in LOOKS.items():
        draw_figure(look).save(folder / name, optimize=True)
    for name, draw in THINGS.items():
        draw().save(folder / name, optimize=True)


if __name__ == "__main__":
    main()
