"""Draws the sample subjects of the example workflows, as pictures with an alpha channel.

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


def draw_figure(look: Look) -> Image.Image:
    """A standing figure, front view: RGBA of `SIZE` pixels."""
    width, height = (side * SMOOTH for side in SIZE)
    picture = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)

    def at(x: float, y: float) -> tuple[float, float]:
        return x * width, y * height

    def limb(colour: str, thickness: float, *points: tuple[float, float]) -> None:
        line = [at(*point) for point in points]
        draw.line(line, fill=colour, width=round(thickness * width), joint="curve")
        radius = thickness * width / 2
        for x, y in line:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    for side in (-1, 1):
        limb(look.legs, 0.11, (0.5 + side * 0.07, 0.56), (0.5 + side * 0.08, 0.74), (0.5 + side * 0.08, 0.90))
        limb(look.shoes, 0.10, (0.5 + side * 0.08, 0.935), (0.5 + side * 0.12, 0.945))
        limb(look.top, 0.09, (0.5 + side * 0.14, 0.30), (0.5 + side * 0.19, 0.42), (0.5 + side * 0.18, 0.52))
        limb(look.skin, 0.07, (0.5 + side * 0.18, 0.545), (0.5 + side * 0.18, 0.555))
    limb(look.skin, 0.08, (0.5, 0.20), (0.5, 0.27))
    draw.polygon([at(0.34, 0.27), at(0.66, 0.27), at(0.64, 0.58), at(0.36, 0.58)], fill=look.top)
    draw.ellipse((*at(0.385, 0.045), *at(0.615, 0.235)), fill=look.hair)
    draw.ellipse((*at(0.405, 0.075), *at(0.595, 0.235)), fill=look.skin)
    draw.pieslice((*at(0.40, 0.055), *at(0.60, 0.20)), 180, 360, fill=look.hair)
    for side in (-1, 1):
        limb("#20201f", 0.018, (0.5 + side * 0.042, 0.152))
    limb("#a04038", 0.012, (0.475, 0.195), (0.525, 0.195))
    if look.hat:
        draw.pieslice((*at(0.39, 0.015), *at(0.61, 0.19)), 180, 360, fill=look.hat)
        limb(look.hat, 0.03, (0.36, 0.105), (0.64, 0.105))
    if look.bag:
        limb("#6b4a12", 0.014, (0.36, 0.28), (0.66, 0.50))
        draw.rounded_rectangle((*at(0.60, 0.48), *at(0.76, 0.60)), radius=0.03 * width, fill=look.bag)
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, look in LOOKS.items():
        draw_figure(look).save(folder / name, optimize=True)


if __name__ == "__main__":
    main()
