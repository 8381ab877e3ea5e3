"""The command line: many jobs of one workflow, on one or many ComfyUI servers.

    comfyui-ensemble batch WORKFLOW JOBS --server URL [URL ...] --out FOLDER
    python -m comfyui_ensemble.batch WORKFLOW JOBS --server URL [URL ...] --out FOLDER

The same command goes on where an earlier one was cut off. Ends with 0 when every picture is there, 1 when jobs were given up,
2 when it cannot begin or go on, 130 when it was stopped.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import BatchError
from .jobs import parse_grid
from .jobs_file import read_jobs
from .journal import JournalError
from .live_line import LiveLine
from .naming import DEFAULT
from .plan import Wish
from .queue_client import QueueClient, QueueError
from .runner import Patience, Report, Summary, plan_batch, run_batch
from .terminal import TerminalReport
from .workflow import read_workflow

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def console(arguments: Sequence[str] | None = None) -> int:
    """``comfyui-ensemble COMMAND``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["batch"]:
        return main(given[1:])
    _say("usage: comfyui-ensemble batch --help")
    return 0 if given in (["-h"], ["--help"]) else 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, see the module."""
    chosen = _parser().parse_args(arguments)
    line = LiveLine()
    try:
        return _main(chosen, line)
    except KeyboardInterrupt:
        line.say("Stopped; the same command goes on.")
        return 130
    except OSError as error:
        line.say(f"{_disk_sentence(error, chosen.out)}.")
        return 2
    except (BatchError, QueueError, JournalError) as error:
        line.say(f"{error}.")
        return 2


def _main(chosen: argparse.Namespace, line: LiveLine) -> int:
    wish = _wish(chosen)
    report = Report(line.say, TerminalReport(line))
    patience = Patience(chosen.retries, chosen.wait)
    with _clients(chosen, line) as clients, _stop_kindly():  # inside, because Ray has an answer of its own to SIGTERM
        if chosen.check:
            plan, _versions = plan_batch(wish, clients, line.say)
            line.say(f"{len(plan.jobs.jobs)} jobs, from {plan.names[0]} to {plan.names[-1]}; all values fit.")
            return 0
        summary = run_batch(wish, clients, patience, report)
    return _conclude(summary, chosen.out, line)


def _wish(chosen: argparse.Namespace) -> Wish:
    workflow, rows = read_workflow(chosen.workflow), read_jobs(chosen.jobs)
    return Wish(
        workflow=workflow,
        workflow_name=chosen.workflow.stem,
        rows=rows,
        grids=[parse_grid(text) for text in chosen.grid],
        folder=chosen.jobs.absolute().parent,
        name=chosen.name,
        out=chosen.out.absolute(),
    )


@contextmanager
def _clients(chosen: argparse.Namespace, line: LiveLine) -> Iterator[list[QueueClient]]:
    if chosen.ray is None:
        yield [QueueClient(_address(url), chosen.timeout) for url in chosen.server]
        return
    from .ray_cluster import RayWish, ray_clients  # imports Ray

    wish = RayWish(chosen.ray, chosen.ray_workers, chosen.ray_models, chosen.ray_comfyui, tuple(chosen.ray_argument))
    with ray_clients(wish, chosen.timeout, chosen.wait, line.say) as clients:
        yield clients


def _address(url: str) -> str:
    return (url if "://" in url else f"http://{url}").rstrip("/")


def _conclude(summary: Summary, out: Path, line: LiveLine) -> int:
    for number, reason in sorted(summary.given_up.items())[:20]:
        line.say(f"job {number}: {reason}")
    if summary.given_up:
        line.say(
            f"{summary.saved} jobs are in {out}, {len(summary.given_up)} failed; the same command tries those again."
        )
        return 1
    line.say(f"{summary.saved} jobs are in {out}; {out / 'manifest.jsonl'} says what made each picture.")
    return 0


def _disk_sentence(error: OSError, out: Path) -> str:
    if error.errno in FULL:
        return f"the disk of {out} is full; make room, then start this again to go on"
    return f"{error.filename or out}: {error.strerror or error}"


@contextmanager
def _stop_kindly() -> Iterator[None]:
    """A request to end is as good as Ctrl+C."""
    if threading.current_thread() is not threading.main_thread():  # Python tells the main thread alone
        yield
        return

    def interrupt(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="comfyui-ensemble batch",
        description="Run a workflow once for every row of a jobs file. The same command goes on after any crash.",
    )
    parser.add_argument("workflow", type=Path, help="as saved by ComfyUI's page, or as exported with Export (API)")
    parser.add_argument("jobs", type=Path, help=".csv or .jsonl; every column fills the input its heading names")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures; the same one continues")
    servers = parser.add_mutually_exclusive_group(required=True)
    servers.add_argument("--server", nargs="+", metavar="URL", help="addresses of running ComfyUI servers")
    servers.add_argument(
        "--ray", nargs="?", const="auto", metavar="ADDRESS", help="a Ray cluster; 'local' begins one on this machine"
    )
    parser.add_argument(
        "--name", default=DEFAULT, help=f"what pictures are called, like {{index:04d}}_{{prompt_slug}} ({DEFAULT})"
    )
    parser.add_argument(
        "--grid", action="append", default=[], metavar="INPUT=A,B", help="repeat every job with each of these values"
    )
    parser.add_argument("--check", action="store_true", help="check everything and stop before the first job")
    parser.add_argument("--retries", type=int, default=Patience.retries, help="how often a failed job is repeated (3)")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one job may run (3600)")
    parser.add_argument(
        "--wait", type=float, default=Patience.wait, help="seconds that all servers may be silent at once (600)"
    )
    ray = parser.add_argument_group("with --ray")
    ray.add_argument("--ray-workers", type=int, help="how many ComfyUIs; one for every GPU, or one where there is none")
    ray.add_argument("--ray-models", type=Path, help="models folder, at the same path on every node")
    ray.add_argument("--ray-comfyui", type=Path, help="the ComfyUI to send to the nodes; the one around this pack")
    ray.add_argument("--ray-argument", action="append", default=[], help="one more argument for ComfyUI's main.py")
    return parser


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
