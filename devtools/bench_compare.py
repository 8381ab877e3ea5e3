"""What changed between two files of ``dev.py bench --json``, and which promises it broke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devtools.bench_record import Measured

NOTEWORTHY = 0.1  # of the bound, or of the earlier value where nothing is promised


@dataclass(frozen=True)
class Comparison:
    """Two runs beside each other.

    Attributes:
        broken: promises that the first run kept and the second does not, or cannot show any more.
        kept: promises that the second run keeps and the first did not.
        changed: values that moved by more than `NOTEWORTHY`, those of `broken` and `kept` not among them.
        gone, new: rows of the first run alone, and of the second alone.
        alike: how many rows are as they were.
        elsewhere: whether the two ran on different machines.
    """

    broken: list[tuple[Measured, Measured]]
    kept: list[tuple[Measured, Measured]]
    changed: list[tuple[Measured, Measured]]
    gone: list[Measured]
    new: list[Measured]
    alike: int
    elsewhere: bool


def compare(before: Sequence[Measured], after: Sequence[Measured]) -> Comparison:
    """Rows are matched by their id and kind of device; of two alike the last counts.

    A row that is gone because its family failed counts as broken if it was kept before; one that was not asked for does not.
    """
    earlier, later = ({one.key: one for one in rows} for rows in (before, after))
    failures = {one.family: one for one in after if one.row.problem}
    pairs = [(one, later.get(key) or failures.get(one.family)) for key, one in earlier.items()]
    both = [(one, other) for one, other in pairs if other is not None]
    broken = [pair for pair in both if pair[0].row.met and pair[1].row.met is False]
    kept = [pair for pair in both if pair[0].row.met is False and pair[1].row.met]
    rest = [pair for pair in both if pair not in broken and pair not in kept]
    changed = [pair for pair in rest if has_moved(*pair)]
    return Comparison(
        broken,
        kept,
        changed,
        gone=[one for one, other in pairs if other is None],
        new=[one for key, one in later.items() if key not in earlier],
        alike=len(rest) - len(changed),
        elsewhere={str(one.machine) for one, _ in both} != {str(one.machine) for _, one in both},
    )


def has_moved(before: Measured, after: Measured) -> bool:
    """Whether a value is so much larger or smaller that somebody may want to know."""
    old, new = before.row.value, after.row.value
    if old is None or new is None:
        return old is not new
    return abs(new - old) > NOTEWORTHY * abs(after.row.bound if after.row.bound is not None else old)


def report(found: Comparison) -> str:
    """The comparison in words: a table of what is different."""
    lines = ["The two ran on different machines; times say little."] if found.elsewhere and found.alike else []
    tables = (("Newly broken", found.broken), ("Newly kept", found.kept), ("Changed", found.changed))
    for title, pairs in tables:
        if pairs:
            lines += [f"{title}:", "", "| what | before | after | promised | device |", "|---|---|---|---|---|"]
            lines += [_line(*pair) for pair in pairs]
            lines.append("")
    for title, rows in (("Only in the first", found.gone), ("Only in the second", found.new)):
        if rows:
            lines += [f"{title}: " + "; ".join(f"{one.row.name} ({one.row.measured})" for one in rows) + ".", ""]
    broken = f"{len(found.broken)} newly broken" if found.broken else "no promise newly broken"
    return "\n".join([*lines, f"{found.alike} rows as before, {len(found.changed)} changed, {broken}."])


def _line(before: Measured, after: Measured) -> str:
    now = after.row.problem or after.row.measured
    row = before.row
    was = row.problem or row.measured
    promised = row.promised if row.bound is not None else after.row.promised
    return f"| {row.name} | {was} | {now} | {promised} | {row.device} |"
