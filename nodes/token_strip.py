"""Draws a prompt as the row of tokens a text encoder makes of it, coloured by whom they describe."""

from __future__ import annotations

import colorsys
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from PIL import Image, ImageDraw

from ..attention_patches.prompt_tokens import Token
from .contact_sheet import BACKGROUND, FOREGROUND
from .lettering import lettering

Colour = tuple[int, int, int]

WIDTH = 1024  # pixels
MAX_ROWS = 120
_FINE = 2  # drawn this much larger and made smaller, which rounds the corners
_MARGIN, _GUTTER = 20, 52  # around all; for the number of a row's first token
_CHIP, _LINE = 30, 40  # height of a token, of its row
_PADDING, _GAP = 8, 5  # inside a token, between words
_TEXT, _SMALL = 17, 13  # font sizes
_QUIET: Colour = (130, 130, 138)
_NOBODY: Colour = (58, 58, 64)
_INK: Colour = (16, 16, 20)
_UNKNOWN = ("<unk>", "[UNK]")


@dataclass(frozen=True)
class Chip:
    """A token as it is drawn, or several that are no words.

    Attributes:
        index: of the first of them.
        label: what is written on it.
        joined: whether it goes on with the word before.
        word: False for start, end and padding.
    """

    index: int
    label: str
    joined: bool
    word: bool


def chips_of(text: str, tokens: Sequence[Token]) -> list[Chip]:
    """Every token with the characters it stands for; what is no word is put together."""
    chips: list[Chip] = []
    for (piece, _), group in groupby(enumerate(tokens), key=lambda item: _kind(*item)):
        run = list(group)
        if run[0][1].start == run[0][1].stop:
            count = f" × {len(run)}" if len(run) > 1 else ""
            chips.append(Chip(run[0][0], piece + count, False, False))
            continue
        for number, (index, token) in enumerate(run, start=1):
            before = tokens[index - 1].stop if index else 0
            part = f" {number}/{len(run)}" if len(run) > 1 else ""
            joined = number > 1 or (chips != [] and chips[-1].word and before >= token.start)
            chips.append(Chip(index, _label(text, token) + part, joined, True))
    return chips


def _kind(index: int, token: Token) -> tuple[str, tuple[int, int]]:
    """Equal for neighbours that share a label: padding, or the parts of one character."""
    if token.start == token.stop:
        return token.piece, (0, 0)
    return "", (token.start, token.stop) if token.piece != "▁" else (-index - 1, 0)


def _label(text: str, token: Token) -> str:
    if token.piece == "▁":  # T5's token for a space of its own
        return "_"
    label = " ".join(text[token.start : token.stop].split())
    return f"{label} (unknown)" if token.piece in _UNKNOWN else label


