"""One promise about speed or memory, and what was measured: a row of ``dev.py bench``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

UNDER, AT_MOST, AT_LEAST = "under", "at most", "at least"
SHARE = "share"  # of a whole, which is spelled in per cent; a ratio of two things of a kind has the unit "x"


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        id: stays the same for as long as the same thing is measured; commits are compared by it.
        name: what is measured, for a reader.
        unit: ``s``, ``ms``, ``MB``, ``MiB``, ``GiB``, ``x``, ``share``, or what is counted.
        value: None where it could not be measured.
        bound: what is promised, in the same unit; None where nothing is.
        limit: how the value keeps the bound: ``UNDER``, ``AT_MOST`` or ``AT_LEAST``.
        device: where it was measured, as PyTorch calls it; ``any`` for what is counted without running.
        problem: why it could not be measured.
    """

    id: str
    name: str
    unit: str
    value: float | None
    bound: float | None = None
    limit: str = UNDER
    device: str = "cpu"
    problem: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the promise is kept; None where nothing is promised. What could not be measured is not kept."""
        if self.problem:
            return False
        if self.bound is None or self.value is None:
            return None
        if self.limit == AT_LEAST:
            return self.value >= self.bound
        return self.value < self.bound if self.limit == UNDER else self.value <= self.bound

    @property
    def promised(self) -> str:
        """The promise in words."""
        return "no promise" if self.bound is None else f"{self.limit} {_spelled(self.bound, self.unit, 4)}"

    @property
    def measured(self) -> str:
        """The value in words."""
        return "not measured" if self.value is None else _spelled(self.value, self.unit, 3)

    def record(self) -> dict[str, Any]:
        """As it is written."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return values | {"promised": self.promised, "met": self.met}


def row_of(record: dict[str, Any]) -> Row:
    """The row of a record; what else is in it is left out.

    Raises:
        KeyError, TypeError: something is missing.
    """
    row = Row(**{name: record[name] for name in Row.__dataclass_fields__})
    return replace(row, value=None if row.value is None else float(row.value))


def failed(family: str, problem: str) -> Row:
    """The row of a family that could not be measured."""
    return Row(family, f"the rows of {family}", "", None, problem=problem)


def _spelled(value: float, unit: str, digits: int) -> str:
    number, unit = (100 * value, "%") if unit == SHARE else (value, unit)
    text = f"{number:.{digits}g}"
    text = f"{number:,.0f}" if "e" in text and abs(number) >= 1 else text
    return f"{text} {unit}".strip()
