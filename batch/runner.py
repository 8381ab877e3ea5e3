"""Runs a batch: begins or resumes it, watches its servers, and ends it cleanly however it ends."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .board import Board
from .errors import BatchError
from .plan import Plan, Wish, check_same, check_server, make_plan
from .queue_client import QueueClient, QueueError
from .records import Records, open_records
from .server_worker import Held, ServerWorker

LOOK_SECONDS = 0.1
WINDOW = 50  # jobs whose speed is the present speed


@dataclass(frozen=True)
class Progress:
    """How far a batch is.

    Attributes:
        saved: jobs whose pictures are there, from earlier runs too.
        given_up: jobs that failed for good.
        total: all jobs.
        servers: how many answer.
        remaining: seconds until the end, probably; None where nothing is known yet.
    """

    saved: int
    given_up: int
    total: int
    servers: int
    remaining: float | None


@dataclass(frozen=True)
class Summary:
    """What came of a batch: jobs saved, and why the others were given up."""

    saved: int
    given_up: Mapping[int, str]


@dataclass(frozen=True)
class Report:
    """Where a batch speaks.

    Attributes:
        say: one line about something that happened; called from any thread.
        progress: called several times a second.
    """

    say: Callable[[str], None]
    progress: Callable[[Progress], None]


@dataclass(frozen=True)
class Patience:
    """How long a batch puts up with what goes wrong.

    Attributes:
        retries: how often a job that failed is repeated.
        wait: seconds that all servers may be silent at once.
    """

    retries: int = 3
    wait: float = 600.0


@dataclass
class Speed:
    """Jobs a second, at present."""

    ends: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))

    def remaining(self, done: int, left: int) -> float | None:
        if not self.ends or self.ends[-1][1] != done:
            self.ends.append((time.monotonic(), done))
        (begun, first), (_ended, last) = self.ends[0], self.ends[-1]
        return (time.monotonic() - begun) / (last - first) * left if last > first else None


def plan_batch(wish: Wish, clients: Sequence[QueueClient], say: Callable[[str], None]) -> tuple[Plan, dict[str, str]]:
    """The plan, and the versions of the servers that answer.

    Raises:
        BatchError: a server cannot do it, or none answers.
    """
    if len({client.url for client in clients}) < len(clients):
        raise BatchError("a server is named twice; name each once")
    plan: Plan | None = None
    versions: dict[str, str] = {}
    silence = "no server is named"
    for client in clients:
        try:
            versions[client.url], own = check_server(client, lambda object_info: make_plan(wish, object_info))
        except QueueError as error:
            silence = str(error)
            if len(clients) > 1:
                say(silence.split(";")[0])
            continue
        if plan is not None:
            check_same(plan, own, client.url)
        plan = plan or own
    if plan is None:
        raise BatchError(silence)
    return plan, versions


def run_batch(wish: Wish, clients: Sequence[QueueClient], patience: Patience, report: Report) -> Summary:
    """Begin a batch, or go on with the one in the output folder.

    Raises:
        BatchError, QueueError, JournalError, OSError: it cannot begin or go on; what is done so far is kept.
        KeyboardInterrupt: after the servers' queues have been cleaned.
    """
    plan, versions = plan_batch(wish, clients, report.say)
    with open_records(wish.out, plan.digest(), plan.secret) as records:
        saved = records.saved()
        board = Board([job for job in plan.jobs.jobs if job.number not in saved], patience.retries)
        stop = threading.Event()

        def check(client: QueueClient) -> str:
            version, own = check_server(client, lambda object_info: make_plan(wish, object_info))
            check_same(plan, own, client.url)
            return version

        workers = [ServerWorker(client, plan, board, records, check, stop, report.say) for client in clients]
        _hand_out_stale(workers, plan, records)
        for worker in workers:  # all of them before the first job is taken, so that none is taken from where it is
            _meet(worker, versions.get(worker.client.url))
        try:
            _watch(workers, board, len(saved), len(plan.jobs.jobs), patience, report, stop)
        finally:
            stop.set()
            for worker in workers:
                if worker.ident is not None:
                    worker.join()
            records.write_manifest()
    return Summary(len(saved) + board.saved, board.given_up)


def _hand_out_stale(workers: Sequence[ServerWorker], plan: Plan, records: Records) -> None:
    """Tell every server's worker which jobs an earlier run sent there."""
    by_url = {worker.client.url: worker for worker in workers}
    for number, sent in records.under_way().items():
        worker = by_url.get(sent["server"])
        if worker is not None:
            worker.stale[sent["prompt_id"]] = Held(plan.jobs.jobs[number - 1], sent)


def _meet(worker: ServerWorker, version: str | None) -> None:
    try:
        if version is not None:
            worker.meet(version)
            return
    except QueueError:
        pass
    worker.silent_since = time.monotonic()


def _watch(
    workers: Sequence[ServerWorker],
    board: Board,
    saved: int,
    total: int,
    patience: Patience,
    report: Report,
    stop: threading.Event,
) -> None:
    """Start the workers and stay until they have ended."""
    for worker in workers:
        worker.start()
    speed = Speed()
    while True:
        running = any(worker.is_alive() for worker in workers)
        done = board.saved + len(board.given_up)
        silent = [worker.silent_since for worker in workers if not worker.left_out]
        answering = sum(since is None for since in silent)
        report.progress(
            Progress(saved + board.saved, len(board.given_up), total, answering, speed.remaining(done, board.left()))
        )
        if not running:
            break
        _check_silence(silent, patience, stop)
        time.sleep(LOOK_SECONDS)
    for worker in workers:
        if worker.problem is not None:
            raise worker.problem
    if board.left():
        raise BatchError("no server is left that could go on; see above for why")


def _check_silence(silent: Sequence[float | None], patience: Patience, stop: threading.Event) -> None:
    if not silent or None in silent or stop.is_set():
        return
    youngest: Any = max(since for since in silent if since is not None)
    if time.monotonic() - youngest > patience.wait:
        raise BatchError(
            f"no server has answered for {patience.wait:.0f} seconds; start one, then start this again to go on"
        )
