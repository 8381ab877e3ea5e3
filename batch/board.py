"""Who does what: the jobs of a batch, and the servers that take them one after the other.

Every job is in one place: ready, in the hands of one server, saved or given up. A server's own thread is the only one that
hands its jobs on, so none is done by two: it gives up a job that still waits in its queue when another server is idle, and all
of its jobs when it no longer answers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .jobs import Job

BACK_OFF = (1.0, 60.0)  # seconds before the first repetition, doubled for every further one, and at most
MOST_LOSSES = 10  # how often a job may vanish with its server before it is held to be the reason


@dataclass
class _Entry:
    job: Job
    holder: str | None = None
    failed_on: list[str] = field(default_factory=list)
    losses: int = 0
    ready_at: float = 0.0


class Board:
    """The jobs that are left. Every method may be called from any thread."""

    def __init__(self, jobs: Iterable[Job], retries: int) -> None:
        self._entries = {job.number: _Entry(job) for job in jobs}
        self._ready = deque(self._entries)
        self._lock = threading.Lock()
        self._retries = retries
        self._alive: set[str] = set()
        self._idle: set[str] = set()
        self.saved = 0
        self.given_up: dict[int, str] = {}

    def join(self, server: str) -> None:
        """A server can take jobs."""
        with self._lock:
            self._alive.add(server)

    def leave(self, server: str) -> None:
        """A server can take no more jobs, for now or for good."""
        with self._lock:
            self._alive.discard(server)
            self._idle.discard(server)

    def take(self, server: str, holding: int) -> Job | None:
        """The next job for a server that holds so many; None where there is none for it now."""
        with self._lock:
            job = None
            # A job in advance is for those only who leave nobody idle by it.
            if not (holding and self._idle - {server}):
                job = self._next(server)
            if job is None and not holding:
                self._idle.add(server)
            elif job is not None:
                self._idle.discard(server)
            return job

    def _next(self, server: str) -> Job | None:
        now = time.monotonic()
        for number in self._ready:
            entry = self._entries[number]
            elsewhere = self._alive - set(entry.failed_on)
            if entry.ready_at <= now and (server not in entry.failed_on or not elsewhere):
                self._ready.remove(number)
                entry.holder = server
                return entry.job
        return None

    def claim(self, job: Job, server: str) -> bool:
        """Take a certain job that is ready, because the server turns out to have it already."""
        with self._lock:
            entry = self._entries.get(job.number)
            if entry is None or entry.holder is not None or job.number not in self._ready:
                return False
            self._ready.remove(job.number)
            entry.holder = server
            self._idle.discard(server)
            return True

    def others_idle(self, server: str) -> bool:
        """Whether another server has nothing to do."""
        with self._lock:
            return bool(self._idle - {server})

    def give_back(self, job: Job) -> None:
        """A server hands a job on; nobody is to blame."""
        with self._lock:
            self._entries[job.number].holder = None
            self._ready.appendleft(job.number)

    def lose(self, job: Job) -> bool:
        """A job vanished from its server's queue; False where that was once too often and it is given up."""
        with self._lock:
            entry = self._entries[job.number]
            entry.holder = None
            entry.losses += 1
            if entry.losses > MOST_LOSSES:
                self._give_up(job, f"it vanished {entry.losses} times from a server's queue")
                return False
            self._ready.appendleft(job.number)
            return True

    def fail(self, job: Job, server: str, reason: str) -> bool:
        """A job failed on its server; False where it has no try left and is given up."""
        with self._lock:
            entry = self._entries[job.number]
            entry.holder = None
            entry.failed_on.append(server)
            if len(entry.failed_on) > self._retries:
                self._give_up(job, reason)
                return False
            first, most = BACK_OFF
            entry.ready_at = time.monotonic() + min(most, first * 2 ** (len(entry.failed_on) - 1))
            self._ready.append(job.number)
            return True

    def _give_up(self, job: Job, reason: str) -> None:
        del self._entries[job.number]
        self.given_up[job.number] = reason

    def save(self, job: Job) -> None:
        """A job's pictures are on the disk."""
        with self._lock:
            del self._entries[job.number]
            self.saved += 1

    def left(self) -> int:
        """How many jobs are neither saved nor given up."""
        with self._lock:
            return len(self._entries)
