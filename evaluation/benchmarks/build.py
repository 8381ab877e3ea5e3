"""Every benchmark by its name: from a dataset's folder to a folder with a manifest and queues."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cases import Case
from . import coco_pose, dreambench, humanbench, seal_grid
from .fitting import load_workflow
from .folder import Benchmark, check_free, write_benchmark
from .links import Workflow
from .queues import Queue, appearance_queue, cast_queues

Progress = Callable[[int, int], None]
Chosen = argparse.Namespace


@dataclass(frozen=True)
class Made:
    """What a builder makes; its pictures are written already.

    Attributes:
        papers: what `paper_tables` calls the benchmark.
    """

    papers: str
    cases: Sequence[Case]
    queues: Sequence[Queue]


@dataclass(frozen=True)
class Builder:
    """One benchmark.

    Attributes:
        workflow: the bundled one that is taken without another.
        options: adds its own options to a parser; all of them decide what is made.
    """

    workflow: str
    help: str
    options: Callable[[argparse.ArgumentParser], None]
    make: Callable[[Chosen, Workflow, Progress], Made]


def build(chosen: Chosen, progress: Progress) -> Benchmark:
    """Build the benchmark that a command chose.

    Raises:
        EvaluationError: the dataset, the workflow or the output folder will not do; one sentence.
    """
    workflow = load_workflow(chosen.workflow)
    settings = {name: _decisive(value) for name, value in vars(chosen).items() if name not in ("dataset", "out", "run")}
    settings["dataset"] = chosen.dataset.absolute().name
    settings["workflow"] = hashlib.sha256(json.dumps(workflow, sort_keys=True).encode()).hexdigest()
    check_free(chosen.out, settings)
    made = BUILDERS[chosen.benchmark].make(chosen, workflow, progress)
    return write_benchmark(chosen.out, made.papers, settings, made.cases, made.queues)


def _decisive(value: Any) -> Any:
    """An option as it is kept: a file by its content."""
    return hashlib.sha256(value.read_bytes()).hexdigest() if isinstance(value, Path) and value.is_file() else value


def positive(text: str) -> int:
    """A whole number above 0, for a parser."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _number(parser: argparse.ArgumentParser, option: str, default: int | None, about: str) -> None:
    parser.add_argument(option, type=positive, default=default, metavar="N", help=about)


def _coco_options(parser: argparse.ArgumentParser) -> None:
    wanted = coco_pose.Wanted()
    _number(parser, "--count", wanted.count, "pictures (%(default)s)")
    _number(parser, "--min-keypoints", wanted.keypoints, "that every person must have (%(default)s)")
    _number(parser, "--min-side", wanted.side, "of the box around every person in pixels (%(default)s)")
    parser.add_argument("--split", nargs="+", default=list(wanted.splits), help="val2017, train2017 or both (val2017)")


def _make_coco(chosen: Chosen, workflow: Workflow, progress: Progress) -> Made:
    splits = tuple(dict.fromkeys(chosen.split))
    wanted = coco_pose.Wanted(chosen.count, chosen.seed, splits, chosen.min_keypoints, chosen.min_side)
    cases = coco_pose.coco_cases(chosen.dataset, chosen.out, wanted, workflow, progress)
    return Made(coco_pose.PAPERS, cases, cast_queues(workflow, cases))


def _seeds_option(parser: argparse.ArgumentParser, seeds: int) -> None:
    _number(parser, "--seeds", seeds, "pictures of every prompt (%(default)s)")


def _make_dreambench(chosen: Chosen, workflow: Workflow, progress: Progress) -> Made:
    cases = dreambench.single_cases(chosen.dataset, chosen.out, chosen.seed, chosen.seeds, progress)
    return Made(dreambench.PAPERS, cases, cast_queues(workflow, cases))


def _pairs_options(parser: argparse.ArgumentParser) -> None:
    _seeds_option(parser, dreambench.SEEDS_PAIRS)
    _number(parser, "--pairs", dreambench.PAIRS, "combinations (%(default)s)")
    parser.add_argument("--pairs-file", type=Path, help="two subjects a line, instead of drawing pairs")


def _make_pairs(chosen: Chosen, workflow: Workflow, progress: Progress) -> Made:
    named = None if chosen.pairs_file is None else dreambench.read_pairs(chosen.pairs_file)
    cases = dreambench.pair_cases(chosen.dataset, chosen.out, chosen.seed, chosen.seeds, chosen.pairs, named, progress)
    return Made(dreambench.PAPERS_PAIRS, cases, cast_queues(workflow, cases))


def _human_options(parser: argparse.ArgumentParser) -> None:
    _seeds_option(parser, humanbench.SEEDS)
    _number(parser, "--pairs", humanbench.PAIRS, "of a face with an outfit (%(default)s)")
    parser.add_argument("--without-bags", action="store_true", help="as Table 6 measures it, with 50 pairs")


def _make_human(chosen: Chosen, workflow: Workflow, progress: Progress) -> Made:
    bags = not chosen.without_bags
    cases = humanbench.human_cases(chosen.dataset, chosen.out, chosen.seed, chosen.seeds, chosen.pairs, bags, progress)
    return Made(humanbench.PAPERS if bags else humanbench.PAPERS_GARMENTS, cases, cast_queues(workflow, cases))


def _make_seal(chosen: Chosen, workflow: Workflow, progress: Progress) -> Made:
    cases, aligned = seal_grid.grid_cases(chosen.dataset, chosen.out, chosen.seed, chosen.count, progress)
    return Made(seal_grid.PAPERS, cases, [appearance_queue(workflow, cases, aligned)])


BUILDERS: Mapping[str, Builder] = {
    "coco-pose": Builder(
        coco_pose.WORKFLOW, "ASTRA's pictures of up to three people, from COCO 2017", _coco_options, _make_coco
    ),
    "dreambench": Builder(
        dreambench.WORKFLOW,
        "30 subjects x 25 prompts",
        lambda parser: _seeds_option(parser, dreambench.SEEDS),
        _make_dreambench,
    ),
    "dreambench-pairs": Builder(
        dreambench.WORKFLOW, "30 pairs of DreamBench's subjects x 25 prompts", _pairs_options, _make_pairs
    ),
    "humanbench": Builder(
        humanbench.WORKFLOW, "One-for-All's faces with outfits, in three scenes", _human_options, _make_human
    ),
    "seal": Builder(
        seal_grid.WORKFLOW,
        "SeAl's structures x appearances",
        lambda parser: _number(parser, "--count", None, "pairs to draw; the whole grid without it"),
        _make_seal,
    ),
}
