"""A report as JSON, as CSV for spreadsheets, and as Markdown beside the papers' rows."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .report_summary import Comparison, Context, Summary
from .results import Measurement
from .statistics import LEVEL, Estimate

FORMAT, VERSION = "ensemble-report", 1
COLUMNS = ("key", "part", "group", "subject", "metric", "score", "picture", "reference", "note")
NONE = "–"
_FORMULA = tuple("=+-@\t\r")  # what a spreadsheet takes for the beginning of a formula


def report_json(
    title: str, name: str, context: Context, summaries: Sequence[Summary], papers: Sequence[Comparison]
) -> str:
    """All that is in the tables, for programs."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "title": title,
        "name": name,
        "benchmark": context.benchmark,
        "level": LEVEL,
        "summaries": [_summary(each) for each in summaries],
        "papers": [_comparison(each) for each in papers],
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _summary(summary: Summary) -> dict[str, Any]:
    numbers = {name: None if math.isnan(value) else value for name, value in vars(summary.estimate).items()}
    return {
        "metric": summary.metric,
        "part": summary.part,
        **numbers,
        "measured": summary.measured,
        "unmeasured": dict(summary.unmeasured),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    table = comparison.table
    return {
        "paper": table.paper,
        "table": table.table,
        "part": table.part,
        "columns": [heading for heading, _metric in table.columns],
        "rows": [[method, *numbers] for method, numbers in table.rows],
        "ours": [None if each is None else _summary(each) for each in comparison.ours],
    }


def measurements_csv(measurements: Sequence[Measurement], context: Context) -> str:
    """One row a measurement. A text that a spreadsheet would run as a formula has an apostrophe before it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in measurements:
        known = {**vars(each), "part": context.part(each), "group": context.group(each)}
        writer.writerow([_cell(known[column]) for column in COLUMNS])
    return file.getvalue()


def _cell(value: str | float | None) -> str | float | None:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def report_markdown(
    title: str, name: str, context: Context, summaries: Sequence[Summary], papers: Sequence[Comparison], plot: str
) -> str:
    """The tables, for documents.

    Args:
        plot: where the plots are, seen from the text.
    """
    lines = [f"# {plain(title)}", "", how_measured(context), ""]
    for part, chosen in by_part(summaries).items():
        lines += [f"## {plain(part)}", ""] if part else []
        lines += [*summary_table(chosen), ""]
    for comparison in papers:
        lines += [f"## Beside {plain(heading(comparison))}", "", *paper_table(comparison, name), ""]
    return "\n".join([*lines, f"![Scores]({plot})", ""])


def how_measured(context: Context) -> str:
    """What the numbers in brackets are."""
    drawn = "groups of pictures that belong together" if context.groups else "pictures"
    return f"Means, with {LEVEL:.0%} intervals in brackets (bootstrap over {drawn})."


def by_part(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """The summaries of each part, those of everything first."""
    found: dict[str, list[Summary]] = {}
    for each in summaries:
        found.setdefault(each.part, []).append(each)
    return found


def summary_rows(summaries: Sequence[Summary]) -> list[tuple[str, str, str, str]]:
    """Metric, mean, how many were measured, and why others were not."""
    return [(each.metric, number(each.estimate), str(each.measured), missing(each)) for each in summaries]


def summary_table(summaries: Sequence[Summary]) -> list[str]:
    head = ["| metric | mean | measured | not measured |", "|---|---:|---:|---|"]
    return head + [_line(map(plain, row)) for row in summary_rows(summaries)]


def paper_table(comparison: Comparison, name: str) -> list[str]:
    """A paper's rows, and ours below them in bold."""
    head, *rows = paper_rows(comparison, name)
    lines = [_line(map(plain, head)), "|---|" + "---:|" * (len(head) - 1)]
    lines += [_line(map(plain, row)) for row in rows[:-1]]
    return [*lines, _line(f"**{plain(cell)}**" for cell in rows[-1])]


def paper_rows(comparison: Comparison, name: str) -> list[list[str]]:
    """The headings, the paper's rows, and ours last."""
    table = comparison.table
    head = ["", *(title for title, _metric in table.columns)]
    rows = [
        [method, *(NONE if value is None else table.written(value) for value in numbers)]
        for method, numbers in table.rows
    ]
    ours = [NONE if each is None else number(each.estimate) for each in comparison.ours]
    return [head, *rows, [name, *ours]]


def heading(comparison: Comparison) -> str:
    """ "ASTRA, Table 3", and the part if it is of one."""
    part = comparison.table.part
    return comparison.table.source + (f" ({part})" if part else "")


def number(found: Estimate) -> str:
    """A mean with its interval."""
    if math.isnan(found.mean):
        return NONE
    return f"{found.mean:.4f}" + ("" if math.isnan(found.low) else f" [{found.low:.4f}, {found.high:.4f}]")


def missing(summary: Summary) -> str:
    """How many have no score, and why."""
    return "; ".join(f"{count}: {note}" for note, count in summary.unmeasured.items())


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """A text as Markdown shows it: on one line, and nothing in it is taken for a mark, a tag or a cell's end."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", escaped)