def colour_of(subject: int) -> Colour:
    """Light enough for dark letters; neighbours differ most."""
    red, green, blue = colorsys.hls_to_rgb((0.58 + subject * 0.618034) % 1, 0.7, 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_token_strip(text: str, tokens: Sequence[Token], spans: Mapping[str, Sequence[tuple[int, int]]]) -> np.ndarray:
    """A legend of the subjects and all tokens in order, (H, WIDTH, 3) float32 in [0, 1].

    Args:
        text: the characters that the tokens' ranges count.
        tokens: one for every text embedding.
        spans: token ranges [start, stop) by subject.
    """
    chips = chips_of(text, tokens)
    rows = _rows(chips)
    shown = rows[:MAX_ROWS]
    height = 2 * _MARGIN + _LINE * (len(spans) + len(shown) + (len(rows) > len(shown))) + _MARGIN
    picture = Image.new("RGB", (_FINE * WIDTH, _FINE * height), BACKGROUND)
    pen = _Pen(ImageDraw.Draw(picture))
    y = _MARGIN
    for number, (name, ranges) in enumerate(spans.items()):
        _draw_legend(pen, y, number, name, ranges)
        y += _LINE
    y += _MARGIN
    for row in shown:
        pen.write(_MARGIN, y, str(row[0][1].index), _SMALL, _QUIET)
        for x, chip in row:
            owners = [number for number, ranges in enumerate(spans.values()) if _holds(ranges, chip.index)]
            pen.chip(x, y, chip, owners)
        y += _LINE
    if len(rows) > len(shown):
        left = len(tokens) - rows[len(shown)][0][1].index
        pen.write(_MARGIN + _GUTTER, y, f"and {left} more tokens", _TEXT, _QUIET)
    return np.asarray(picture.resize((WIDTH, height), Image.Resampling.LANCZOS), dtype=np.float32) / 255.0


def _holds(ranges: Sequence[tuple[int, int]], index: int) -> bool:
    return any(start <= index < stop for start, stop in ranges)


def _rows(chips: Sequence[Chip]) -> list[list[tuple[int, Chip]]]:
    """The chips in lines, each with its x."""
    rows: list[list[tuple[int, Chip]]] = []
    x = 0
    for chip in chips:
        width = _chip_width(chip)
        x += 1 if chip.joined else _GAP
        if not rows or x + width > WIDTH - _MARGIN or chip.label == "start":
            rows.append([])
            x = _MARGIN + _GUTTER
        rows[-1].append((x, chip))
        x += width
    return rows


def _chip_width(chip: Chip) -> int:
    label, font = lettering(chip.label, _FINE * (_TEXT if chip.word else _SMALL))
    return min(math.ceil(font.getlength(label) / _FINE) + 2 * _PADDING, WIDTH - 2 * _MARGIN - _GUTTER)


def _draw_legend(pen: _Pen, y: int, number: int, name: str, ranges: Sequence[tuple[int, int]]) -> None:
    pen.box(_MARGIN, y, _GUTTER - 12, [number])
    listed = ", ".join(str(start) if stop == start + 1 else f"{start}–{stop - 1}" for start, stop in ranges)
    x = _MARGIN + _GUTTER + pen.write(_MARGIN + _GUTTER, y, name, _TEXT, FOREGROUND)
    pen.write(x + 14, y, f"tokens {listed}", _SMALL, _QUIET)


class _Pen:
    """Draws in the picture's own pixels on one that is `_FINE` times as large."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def write(self, x: int, y: int, text: str, size: int, colour: Colour, width: int = WIDTH) -> int:
        """Text in the middle of a row of chips, cut to `width`; returns what it takes of it."""
        label, font = lettering(text, _FINE * size)
        room = _FINE * min(width, WIDTH - _MARGIN - x)
        if font.getlength(label) > room:
            cut = bisect_right(range(len(label)), room, key=lambda end: font.getlength(label[:end] + "..."))
            label = label[: max(0, cut - 1)] + "..."
        self.draw.text((_FINE * x, _FINE * (y + _CHIP // 2)), label, fill=colour, font=font, anchor="lm")
        return math.ceil(font.getlength(label) / _FINE)

    def chip(self, x: int, y: int, chip: Chip, owners: Sequence[int]) -> None:
        width = _chip_width(chip)
        if not chip.word:
            self.write(x + _PADDING, y, chip.label, _SMALL, _QUIET, width - 2 * _PADDING)
            return
        self.box(x, y, width, owners)
        self.write(x + _PADDING, y, chip.label, _TEXT, _INK if owners else FOREGROUND, width - 2 * _PADDING)

    def box(self, x: int, y: int, width: int, owners: Sequence[int]) -> None:
        """In the colour of its owner, or its owners', one below the other."""
        left, top, right, bottom = (_FINE * edge for edge in (x, y, x + width, y + _CHIP))
        colours = [colour_of(owner) for owner in owners] or [_NOBODY]
        self.draw.rounded_rectangle((left, top, right, bottom), _FINE * 6, fill=colours[0])
        for number, colour in enumerate(colours[1:], start=1):
            edge = top + (bottom - top) * number // len(colours)
            self.draw.rectangle((left, edge, right, bottom), fill=colour)
