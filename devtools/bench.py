"""Every promise about speed and memory as a row: what was measured, what was promised, and whether it holds on this machine.

    python dev.py bench [NAME ...] [--json FILE]
    python dev.py bench --compare BEFORE.json AFTER.json

Ratios come from paired runs, side by side in one process; every family has a process of its own, and one that fails is a row
that says so. Where there is an accelerator, what depends on it is measured there and on the processor. A timing decides no
test: a broken promise is a "no" in the table, and only a comparison with an earlier commit ends with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from devtools.bench_compare import compare, report
from devtools.bench_family import measure
from devtools.bench_record import BenchError, Measured, measured_here, read_rows, write_rows

FAMILIES = (
    "start",
    "sizes",
    "retrieval",
    "pose",
    "pose_scale",
    "europe",
    "condition_positions",
    "dsm",
    "dam",
    "delta_bridge",
    "anystory_encode",
    "anystory",
    "anchor_align",
    "seal",
    "seal_cache",
    "training",
    "training_data",
    "puppets",
    "flux_training",
    "flux_block_training",
    "anystory_training",
)
# Work that no accelerator takes part in.
ON_CPU_ALONE = frozenset(
    ("start", "sizes", "retrieval", "pose", "pose_scale", "anchor_align", "training_data", "puppets")
)
HEADING = "| what | measured | promised | met | device |\n|---|---|---|---|---|"


def line(one: Measured) -> str:
    """A row of the table."""
    row = one.row
    met = {True: "yes", False: "no", None: ""}[row.met]
    return f"| {row.name} | {row.problem or row.measured} | {row.promised} | {met} | {row.device} |"


def runs(families: Sequence[str], accelerator: str) -> list[tuple[str, bool]]:
    """The families to measure, each with whether that is to be on the processor alone."""
    return [
        (family, cpu)
        for family in families
        for cpu in ((True,) if family in ON_CPU_ALONE or not accelerator else (True, False))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench", description="Measure what the pack costs in time and memory.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(FAMILIES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file too, as far as they are")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="say what changed between two such files"
    )
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in FAMILIES]
    if unknown:
        parser.error(f"there is no family {', '.join(unknown)}; choose from {', '.join(FAMILIES)}")
    if chosen.compare is None:
        _measure(chosen.names or FAMILIES, chosen.json)
        return 0
    try:
        found = compare(*map(read_rows, chosen.compare))
    except BenchError as error:
        print(f"{error}.", file=sys.stderr)
        return 2
    print(report(found))
    return 1 if found.broken else 0


def _measure(families: Sequence[str], path: Path | None) -> None:
    accelerator = _accelerator()
    measured: list[Measured] = []
    print(HEADING, flush=True)
    for family, cpu in runs(families, accelerator):
        for row in measure(family, cpu):
            measured.append(measured_here(row, family, accelerator))
            print(line(measured[-1]), flush=True)
        if path is not None:  # after every family: a run that is cut off has what it measured
            write_rows(path, measured)


def _accelerator() -> str:
    """The name of this machine's accelerator; empty where there is none."""
    import torch

    if not torch.accelerator.is_available():
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else str(torch.accelerator.current_accelerator())


if __name__ == "__main__":
    sys.exit(main())
