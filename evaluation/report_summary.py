"""Measurements -> means with intervals, of everything and of each part, and the papers' rows that stand beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np

from .oks_precision import precision_of
from .paper_tables import PaperTable, tables_of
from .results import Measurement
from .statistics import Estimate, estimate_groups


@dataclass(frozen=True)
class Summary:
    """One metric over all pictures, or over those of a part.

    Attributes:
        part: empty for all.
        estimate: its ends are nan where one group alone was measured, all of it where nothing was.
        unmeasured: why there is no score -> how often.
    """

    metric: str
    part: str
    estimate: Estimate
    measured: int
    unmeasured: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """A paper's table, and our numbers for its columns; None for a column that was not measured."""

    table: PaperTable
    ours: tuple[Summary | None, ...]


@dataclass(frozen=True)
class Context:
    """What is known of the pictures besides their scores.

    Attributes:
        benchmark: whose papers' rows are to stand beside the scores; empty for none.
        groups: key -> the group of pictures that vary together, such as those of one subject; a picture is one of its own
            without.
        parts: key -> the part of the benchmark that a picture belongs to, such as a scene.
    """

    benchmark: str = ""
    groups: Mapping[str, str] | None = None
    parts: Mapping[str, str] | None = None

    def group(self, measurement: Measurement) -> str:
        return (self.groups or {}).get(measurement.key, measurement.key)

    def part(self, measurement: Measurement) -> str:
        return (self.parts or {}).get(measurement.key, "")


def summarise(measurements: Sequence[Measurement], context: Context) -> list[Summary]:
    """Every metric in the order of its first appearance: over everything, then over each part where there are several.

    COCO's average precision and recall follow OKS. They are of all pictures at once, and have no interval.
    """
    found = _summaries("", measurements, context)
    parts = list(dict.fromkeys(part for part in map(context.part, measurements) if part))
    for part in parts if len(parts) > 1 else ():
        inside = [each for each in measurements if context.part(each) == part]
        found += _summaries(part, inside, context)
    return found


def _summaries(part: str, measurements: Sequence[Measurement], context: Context) -> list[Summary]:
    found = []
    for metric, chosen in _by_metric(measurements).items():
        summary = _summary(metric, part, chosen, context)
        ranked = precision_of(chosen).items()
        found += [
            summary,
            *(replace(summary, metric=name, estimate=Estimate(value, nan, nan)) for name, value in ranked),
        ]
    return found


def compare(summaries: Sequence[Summary], measurements: Sequence[Measurement], context: Context) -> list[Comparison]:
    """The papers' tables that have a metric in common with what was measured."""
    parts = {context.part(each) for each in measurements}
    only = parts.pop() if len(parts) == 1 else ""  # the one part there is, which has no summary of its own
    ours = {(each.metric.casefold(), each.part): each for each in summaries}
    found = []
    for table in tables_of(context.benchmark):
        part = "" if table.part == only else table.part
        columns = tuple(ours.get((metric.casefold(), part)) for _heading, metric in table.columns)
        if any(columns):
            found.append(Comparison(table, columns))
    return found


def _by_metric(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for each in measurements:
        found.setdefault(each.metric, []).append(each)
    return found


def _summary(metric: str, part: str, measurements: Sequence[Measurement], context: Context) -> Summary:
    places: dict[str, int] = {}
    group = np.array([places.setdefault(context.group(each), len(places)) for each in measurements])
    scores = np.array([np.nan if each.score is None else each.score for each in measurements])
    there = ~np.isnan(scores)
    sums = np.bincount(group[there], scores[there], minlength=len(places))
    counts = np.bincount(group[there], minlength=len(places))
    unmeasured = Counter(each.note or "no reason given" for each in measurements if each.score is None)
    return Summary(metric, part, estimate_groups(sums, counts), int(there.sum()), dict(unmeasured.most_common()))
