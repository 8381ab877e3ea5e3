"""Rows and grids -> jobs: what each one puts into the workflow, all of it checked.

A cell holds one value, or several jobs' worth: ``1..4`` (whole numbers), ``random`` and ``random*4`` (seeds), a JSON list
(JSONL). Every grid multiplies all jobs. A column `cast` names a folder, see `cast_folder`; one whose heading begins with # goes
into names and the manifest only.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .addresses import Addresses, Target
from .cast_folder import COLUMN as CAST
from .cast_folder import Place, fill, find_places
from .declared import cell_value
from .errors import BatchError
from .jobs_file import Row
from .queue_client import Workflow

NOTE = "#"  # begins the heading of a column that fills nothing
MOST_JOBS = 1_000_000  # more is a slip of the pen
MOST_SEED = 2**48 - 1  # every program keeps such a number whole
_RANGE = re.compile(r"\s*(-?\d{1,18})\s*\.\.\s*(-?\d{1,18})\s*")
_RANDOM = re.compile(r"\s*random\s*(?:\*\s*(\d{1,9}))?\s*", re.IGNORECASE)

Slot = tuple[str, str]  # node and input


class _Random:
    """A seed that is still to be drawn."""


RANDOM = _Random()


@dataclass(frozen=True)
class Column:
    """A column of the jobs file or a grid.

    Attributes:
        target: what it fills; None for notes and the cast.
    """

    name: str
    target: Target | None


@dataclass(frozen=True)
class Job:
    """One run of the workflow.

    Attributes:
        number: from 1, in the order of the jobs file.
        line: of the jobs file.
        cells: column -> its value in this job, files and folders as they were written.
        values: what goes into the workflow.
        pictures: files that go into the workflow by way of an upload.
    """

    number: int
    line: int
    cells: dict[str, Any]
    values: dict[Slot, Any] = field(default_factory=dict)
    pictures: dict[Slot, Path] = field(default_factory=dict)

    def prompt(self, workflow: Workflow, uploaded: Mapping[Slot, str]) -> Workflow:
        """The workflow with this job's values in place."""
        prompt = copy.deepcopy(workflow)
        for (node, name), value in {**self.values, **uploaded}.items():
            prompt[node]["inputs"][name] = value
        return prompt


@dataclass(frozen=True)
class Grid:
    """`--grid`: a column, and the values that every job is repeated with."""

    column: str
    cells: Sequence[str]


def parse_grid(text: str) -> Grid:
    """``Title.input=a,b,c``; quotes keep a comma in a value."""
    column, equals, cells = text.partition("=")
    values = [cell for cell in next(csv.reader([cells], skipinitialspace=True), []) if cell.strip()]
    if not (column.strip() and equals and values):
        raise BatchError(f"--grid '{text}' is not of the form Title.input=a,b,c")
    return Grid(column.strip(), values)


def seed_drawer(secret: str) -> Callable[[int, str], int]:
    """Draws the seeds of a batch: always the same for the same secret, job and column, so that a resumed batch goes on as it
    began."""
    return lambda job, column: int.from_bytes(hashlib.sha256(f"{secret}/{job}/{column}".encode()).digest()[:6], "big")


@dataclass(frozen=True)
class JobList:
    """All jobs of a batch.

    Attributes:
        columns: in the order of the jobs file, then the grids.
    """

    columns: list[Column]
    jobs: list[Job]


def build_jobs(
    rows: Sequence[Row],
    grids: Sequence[Grid],
    addresses: Addresses,
    folder: Path,
    draw: Callable[[int, str], int],
) -> JobList:
    """The jobs that rows and grids ask for.

    Args:
        folder: what relative file names start from.
        draw: gives a random seed for the number of a job and a column.

    Raises:
        BatchError: a column fills nothing, a value does not fit, a file is missing.
    """
    columns = _columns(rows, grids, addresses)
    places = find_places(addresses) if any(column.name == CAST for column in columns) else []
    _check_overlap(columns, places)
    reader = _CellReader(addresses, folder)
    grid_cells = [(grid.column, _several(reader, columns, grid.column, list(grid.cells), "--grid")) for grid in grids]
    jobs: list[Job] = []
    for row in rows:
        here = f"line {row.line}"
        choices = [(name, _several(reader, columns, name, cell, here)) for name, cell in row.cells.items()] + grid_cells
        for cells in itertools.product(*(values for _name, values in choices)):
            if len(jobs) >= MOST_JOBS:
                raise BatchError(f"these are more than {MOST_JOBS} jobs; take fewer values")
            chosen = dict(zip([name for name, _values in choices], cells, strict=True))
            jobs.append(_job(len(jobs) + 1, row.line, chosen, columns, reader, places, draw))
    return JobList(columns, jobs)


