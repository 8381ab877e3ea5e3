"""The commands; `python dev.py python -m devtools.reliability --help` says what there is."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from devtools.console import Problem, say
from devtools.reliability.interrupts import Interrupts, fresh_pictures, interrupts
from devtools.reliability.mutate import Limits, Mutation, mutate, write_bodies
from devtools.reliability.sandbox import SandboxServer, sandbox_server
from devtools.reliability.soak import WARM_UP, Soak, soak
from devtools.reliability.workload import Prompt, kinds
from devtools.workspace import Workspace

# The host's own cache keeps every result until the machine's memory runs low, by design; the old one keeps the last
# workflow's, so that what grows is a leak. Mutations and interruptions are to meet cached models and patches.
CLASSIC = ("--cache-classic",)
RECENT = ("--cache-lru", "100")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python dev.py python -m devtools.reliability", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True)
    for name, count, words in (
        ("soak", 500, "run many workflows of mixed kinds"),
        ("interrupt", 100, "interrupt workflows at random moments"),
        ("mutate", 2000, "send malformed and mutated requests"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("--count", type=int, default=count, help=f"how many (default {count})")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--steps", type=int, default=2, help="sampling steps of every workflow (default 2)")
        command.add_argument("--kinds", nargs="+", metavar="NAME", help="only these kinds of workflows")
        command.add_argument("--models", type=Path, help="the models folder (default: the one of this checkout)")
        command.add_argument("--out", type=Path, required=True, help="folder for the report and the server's log")
        command.add_argument("--server-argument", action="append", default=[], help="one more for ComfyUI's main.py")
    soaking, mutating = commands.choices["soak"], commands.choices["mutate"]
    soaking.add_argument("--warm-up", type=int, default=WARM_UP, help=f"workflows that may grow (default {WARM_UP})")
    soaking.add_argument("--keep-history", action="store_true", help="leave finished workflows in the host's history")
    mutating.add_argument("--first", type=int, default=0, help="number of the first case; with --count 1 just that one")
    mutating.add_argument("--seconds", type=float, default=30, help="a longer workflow is interrupted (default 30)")
    mutating.add_argument("--memory", type=float, default=6000, help="MiB that the server may hold (default 6000)")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0: all is well, 1: it is not, 2: it could not be tried."""
    chosen = parser().parse_args(arguments)
    # A request to end must stop the server too, as Ctrl+C does, also where a shell had this ignore Ctrl+C.
    for request in (signal.SIGINT, signal.SIGTERM):
        signal.signal(request, signal.default_int_handler)
    try:
        work = chosen_kinds(chosen.kinds, chosen.steps)
        chosen.out.mkdir(parents=True, exist_ok=True)
        report, sound = {"soak": run_soak, "interrupt": run_interrupts, "mutate": run_mutate}[chosen.command](
            chosen, work
        )
    except Problem as problem:
        say(str(problem))
        return 2
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
    report = {"command": " ".join(sys.argv[1:] if arguments is None else arguments), "load": os.getloadavg(), **report}
    file = chosen.out / f"{chosen.command}.json"
    file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{'All is well' if sound else 'Not all is well'}: {file}")
    return 0 if sound else 1


def chosen_kinds(names: Sequence[str] | None, steps: int) -> dict[str, Prompt]:
    """The work; a Problem for a kind that there is not."""
    known = kinds(steps)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise Problem(f"There is no kind {', '.join(unknown)}; there are: {', '.join(known)}.")
    return {name: known[name] for name in names or known}


@contextmanager
def servers(chosen: argparse.Namespace, cache: Sequence[str]) -> Iterator[Any]:
    """A function that makes servers, each in a sandbox of its own, which is removed at the end; their logs are kept."""
    arguments = [*cache, *chosen.server_argument]
    if not torch.accelerator.is_available():
        arguments.append("--cpu")
    models = chosen.models or Workspace.of_this_process().models
    made: list[SandboxServer] = []
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:

        def make() -> SandboxServer:
            made.append(sandbox_server(Path(folder) / str(len(made)), models, *arguments))
            return made[-1]

        try:
            yield make
        finally:
            for number, server in enumerate(made):
                server.stop()
                if server.log.is_file():
                    shutil.copy(server.log, chosen.out / f"{chosen.command}_{number}.log")


def run_soak(chosen: argparse.Namespace, work: dict[str, Prompt]) -> tuple[dict[str, Any], bool]:
    """Part one."""

    def show(result: Soak) -> None:
        place, usage = result.readings[-1]
        say(
            f"{place} workflows, {result.seconds:.0f} s: {usage.memory:.0f} MiB, {usage.handles} files, {usage.threads} threads"
        )

    with servers(chosen, CLASSIC) as make, make() as server:
        result = soak(server, work, chosen.count, chosen.seed, chosen.keep_history, show)
    report = result.report(chosen.warm_up)
    return report, not result.problems and not any(value["grew"] for value in report["growth"].values())


def run_interrupts(chosen: argparse.Namespace, work: dict[str, Prompt]) -> tuple[dict[str, Any], bool]:
    """Part two."""

    def show(result: Interrupts) -> None:
        last = result.rounds[-1]
        place = last.stopped_at or "nowhere"
        say(
            f"{len(result.rounds)}: {last.victim} after {last.moment:.2f} s in {place}, then {last.probe}:"
            f" {'the same' if last.same else 'ANOTHER PICTURE'}"
        )

    with servers(chosen, RECENT) as make:
        fresh = {}
        for name, kind in work.items():
            say(f"{name} on a fresh server.")
            fresh[name] = fresh_pictures(make, kind)
        with make() as server:
            result = interrupts(server, work, fresh, chosen.count, chosen.seed, show)
    return result.report(), not result.problems and all(each.same for each in result.rounds)


def run_mutate(chosen: argparse.Namespace, work: dict[str, Prompt]) -> tuple[dict[str, Any], bool]:
    """Part three."""

    def show(result: Mutation) -> None:
        case, verdict = result.verdicts[-1]
        if verdict.outcome == "defect":
            say(f"{case.number}: {case.what}: {verdict.node} {verdict.words}")
        if len(result.verdicts) % 50 == 0:
            say(f"{len(result.verdicts)} requests, {result.seconds:.0f} s: {result.count()}")

    limits = Limits(seconds=chosen.seconds, memory=chosen.memory)
    numbers = range(chosen.first, chosen.first + chosen.count)
    with servers(chosen, RECENT) as make, make() as server:
        result = mutate(server, work, numbers, chosen.seed, limits, show)
    write_bodies(result, chosen.out)
    return result.report(), not result.defects() and not result.strays


if __name__ == "__main__":
    sys.exit(main())
