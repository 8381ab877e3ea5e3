"""Interruptions at random moments: whatever was stopped, the next picture is the one that a fresh server makes.

A round queues a workflow with a seed of its own and interrupts it somewhere between its beginning and a little after its
usual end. Then comes the probe, a workflow of a fixed seed whose picture is known: half of the time the same kind, so that
the models and patches which were stopped in the middle are used again from the host's cache. In some rounds the probe waits
in the queue already. Every bit of its picture is compared.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devtools.console import Problem
from devtools.reliability.sandbox import SandboxServer
from devtools.reliability.workload import Prompt, job
from devtools.server import accepted, finished

PROBE_SEED = 7
AFTER_THE_END = 1.1  # as a share of a workflow's usual time
POLL_SECONDS = 0.01
STOP_SECONDS = 120
PROBE_SECONDS = 600
ALLOWED = ("output/", "temp/", "models/")

Pictures = list[np.ndarray]


@dataclass
class Round:
    """One interruption.

    Attributes:
        moment: seconds after the workflow was queued.
        stopped_at: class of the node that was stopped; empty where it had ended, or had not begun.
        stop_seconds: from the interruption until the server was ready for other work.
        same: whether the probe's pictures were those of a fresh server.
    """

    victim: str
    probe: str
    moment: float
    stopped_at: str = ""
    stop_seconds: float = 0.0
    same: bool = True


@dataclass
class Interrupts:
    """What became of all rounds."""

    rounds: list[Round] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def report(self) -> dict[str, Any]:
        """As JSON holds it."""
        stops = [each.stop_seconds for each in self.rounds if each.stopped_at]
        return {
            "interruptions": len(self.rounds),
            "stopped in the middle": len(stops),
            "where": dict(Counter(each.stopped_at for each in self.rounds if each.stopped_at).most_common()),
            "seconds to stop, median and longest": [round(statistics.median(stops), 2), round(max(stops), 2)]
            if stops
            else [],
            "probes that differ": [vars(each) for each in self.rounds if not each.same],
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            "rounds": [vars(each) for each in self.rounds],
        }


def fresh_pictures(start: Callable[[], SandboxServer], kind: Prompt) -> Pictures:
    """What a server makes of a probe that is the first thing it is asked for."""
    with start() as server:
        return probe_pictures(server, kind, "fresh")


def probe_pictures(server: SandboxServer, kind: Prompt, name: str) -> Pictures:
    """The pictures that the probe of a kind saves on this server."""
    prompt_id = accepted(*server.post("/prompt", {"prompt": job(kind, name, PROBE_SEED)}))
    return _pictures(server, prompt_id)


def interrupts(
    server: SandboxServer,
    kinds: dict[str, Prompt],
    fresh: dict[str, Pictures],
    count: int,
    seed: int,
    show: Callable[[Interrupts], None] = lambda result: None,
) -> Interrupts:
    """Interrupt `count` workflows; the server must be running and idle."""
    result, started = Interrupts(), time.monotonic()
    generator = random.Random(seed)
    times = {name: _usual_time(server, kind, name) for name, kind in kinds.items()}
    before = server.files()
    for number in range(count):
        victim = generator.choice(list(kinds))
        probe = victim if generator.random() < 0.5 else generator.choice(list(kinds))
        done = Round(victim, probe, generator.random() * AFTER_THE_END * times[victim])
        waiting = generator.random() < 0.3
        try:
            made = _round(server, kinds, done, number, generator.randrange(2**32), waiting)
            done.same = _alike(made, fresh[probe])
        except Problem as problem:
            result.problems.append(
                f"Round {number}, {victim} stopped after {done.moment:.2f} s, then {probe}: {problem}"
            )
        result.rounds.append(done)
        result.seconds = time.monotonic() - started
        show(result)
    for path in server.outside(before, server.files(), *ALLOWED):
        result.problems.append(f"{path} was left behind.")
    return result


def _usual_time(server: SandboxServer, kind: Prompt, name: str) -> float:
    """How long the kind takes when its models are loaded."""
    for number in range(2):
        started = time.monotonic()
        server.run(job(kind, f"usual_{number}_{name}", number))
    return time.monotonic() - started


def _round(
    server: SandboxServer, kinds: dict[str, Prompt], done: Round, number: int, seed: int, waiting: bool
) -> Pictures:
    """Interrupt one workflow, then the probe's pictures."""
    probe = job(kinds[done.probe], f"probe_{number}", PROBE_SEED)
    victim_id = accepted(*server.post("/prompt", {"prompt": job(kinds[done.victim], f"victim_{number}", seed)}))
    probe_id = accepted(*server.post("/prompt", {"prompt": probe})) if waiting else ""
    time.sleep(done.moment)
    server.post("/interrupt", {"prompt_id": victim_id} if waiting else {})
    interrupted = time.monotonic()
    history = _ended(server, victim_id, STOP_SECONDS)
    done.stop_seconds = time.monotonic() - interrupted
    for kind, details in history["status"]["messages"]:
        if kind == "execution_interrupted":
            done.stopped_at = details["node_type"]
    finished(history)  # a Problem where it ended with an error
    return _pictures(server, probe_id or accepted(*server.post("/prompt", {"prompt": probe})))


def _ended(server: SandboxServer, prompt_id: str, timeout: float) -> dict[str, Any]:
    """The history of a workflow once it has ended."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (history := server.history(prompt_id)) is not None:
            return history
        time.sleep(POLL_SECONDS)
    raise Problem(f"The workflow did not end within {timeout:.0f} s.")


def _pictures(server: SandboxServer, prompt_id: str) -> Pictures:
    history = finished(_ended(server, prompt_id, PROBE_SECONDS))
    outputs = history["outputs"]
    paths = [
        Path(picture["subfolder"]) / picture["filename"]
        for node in sorted(outputs, key=int)
        for picture in outputs[node].get("images", ())
        if picture["type"] == "output"
    ]
    if not paths:
        raise Problem("The probe saved no picture.")
    return [np.asarray(Image.open(server.data / "output" / path)) for path in paths]


def _alike(made: Pictures, fresh: Pictures) -> bool:
    return len(made) == len(fresh) and all(map(np.array_equal, made, fresh))