def _columns(rows: Sequence[Row], grids: Sequence[Grid], addresses: Addresses) -> list[Column]:
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    for grid in grids:
        if grid.column in names:
            raise BatchError(f"'{grid.column}' is a column and a grid, or two grids; keep one")
        names.append(grid.column)
    return [Column(name, None if name == CAST or name.startswith(NOTE) else addresses.find(name)) for name in names]


def _check_overlap(columns: Sequence[Column], places: Sequence[Place]) -> None:
    """A BatchError where two columns fill the same input."""
    filled: dict[Slot, str] = {(place.picture.node, place.picture.declared.name): CAST for place in places}
    filled |= {(place.subject, "name"): CAST for place in places if place.subject is not None}
    for column in columns:
        if column.target is None:
            continue
        slot = column.target.node, column.target.declared.name
        if slot in filled:
            raise BatchError(f"the columns '{filled[slot]}' and '{column.name}' fill the same input; remove one")
        filled[slot] = column.name


def _several(reader: _CellReader, columns: Sequence[Column], name: str, cell: Any, where: str) -> list[Any]:
    """The values that a cell stands for."""
    column = next(column for column in columns if column.name == name)
    cells = cell if isinstance(cell, list) else [cell]
    if not cells:
        raise BatchError(f"{where}, '{name}': it is an empty list; write its values or leave the column out")
    try:
        return [value for one in cells for value in reader.values(column, one)]
    except BatchError as error:
        raise BatchError(f"{where}, '{name}': {error}") from None


@dataclass(frozen=True)
class _CellReader:
    addresses: Addresses
    folder: Path

    def values(self, column: Column, cell: Any) -> list[Any]:
        """One cell's values: of the input's type, a file that is to be uploaded as a `Path`."""
        if column.target is None:
            if isinstance(cell, (dict, list)):
                raise BatchError(f"{cell!r} is no single value")
            return [self.folder / Path(str(cell).strip()).expanduser()] if column.name == CAST else [cell]
        declared = column.target.declared
        if declared.is_file:
            return [self._file(column.target, str(cell).strip())]
        if declared.type == "INT" and isinstance(cell, str):
            many = _RANGE.fullmatch(cell)
            if many:
                return [cell_value(declared, number) for number in _numbers(int(many[1]), int(many[2]))]
            many = _RANDOM.fullmatch(cell)
            if many:
                return [RANDOM] * _count(int(many[1] or 1))
        return [cell_value(declared, cell)]

    def _file(self, target: Target, name: str) -> Path | str:
        """A file of this machine, or the name of one that the server has."""
        path = self.folder / Path(name).expanduser()
        if path.is_file():
            return path
        if name in (target.declared.options.get("options") or ()):
            return name
        raise BatchError(f"there is no file {path}, and none of that name on the server; check its name")


def _numbers(first: int, last: int) -> range:
    _count(abs(last - first) + 1)
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)


def _count(number: int) -> int:
    if not 1 <= number <= MOST_JOBS:
        raise BatchError(f"it stands for {number} jobs; 1 to {MOST_JOBS} are possible")
    return number


def _job(
    number: int,
    line: int,
    chosen: Mapping[str, Any],
    columns: Sequence[Column],
    reader: _CellReader,
    places: list[Place],
    draw: Callable[[int, str], int],
) -> Job:
    job = Job(number, line, {})
    for column in columns:
        if column.name not in chosen:
            continue
        value = chosen[column.name]
        if column.name == CAST:
            _fill_cast(job, value, reader, places)
        elif column.target is not None:
            slot = column.target.node, column.target.declared.name
            if isinstance(value, _Random):
                value = _within(column.target, draw(number, column.name))
            if isinstance(value, Path):
                job.pictures[slot] = value
            else:
                job.values[slot] = value
        job.cells[column.name] = str(value) if isinstance(value, Path) else value
    return job


def _fill_cast(job: Job, folder: Path, reader: _CellReader, places: list[Place]) -> None:
    try:
        filling = fill(places, folder, reader.addresses.workflow)
    except BatchError as error:
        raise BatchError(f"line {job.line}: {error}") from None
    job.values.update(filling.values)
    job.pictures.update(filling.pictures)


def _within(target: Target, drawn: int) -> int:
    """A drawn number, within what the input takes."""
    low = max(0, int(target.declared.options.get("min", 0)))
    high = min(MOST_SEED, int(target.declared.options.get("max", MOST_SEED)))
    return low + drawn % max(1, high - low + 1)
