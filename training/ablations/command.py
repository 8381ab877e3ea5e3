"""The command line of the ablations.

    python -m comfyui_ensemble.training.ablations NAME ... --out FOLDER [--seeds 3] [--steps N | --minutes M]

The same command goes on where it was stopped, also after kill -9.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..run_folder import alone_in
from ..shortage import shortage_in_one_sentence
from ..terminal import TerminalReport
from .budget import Cost, rehearse, say_cost, share_out
from .models import Models
from .report import render, write_between
from .results import Plan, Store
from .run import run
from .sheets import write_sheet
from .table import ABLATIONS, Ablation, find_ablation
from .worlds import Sizes

KINDS = {"astra": "flux", "one-for-all": "flux", "anystory": "sdxl", "seal": "sdxl"}  # of models
STEPS = 600  # without --steps and --minutes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all tables are there, 2 when it cannot begin or go on, 130 when it was stopped."""
    chosen = _parser().parse_args(arguments)
    try:
        _run(chosen, _say)
    except KeyboardInterrupt:
        _say("Stopped; the same command continues.")
        return 130
    except (TrainingError, OSError) as error:
        _say(f"{error}.")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    sizes = Sizes()
    parser = argparse.ArgumentParser(
        prog="python dev.py python -m comfyui_ensemble.training.ablations",
        description="Train, draw and measure the papers' ablations on puppets; the same command goes on where it was stopped.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"one or more of {', '.join(ABLATIONS)}; or all")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of every row (default: %(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"of every training (default: {STEPS})")
    length.add_argument("--minutes", type=float, help="share out so much time over all rows instead")
    parser.add_argument(
        "--models-dir", type=Path, help="models folder with the tiny models; without it, the pack's own"
    )
    parser.add_argument("--scenes", type=int, default=sizes.scenes, help="test pictures a row and seed (%(default)s)")
    parser.add_argument("--pictures", type=int, default=sizes.pictures, help="to learn from (%(default)s)")
    parser.add_argument("--resolution", type=int, default=sizes.resolution, help="side of the pictures (%(default)s)")
    parser.add_argument("--reference-resolution", type=int, default=sizes.reference, help="of references (%(default)s)")
    parser.add_argument("--draw-steps", type=int, default=sizes.draw_steps, help="of the sampler (%(default)s)")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="also write tables and pictures into this document")
    parser.add_argument("--estimate", action="store_true", help="say how long it will take, and no more")
    return parser


def _run(chosen: argparse.Namespace, say: Callable[[str], None]) -> None:
    ablations = [find_ablation(name) for name in dict.fromkeys(_names(chosen.names))]
    sizes = _sizes(chosen)
    models = Models(chosen.models_dir)
    stores = [Store(chosen.out / ablation.name) for ablation in ablations]
    with ExitStack() as stack:
        stack.enter_context(shortage_in_one_sentence(chosen.out))
        for store in stores:  # other tables may be made beside these, of the same encodings
            stack.enter_context(alone_in(store.folder))
        asked = [_asked(chosen, sizes, models.identity(KINDS[ablation.name])) for ablation in ablations]
        plans = _plans(ablations, stores, asked, chosen, sizes, models, say)
        if chosen.estimate:
            return
        for store, plan in zip(stores, plans, strict=True):  # all of them, or a continued command would share out anew
            store.save_plan(plan)
        for ablation, store, plan in zip(ablations, stores, plans, strict=True):
            study = ablation.study(models, sizes, chosen.out / "encodings")
            run(ablation, study, plan, store, TerminalReport(), say)
            _write(ablation, plan, store, chosen.docs, say)


def _names(given: Sequence[str]) -> list[str]:
    return list(ABLATIONS) if "all" in given else list(given)


def _sizes(chosen: argparse.Namespace) -> Sizes:
    for name, least in (("seeds", 1), ("steps", 1)):
        value = getattr(chosen, name)
        if value is not None and value < least:
            raise TrainingError(f"--{name} is {value}; it must be at least {least}", name)
    if chosen.minutes is not None and not 0 < chosen.minutes < float("inf"):
        raise TrainingError(f"--minutes is {chosen.minutes:g}; give a time above 0", "minutes")
    if chosen.docs is not None and not chosen.docs.is_file():
        raise TrainingError(
            f"--docs: there is no file {chosen.docs}; give a Markdown document with the markers", "docs"
        )
    return Sizes(chosen.resolution, chosen.reference_resolution, chosen.pictures, chosen.scenes, chosen.draw_steps)


def _asked(chosen: argparse.Namespace, sizes: Sizes, models: str) -> dict[str, Any]:
    """What a continued command has to find unchanged."""
    steps = STEPS if chosen.steps is None and chosen.minutes is None else chosen.steps
    return {**vars(sizes), "seeds": chosen.seeds, "steps": steps, "minutes": chosen.minutes, "models": models}


def _plans(
    ablations: Sequence[Ablation],
    stores: Sequence[Store],
    asked: Sequence[dict[str, Any]],
    chosen: argparse.Namespace,
    sizes: Sizes,
    models: Models,
    say: Callable[[str], None],
) -> list[Plan]:
    """The plans that are there, and new ones for the other tables, with what they will take."""
    plans = [store.plan(each) for store, each in zip(stores, asked, strict=True)]
    new = [number for number, plan in enumerate(plans) if plan is None]
    costs = {number: rehearse(ablations[number], models, sizes) for number in new}
    steps = _steps(list(costs.values()), asked[0], chosen, sizes)
    for (number, cost), count in zip(costs.items(), steps, strict=True):
        random = models.are_random(KINDS[ablations[number].name])
        plans[number] = Plan(asked[number], count, chosen.seeds, sizes.scenes, random)
        say_cost(ablations[number], cost, count, chosen.seeds, sizes.scenes, say)
    return [plan for plan in plans if plan is not None]


def _steps(costs: Sequence[Cost], asked: dict[str, Any], chosen: argparse.Namespace, sizes: Sizes) -> list[int]:
    if chosen.minutes is not None and costs:
        return share_out(costs, chosen.minutes, chosen.seeds, sizes.scenes)
    return [asked["steps"] if cost.stages else 0 for cost in costs]


def _write(ablation: Ablation, plan: Plan, store: Store, docs: Path | None, say: Callable[[str], None]) -> None:
    """The table and its contact sheet, into the table's folder and, if wanted, into a document."""
    sheet, text = store.folder / "sheet.png", store.folder / "table.md"
    write_sheet(ablation, store, sheet)
    text.write_text(render(ablation, plan, store, sheet.name), encoding="utf-8")
    say(text.read_text(encoding="utf-8"))
    if docs is not None:
        picture = docs.parent / f"ablation_{ablation.name.replace('-', '_')}.png"
        shutil.copyfile(sheet, picture)
        write_between(docs, ablation.name, render(ablation, plan, store, picture.name))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
