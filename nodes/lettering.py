"""Text in pictures, in whatever script the artist writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own font knows Latin letters alone; these are what common systems have for the rest.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "seguiemj.ttf",
)
_NO_CHARACTER = "\uffff"  # drawn as every character is that a font lacks


@lru_cache(maxsize=1024)
def lettering(text: str, size: int) -> tuple[str, Font]:
    """`text` with a font that can draw it; characters that no font here has become their numbers, as U+5973."""
    fonts = list(_fonts(size))
    best = max(fonts, key=lambda font: sum(_draws(font, character) for character in text))  # the first of equals
    return "".join(
        character if _draws(best, character) else f" U+{ord(character):04X} " for character in text
    ).strip(), best


@lru_cache
def _fonts(size: int) -> tuple[Font, ...]:
    return tuple(_available(size))


def _available(size: int) -> Iterator[Font]:
    yield ImageFont.load_default(size)
    for name in _SYSTEM_FONTS:
        try:
            yield ImageFont.truetype(name, size)
        except OSError:
            continue


@lru_cache(maxsize=4096)
def _draws(font: Font, character: str) -> bool:
    if character.isspace():
        return True
    drawn, absent = (cast("Any", font.getmask(each)) for each in (character, _NO_CHARACTER))
    return bytes(drawn) != bytes(absent)
