"""Bad requests, thousands of them, to one server: it never dies, never hangs, never writes where it should not.

Every case is a function of the seed and its number, so that one of them can be sent again alone. It is a malformed body, a
small bundled workflow with one to three things wrong, or one node of the pack alone with as much wrong.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devtools.reliability.bodies import MALFORMED, encode
from devtools.reliability.lone_nodes import lone_node, pack_nodes
from devtools.reliability.mutations import ObjectInfo, mutated
from devtools.reliability.sandbox import SandboxServer
from devtools.reliability.values import with_root
from devtools.reliability.verdicts import PACK_FOLDER, Verdict, judged, refused, stray_tracebacks
from devtools.reliability.workload import Prompt

MALFORMED_SHARE = 0.15
LONE_SHARE = 0.35
POLL_SECONDS = 0.02
END_SECONDS = 10  # that a server which ends may take for it
# What workflows may write, seen from the data folder.
ALLOWED = ("output/", "temp/", "models/")
PRODUCTS = ("loras", "ensemble_dsm", "ensemble_dam", "ensemble_anystory", "pose_databases")


@dataclass(frozen=True)
class Case:
    """One bad request.

    Attributes:
        what: in words, for people.
    """

    number: int
    what: str
    body: bytes


@dataclass(frozen=True)
class Limits:
    """When patience ends.

    Attributes:
        seconds: a workflow that takes longer is interrupted.
        stop_seconds: it must have stopped this long after that.
        memory: MiB; a server that holds more is ended, before it takes the machine down.
    """

    seconds: float = 30
    stop_seconds: float = 120
    memory: float = 6000


@dataclass
class Mutation:
    """What became of all requests.

    Attributes:
        left_outside: files that were written where none should be.
        strays: tracebacks of the pack's in the server's log that end in no sentence.
    """

    verdicts: list[tuple[Case, Verdict]] = field(default_factory=list)
    left_outside: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    restarts: int = 0
    seconds: float = 0.0

    def count(self) -> dict[str, int]:
        """How many had each outcome."""
        return dict(Counter(verdict.outcome for _, verdict in self.verdicts))

    def defects(self) -> list[tuple[Case, Verdict]]:
        """Those that should have gone otherwise."""
        return [(case, verdict) for case, verdict in self.verdicts if verdict.outcome == "defect"]

    def report(self) -> dict[str, Any]:
        """As JSON holds it."""

        def row(case: Case, verdict: Verdict) -> dict[str, Any]:
            return {"case": case.number, "what": case.what, "node": verdict.node, "words": verdict.words}

        def said(outcome: str) -> list[list[Any]]:
            words = Counter(
                f"{verdict.node}: {verdict.words}"[:400]
                for _, verdict in self.verdicts
                if verdict.outcome == outcome and verdict.words
            )
            return [[count, text] for text, count in words.most_common()]

        return {
            "requests": len(self.verdicts),
            "seconds": round(self.seconds, 1),
            "outcomes": self.count(),
            "restarts": self.restarts,
            "left outside": self.left_outside,
            "tracebacks without a sentence": self.strays,
            "defects": [row(case, verdict) for case, verdict in self.defects()],
            "host errors": said("host error"),
            "failed": said("failed"),
            "refused": said("refused"),
            "interrupted": [row(case, verdict) for case, verdict in self.verdicts if verdict.outcome == "interrupted"],
        }


def make_case(number: int, seed: int, bases: dict[str, Prompt], object_info: ObjectInfo, root: str) -> Case:
    """The case of this seed and number."""
    generator = random.Random(f"{seed}/{number}")
    share = generator.random()
    if share < MALFORMED_SHARE:
        name = generator.choice(list(bases))
        malform = generator.choice(MALFORMED)
        body = malform(json.loads(json.dumps(bases[name])), generator)
        return Case(number, f"{name}: {malform.__name__}", body.replace(b"@SANDBOX@", root.encode()))
    if share < MALFORMED_SHARE + LONE_SHARE:
        name = generator.choice(pack_nodes(object_info))
        base = lone_node(name, object_info)
    else:
        name = generator.choice(list(bases))
        base = bases[name]
    prompt, done = mutated(base, object_info, generator)
    return Case(number, f"{name}: {', '.join(done)}", encode({"prompt": with_root(prompt, root)}))


def titles(object_info: ObjectInfo) -> frozenset[str]:
    """The display names of the pack's nodes."""
    return frozenset(object_info[name]["display_name"] for name in pack_nodes(object_info))


