"""The papers' own numbers: figures alone, each with its paper and table (`paper_tables.json`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import EvaluationError

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper.

    Attributes:
        benchmark: what was measured on; `part` the part of it, empty for all.
        columns: (the column's heading, our name of the metric).
        rows: (method, a number or None a column).
    """

    paper: str
    table: str
    benchmark: str
    part: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]

    @property
    def source(self) -> str:
        """ "ASTRA, Table 3"."""
        return f"{self.paper}, {self.table}"

    def written(self, number: float) -> str:
        """A number of it with as many digits as the table has."""
        every = (value for _method, numbers in self.rows for value in numbers if value is not None)
        digits = max(len(repr(value).partition(".")[2]) for value in every)
        return f"{number:.{digits}f}"


@cache
def paper_tables() -> tuple[PaperTable, ...]:
    """All of them."""
    return tuple(
        PaperTable(
            paper=table["paper"],
            table=table["table"],
            benchmark=table["benchmark"],
            part=table.get("part", ""),
            columns=tuple(table["columns"].items()),
            rows=tuple((name, tuple(numbers)) for name, numbers in table["rows"].items()),
        )
        for table in json.loads(FILE.read_text(encoding="utf-8"))
    )


def benchmarks() -> list[str]:
    """The benchmarks that a paper has numbers for."""
    return list(dict.fromkeys(table.benchmark for table in paper_tables()))


def tables_of(benchmark: str) -> Sequence[PaperTable]:
    """The tables of a benchmark; none for the empty name.

    Raises:
        EvaluationError: no paper has one of that name.
    """
    if benchmark and benchmark not in benchmarks():
        raise EvaluationError(f"no paper has numbers for '{benchmark}'; choose one of {', '.join(benchmarks())}")
    return [table for table in paper_tables() if table.benchmark == benchmark]
