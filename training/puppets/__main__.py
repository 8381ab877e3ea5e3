"""Writes puppets as files for a training, or to look at.

python -m comfyui_ensemble.training.puppets --out FOLDER --count 100 [--size 128x128] [--kind items] [--sheet FILE.png]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..errors import TrainingError
from .export import export, write_png
from .sheet import draw_sheet
from .source import KINDS, PuppetSource

SHEET_SAMPLES = 24  # the most that a contact sheet shows


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 2 where an argument makes no sense or a file cannot be written."""
    chosen = _parser().parse_args(arguments)
    if chosen.out is None and chosen.sheet is None:
        return _failed("there is nothing to write; give --out FOLDER, --sheet FILE.png or both")
    try:
        source = PuppetSource(
            chosen.seed, chosen.size, chosen.reference_size, tuple(chosen.people), chosen.kind, chosen.count
        )
        if chosen.out is not None:
            _export(source, chosen.out, chosen.count)
        if chosen.sheet is not None:
            shown = [source.stored(index) for index in range(min(chosen.count, SHEET_SAMPLES))]
            write_png(chosen.sheet, draw_sheet(shown))
            print(chosen.sheet)
    except TrainingError as error:
        return _failed(str(error))
    return 0


def _export(source: PuppetSource, folder: Path, count: int) -> None:
    start = time.perf_counter()
    manifest = export(source, folder, count)
    print(f"{manifest}: {count} pictures in {time.perf_counter() - start:.1f} s")


def _failed(sentence: str) -> int:
    print(f"{sentence}.", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python dev.py python -m comfyui_ensemble.training.puppets", description="Draw puppets."
    )
    parser.add_argument("--out", type=Path, help="a folder for pictures, masks and manifest.jsonl")
    parser.add_argument("--count", type=_count, default=100, help="how many pictures")
    parser.add_argument("--size", type=_size, default=(128, 128), metavar="WxH", help="of the pictures, in pixels")
    parser.add_argument("--reference-size", type=int, default=64, help="side of the square references, in pixels")
    parser.add_argument(
        "--people", type=int, nargs=2, default=(1, 2), metavar=("FEWEST", "MOST"), help="in a picture, 1 to 4"
    )
    parser.add_argument(
        "--kind", choices=KINDS, default=KINDS[0], help="what a subject is: a whole puppet, or one thing of it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help=f"a PNG of the first {SHEET_SAMPLES} samples")
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least one picture is needed")
    return count


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write it like 128x128")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
