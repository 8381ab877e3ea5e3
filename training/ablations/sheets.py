"""A contact sheet of a table: what was given, the truth, and what every row made of it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...models_info.files import whole_file
from .results import Store
from .run import SHOWN
from .table import Ablation

GAP, TITLE = 6, 30  # pixels
PAPER, INK = (255, 255, 255), (40, 40, 40)


def write_sheet(ablation: Ablation, store: Store, path: Path) -> None:
    """One line a scene, one column a row of the table, behind the references and the truth."""
    scenes = sorted((store.folder / "truth").glob("scene-??.png"))[:SHOWN]
    with Image.open(scenes[0]) as first:
        width, height = first.size
    titles = ["references", "truth", *(row.name for row in ablation.rows)]
    sheet = Image.new("RGB", (len(titles) * (width + GAP) + GAP, len(scenes) * (height + GAP) + TITLE + GAP), PAPER)
    _write_titles(sheet, titles, width)
    for line, scene in enumerate(scenes):
        top = TITLE + line * (height + GAP)
        references = sorted(scene.parent.glob(f"{scene.stem}-reference-*.png"))
        columns = [_together(references, (width, height)), _open(scene)]
        columns += [_open(store.picture(row, 0, line)) for row in ablation.rows]
        for column, picture in enumerate(columns):
            sheet.paste(picture, (GAP + column * (width + GAP), top))
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _write_titles(sheet: Image.Image, titles: Sequence[str], width: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, title in enumerate(titles):
        lines = "\n".join(textwrap.wrap(title, max(6, width // 6))[:2])
        draw.multiline_text((GAP + column * (width + GAP), 2), lines, fill=INK, font=font, spacing=1)


def _together(paths: Sequence[Path], size: tuple[int, int]) -> Image.Image:
    """Pictures two by two, or more, in one of a size."""
    whole = Image.new("RGB", size, PAPER)
    across = 1 if len(paths) == 1 else 2 if len(paths) <= 4 else 3
    side = min(size) // across
    for number, path in enumerate(paths):
        place = (number % across * side, number // across * side)
        whole.paste(_open(path).resize((side, side), Image.Resampling.BICUBIC), place)
    return whole


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
