"""Reads a jobs file: CSV with a heading, or JSONL with an object a line. One row is one job, or several where a cell says so."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BatchError

DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: of the file, from 1, for sentences.
        cells: column -> text (CSV) or JSON value; a cell that says nothing is not in here.
    """

    line: int
    cells: dict[str, Any]


def read_jobs(path: Path) -> list[Row]:
    """The rows of a jobs file.

    Raises:
        BatchError: it is missing, cannot be read or holds no row.
    """
    reader = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows}.get(path.suffix.lower())
    if reader is None:
        raise BatchError(f"{path.name} is neither .csv nor .jsonl; save the jobs as one of them")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BatchError(f"there is no jobs file {path}; check its name") from None
    except UnicodeDecodeError:
        raise BatchError(f"{path.name} is not UTF-8 text; save it as CSV UTF-8") from None
    except OSError as error:
        raise BatchError(f"{path} cannot be read: {error.strerror}") from None
    rows = list(reader(path.name, text))
    if not rows:
        raise BatchError(f"{path.name} is empty; write one row for every job below its heading")
    return rows


def _csv_rows(name: str, text: str) -> Iterator[Row]:
    heading_line = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=heading_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        _check_columns(name, columns)
        for cells in reader:
            if len(cells) > len(columns):
                raise BatchError(
                    f"line {reader.line_num} of {name} has {len(cells)} cells for {len(columns)} columns; put quotes"
                    f" around a cell that holds '{delimiter}'"
                )
            filled = {column: cell for column, cell in zip(columns, cells, strict=False) if cell.strip()}
            if filled:
                yield Row(reader.line_num, filled)
    except csv.Error as error:
        raise BatchError(f"line {reader.line_num} of {name} is no CSV ({error}); mend it") from None


def _check_columns(name: str, columns: list[str]) -> None:
    for number, column in enumerate(columns, start=1):
        if not column:
            raise BatchError(f"column {number} of {name} has no heading; write which node input it fills")
        if column in columns[: number - 1]:
            raise BatchError(f"{name} has two columns '{column}'; remove one")


def _json_rows(name: str, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise BatchError(f'line {number} of {name} is no JSON object such as {{"prompt": "a cat"}}; mend it')
        yield Row(number, {column.strip(): cell for column, cell in cells.items() if cell is not None})
