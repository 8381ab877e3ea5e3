"""Many workflows of mixed kinds on one server: no growth, nothing left behind, every output there.

The work comes in rounds: every kind once, in another order each time and with other seeds and names. A round is queued as a
whole; when the queue is empty, the server's memory, open files and threads are read. So every reading is taken after the
same work. Then the round's files are compared with what the server says it wrote, and are removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devtools.console import Problem
from devtools.reliability.growth import Growth, growth
from devtools.reliability.sandbox import SandboxServer, Usage
from devtools.reliability.workload import REPORT, Prompt, job, rounds
from devtools.server import accepted, finished

LAST = "short_invert"
WARM_UP = 50  # workflows
JOB_SECONDS = 300
# What counts as growth from the first third of the readings to the last, where a rise is also certain over all of them:
# memory in MiB; the allocator's own ups and downs between two rounds are about as large.
TOLERATED = {"memory": 24.0, "handles": 2.0, "threads": 2.0}
# What a workflow may leave in the data folder besides its pictures, under its own name: weights, databases, runs, reports.
PRODUCTS = ("models/", "output/ensemble_training/", f"output/{REPORT}")
# Of pictures by their type, in the data folder; the host makes a folder of its own in the one it is given for previews.
FOLDERS = {"input": "input", "output": "output", "temp": "temp/temp"}


@dataclass
class Soak:
    """What a soak found.

    Attributes:
        readings: (workflows done, usage) after every round.
        problems: everything that is not as it should be, a sentence each.
    """

    done: int = 0
    seconds: float = 0.0
    readings: list[tuple[int, Usage]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pictures: int = 0

    def settled(self, warm_up: int) -> list[tuple[int, Usage]]:
        """The readings after the first workflows."""
        return [(place, usage) for place, usage in self.readings if place >= warm_up]

    def growth(self, name: str, warm_up: int = WARM_UP) -> Growth:
        """How `memory`, `handles` or `threads` changed after the first workflows."""
        settled = self.settled(warm_up)
        return growth([place for place, _ in settled], [getattr(usage, name) for _, usage in settled])

    def report(self, warm_up: int = WARM_UP) -> dict[str, Any]:
        """As JSON holds it."""
        measured = {name: self.growth(name, warm_up) for name in TOLERATED} if len(self.settled(warm_up)) >= 3 else {}
        return {
            "workflows": self.done,
            "pictures": self.pictures,
            "seconds": round(self.seconds, 1),
            "problems": self.problems,
            "growth": {
                name: {**asdict(value), "change": value.change, "grew": value.grew(TOLERATED[name])}
                for name, value in measured.items()
            },
            "readings": [{"workflows": place, **asdict(usage)} for place, usage in self.readings],
        }


def soak(
    server: SandboxServer,
    kinds: dict[str, Prompt],
    count: int,
    seed: int,
    keep_history: bool = False,
    show: Callable[[Soak], None] = lambda soak: None,
) -> Soak:
    """Run `count` workflows; the server must be running and idle."""
    soak, started = Soak(), time.monotonic()
    for names in rounds(list(kinds), count, seed, LAST):
        before = server.files()
        jobs = {f"soak_{soak.done + number:05d}_{name}": name for number, name in enumerate(names)}
        ids = {
            accepted(*server.post("/prompt", {"prompt": job(kinds[name], title, seed + soak.done + number)})): title
            for number, (title, name) in enumerate(jobs.items())
        }
        if not server.wait_idle(JOB_SECONDS * len(jobs)):
            raise Problem(f"The queue was not empty after {JOB_SECONDS} s a workflow:\n{server.last_lines()}")
        written = {path for prompt_id, title in ids.items() for path in _outputs(server, prompt_id, title, soak)}
        if not keep_history:
            server.forget(*ids)
        _compare(server, before, written, jobs, soak)
        soak.done += len(jobs)
        soak.seconds = time.monotonic() - started
        soak.readings.append((soak.done, server.usage()))
        show(soak)
    return soak


def _outputs(server: SandboxServer, prompt_id: str, title: str, soak: Soak) -> set[Path]:
    """The files that a finished workflow says it wrote; each is looked at."""
    history = server.history(prompt_id)
    if history is None:
        soak.problems.append(f"{title} is not in the server's history.")
        return set()
    try:
        finished(history)
    except Problem as problem:
        soak.problems.append(f"{title}: {problem}")
        return set()
    written = set()
    for entry in history["outputs"].values():
        for picture in entry.get("images", ()):
            folder = server.data / FOLDERS[picture["type"]]
            path = folder / picture["subfolder"] / picture["filename"]
            written.add(path)
            if picture["type"] == "output":
                soak.pictures += 1
                soak.problems += [f"{title}: {fault}" for fault in _faults(path)]
    if not any(path.is_relative_to(server.data / "output" / title) for path in written):
        soak.problems.append(f"{title} saved no picture under its own name.")
    return written


def _faults(path: Path) -> list[str]:
    if not path.is_file():
        return [f"{path.name} is not there."]
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except OSError as error:
        return [f"{path.name} cannot be read ({error})."]
    return [] if pixels.std() > 1 else [f"{path.name} is empty."]


def _compare(server: SandboxServer, before: set[str], written: set[Path], jobs: dict[str, str], soak: Soak) -> None:
    """That the round's new files are those that it said it wrote, or products under its workflows' names; removes all."""
    told = {path.relative_to(server.root).as_posix() for path in written}
    for path in sorted(server.files() - before):
        inside = server.root.joinpath(path).relative_to(server.root / server.data.relative_to(server.root)).as_posix()
        product = inside.startswith(PRODUCTS) and any(title in inside for title in jobs)
        if path not in told and not product:
            soak.problems.append(f"{path} was left behind.")
        (server.root / path).unlink()
