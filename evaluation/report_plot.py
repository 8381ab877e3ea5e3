"""Plots of a report: how the scores of each metric are spread, and where its mean stands among a paper's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .report_summary import Comparison, Summary
from .report_text import heading, number
from .results import Measurement

SCALE = 2  # drawn larger, for smooth lines
WIDTH, SPREAD_HEIGHT, ROW_HEIGHT, NAME_WIDTH = 820, 120, 20, 190  # pixels
MARGIN, TITLE = 14, 30
BINS = 40
Colour = tuple[int, int, int]
_PAPER, _GRID, _INK, _PALE = (255, 255, 255), (226, 229, 235), (60, 64, 72), (120, 126, 138)
_BAR, _BAND, _OURS, _THEIRS = (178, 198, 234), (222, 232, 250), (200, 60, 28), (28, 88, 200)


def draw_plots(
    measurements: Sequence[Measurement], summaries: Sequence[Summary], papers: Sequence[Comparison], name: str
) -> Image.Image:
    """All plots, one below the other."""
    scored = {each.metric for each in measurements}  # average precision is not, picture by picture
    spreads = [each for each in summaries if not each.part and each.metric in scored]
    heights = [SPREAD_HEIGHT] * len(spreads) + [_paper_height(each) for each in papers]
    canvas = _Canvas(sum(heights) or SPREAD_HEIGHT)
    if not heights:
        canvas.text((WIDTH / 2, SPREAD_HEIGHT / 2), "nothing was measured", anchor="mm")
    top = 0.0
    for summary in spreads:
        scores = [each.score for each in measurements if each.metric == summary.metric and each.score is not None]
        _draw_spread(canvas, top, summary, np.array(scores))
        top += SPREAD_HEIGHT
    for comparison in papers:
        _draw_paper(canvas, top, comparison, name)
        top += _paper_height(comparison)
    return canvas.picture()


class _Canvas:
    """Paper that is measured in pixels of the finished picture."""

    def __init__(self, height: float) -> None:
        self._whole = Image.new("RGB", (WIDTH * SCALE, round(height) * SCALE), _PAPER)
        self._draw = ImageDraw.Draw(self._whole)
        self._font = ImageFont.load_default(12 * SCALE)

    def text(
        self, at: tuple[float, float], text: str, colour: Colour = _INK, anchor: str = "lm", room: float = WIDTH
    ) -> None:
        """A text, cut where there is no more room."""
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        while text and self._draw.textlength(text, self._font) > room * SCALE:
            text = text[:-2] + "…" if len(text) > 2 else ""
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, fill=colour, font=self._font, anchor=anchor)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle."""
        self._draw.rectangle([round(value * SCALE) for value in (left, top, right, bottom)], fill=colour)

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, width: float = 1) -> None:
        points = [value * SCALE for value in (*start, *end)]
        self._draw.line(points, fill=colour, width=round(width * SCALE))

    def dot(self, at: tuple[float, float], radius: float, colour: Colour) -> None:
        self._draw.circle([value * SCALE for value in at], radius * SCALE, fill=colour)

    def picture(self) -> Image.Image:
        return self._whole.resize((WIDTH, self._whole.height // SCALE), Image.Resampling.BOX)


def _draw_spread(canvas: _Canvas, top: float, summary: Summary, scores: np.ndarray) -> None:
    """A histogram with the mean and its interval."""
    missing = sum(summary.unmeasured.values())
    words = f"{summary.metric}   {number(summary.estimate)}   {summary.measured} measured" + (
        f", {missing} not" if missing else ""
    )
    canvas.text((MARGIN, top + 16), words, room=WIDTH - 2 * MARGIN)
    floor, ceiling = top + SPREAD_HEIGHT - 26, top + TITLE
    canvas.line((MARGIN, floor), (WIDTH - MARGIN, floor), _GRID)
    if not len(scores):
        return
    low, high = _limits(scores, 0.0)
    counts, edges = np.histogram(scores, BINS, (low, high))

    def across(value: float) -> float:
        return MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN)

    found = summary.estimate
    if not math.isnan(found.low):
        canvas.box(across(found.low), ceiling, across(found.high), floor, _BAND)
    for count, start, end in zip(counts, edges, edges[1:], strict=False):
        height = (floor - ceiling) * count / counts.max()
        if count:
            canvas.box(across(start) + 1, floor - max(1, height), across(end) - 1, floor, _BAR)
    canvas.line((across(found.mean), ceiling), (across(found.mean), floor), _OURS, 1.5)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        anchor = {0.0: "lm", 1.0: "rm"}.get(share, "mm")
        canvas.text((across(value), floor + 11), f"{value:.3g}", _PALE, anchor)


def _limits(values: np.ndarray, room: float) -> tuple[float, float]:
    """The ends of an axis that all values lie on, with a share of room at both; an axis is never of no length."""
    low, high = float(values.min()), float(values.max())
    more = room * (high - low) if high > low else max(0.01, 0.05 * abs(high))
    return low - more, high + more


def _paper_height(comparison: Comparison) -> float:
    return TITLE + ROW_HEIGHT * (len(comparison.table.rows) + 2) + MARGIN


def _draw_paper(canvas: _Canvas, top: float, comparison: Comparison, name: str) -> None:
    """A row of dots a method, a column a metric; further to the right is higher."""
    table = comparison.table
    canvas.text((MARGIN, top + 16), f"beside {heading(comparison)}")
    methods = [*(method for method, _numbers in table.rows), name]
    for row, method in enumerate(methods):
        height = top + TITLE + (row + 1.5) * ROW_HEIGHT
        ours = row == len(table.rows)
        canvas.line((NAME_WIDTH, height), (WIDTH - MARGIN, height), _GRID)
        canvas.text((MARGIN, height), method, _OURS if ours else _INK, room=NAME_WIDTH - MARGIN)
    width = (WIDTH - MARGIN - NAME_WIDTH) / len(table.columns)
    for column, (title, _metric) in enumerate(table.columns):
        left = NAME_WIDTH + column * width
        canvas.text((left + width / 2, top + TITLE + ROW_HEIGHT / 2), title, anchor="mm", room=width)
        _draw_column(canvas, comparison, column, left + 12, left + width - 12, top + TITLE + 1.5 * ROW_HEIGHT)


def _draw_column(canvas: _Canvas, comparison: Comparison, column: int, left: float, right: float, top: float) -> None:
    theirs = [numbers[column] for _method, numbers in comparison.table.rows]
    ours = comparison.ours[column]
    mine = [] if ours is None else [ours.estimate.mean, ours.estimate.low, ours.estimate.high]
    there = [value for value in [*theirs, *mine] if value is not None and not math.isnan(value)]
    if not there:
        return
    low, high = _limits(np.array(there), 0.04)

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    for row, value in enumerate(theirs):
        if value is not None:
            canvas.dot((across(value), top + row * ROW_HEIGHT), 4, _THEIRS)
    height = top + len(theirs) * ROW_HEIGHT
    if mine and not math.isnan(mine[1]):
        canvas.line((across(mine[1]), height), (across(mine[2]), height), _OURS, 3)
    if mine and not math.isnan(mine[0]):
        canvas.dot((across(mine[0]), height), 5, _OURS)
