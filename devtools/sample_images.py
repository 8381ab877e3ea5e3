"""Draws the sample people, garments and things of the example workflows, as pictures with an alpha channel.

They are puppets of the world that the tiny models were trained in.

python dev.py python -m devtools.sample_images [FOLDER]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import comfyui_ensemble.training  # noqa: F401 (tells the host that there may be no accelerator)
from comfyui_ensemble.training.puppets import Item, draw_item, draw_reference, puppet

SIZE = 512
DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "workflows" / "input"

ALICE = replace(
    puppet(3411),
    head="round",
    hair="brown",
    hair_style="bob",
    mouth="smile",
    upper=Item("shirt", "red", "striped", "white"),
    lower=Item("trousers", "blue"),
    shoes=Item("shoes", "black"),
    hat=None,
    bag=Item("shoulder bag", "yellow", second="black"),
)
BRUNO = replace(
    puppet(2133),
    head="round",
    hair="black",
    upper=Item("t-shirt", "green"),
    lower=Item("trousers", "white"),
    shoes=Item("shoes", "red"),
    hat=Item("sun hat", "yellow", second="black"),
    bag=None,
)
CHIYO = replace(
    puppet(39),
    skin=puppet(107).skin,
    hair="black",
    hair_style="long",
    upper=Item("dress", "purple", "dotted", "white"),
    shoes=Item("shoes", "pink"),
)
WARDROBE = replace(
    puppet(724),
    hair="red",
    mouth="smile",
    upper=Item("shirt", "blue", "striped", "white"),
    lower=Item("trousers", "orange"),
    bag=Item("handbag", "red", second="yellow"),
)
DRESSED = replace(WARDROBE, upper=Item("dress", "green", "dotted", "white"), lower=None)

PEOPLE = {"alice": ALICE, "bruno": BRUNO, "chiyo": CHIYO}
ITEMS = {
    "face": (WARDROBE, "face"),
    "top": (WARDROBE, "upper garment"),
    "bottom": (WARDROBE, "lower garment"),
    "bag": (WARDROBE, "bag"),
    "dress": (DRESSED, "dress"),
}


def pictures() -> dict[str, Image.Image]:
    """File name -> picture."""
    people = {name: draw_reference(who, SIZE) for name, who in PEOPLE.items()}
    things = {name: draw_item(who, category, SIZE) for name, (who, category) in ITEMS.items()}
    return {f"ensemble_{name}.png": _cut_out(*drawn) for name, drawn in (people | things).items()}


def _cut_out(picture: np.ndarray, mask: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([picture, mask * np.uint8(255)]))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        picture.save(folder / name, optimize=True)
        print(folder / name)


if __name__ == "__main__":
    main()
