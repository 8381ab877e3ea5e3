"""Every promise about speed as a row: what was measured, what was promised, and whether it holds on this machine.

    python dev.py bench [NAME ...] [--json FILE]

Ratios come from paired runs, side by side in one process. A timing decides no test.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

FAMILIES = (
    "retrieval",
    "pose",
    "europe",
    "condition_positions",
    "dsm",
    "dam",
    "delta_bridge",
    "anystory_encode",
    "anystory",
    "anchor_align",
    "seal",
    "training",
    "training_data",
    "flux_training",
    "anystory_training",
)


def spell(row: dict[str, Any]) -> str:
    """The measured value in words."""
    if "ratio" in row:
        return f"{row['ratio']:.2%}" if abs(row["ratio"]) < 0.5 else f"{row['ratio']:.2f} x"
    return f"{row['ms']:.1f} ms" if "ms" in row else f"{row['s']:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench", description="Measure what the pack costs in time.")
    parser.add_argument("names", nargs="*", choices=[*FAMILIES, []], help=f"only these: {', '.join(FAMILIES)}")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    rows = []
    print("| what | measured | promised | met | device |\n|---|---|---|---|---|")
    for family in arguments.names or FAMILIES:
        for row in importlib.import_module(f"devtools.bench_{family}").rows():
            rows.append(row)
            met = "yes" if row["met"] else "no"
            print(f"| {row['name']} | {spell(row)} | {row['promised']} | {met} | {row['device']} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