def mutate(
    server: SandboxServer,
    bases: dict[str, Prompt],
    numbers: Iterable[int],
    seed: int,
    limits: Limits,
    show: Callable[[Mutation], None] = lambda result: None,
) -> Mutation:
    """Send the cases; the server must be running and idle, and is started again where one ends it."""
    result, started = Mutation(), time.monotonic()
    object_info = server.get("/object_info")
    known = titles(object_info)
    before = server.files()
    for number in numbers:
        case = make_case(number, seed, bases, object_info, str(server.root))
        verdict = attempt(server, case, known, limits)
        if not server.alive:
            result.strays += _strays(server, known)
            server.kill()
            server.start()
            result.restarts += 1
        outside = _outside(server, before)
        if outside:
            verdict = Verdict("defect", f"it wrote {', '.join(outside)}")
            result.left_outside += outside
            before |= set(outside)
        result.verdicts.append((case, verdict))
        result.seconds = time.monotonic() - started
        show(result)
    result.strays += _strays(server, known)
    return result


def _strays(server: SandboxServer, known: frozenset[str]) -> list[str]:
    return stray_tracebacks(server.log_text, known)


def attempt(server: SandboxServer, case: Case, known: frozenset[str], limits: Limits) -> Verdict:
    """Send one request and see what comes of it; afterwards the server is idle, or it was ended."""
    try:
        status, answer = send(server, case.body)
        if status == 400:
            return refused(answer)
        if status != 200 or not isinstance(answer, dict):
            return Verdict("host error", f"status {status}")
        partly = refused({"error": {"message": "partly"}, "node_errors": answer.get("node_errors")})
        verdict = _run(server, answer["prompt_id"], known, limits)
        if server.alive:
            server.forget(answer["prompt_id"])
    except (OSError, http.client.HTTPException) as error:
        return _silent(server, error)
    return partly if partly.outcome == "defect" else verdict


def _silent(server: SandboxServer, error: Exception) -> Verdict:
    """About a server that does not answer any more."""
    if not server.ends_within(END_SECONDS):
        server.kill()
        return Verdict("defect", f"it does not answer any more ({error!r}):\n{server.last_lines()}")
    trace = server.end_trace()
    if trace and PACK_FOLDER not in trace:
        return Verdict("host error", f"the host ended:\n{trace}")
    return Verdict("defect", f"it died:\n{server.last_lines(30)}")


def send(server: SandboxServer, body: bytes) -> tuple[int, Any]:
    """Status and JSON answer (None where it is none) of POST /prompt."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request("POST", "/prompt", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, None


def _run(server: SandboxServer, prompt_id: str, known: frozenset[str], limits: Limits) -> Verdict:
    """Wait for the end of a workflow; interrupts it when it takes long."""
    started, interrupted = time.monotonic(), 0.0
    while True:
        history = server.history(prompt_id)
        if history is not None:
            return judged(history, known)
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        if not interrupted and now - started > limits.seconds:
            if trace := server.worker_trace():
                server.kill()
                return Verdict("defect" if PACK_FOLDER in trace else "host error", f"its worker ended:{trace}")
            server.post("/interrupt", {})
            interrupted = now
        if interrupted and now - interrupted > limits.stop_seconds:
            server.kill()
            return Verdict("defect", f"it did not stop {limits.stop_seconds:.0f} s after it was interrupted")
        if (memory := server.usage().memory) > limits.memory:
            server.kill()
            return Verdict("defect", f"it took {memory:.0f} MiB of memory")


def _outside(server: SandboxServer, before: set[str]) -> list[str]:
    """What was written where nothing should be; removes what may be written."""
    after = server.files()
    outside = server.outside(before, after, *ALLOWED)
    for path in after - before - set(outside):
        (server.root / path).unlink()
    return outside


def write_bodies(result: Mutation, folder: Path) -> None:
    """Write the body of every request that went wrong."""
    for case, _ in result.defects():
        (folder / f"case_{case.number}.json").write_bytes(case.body)
