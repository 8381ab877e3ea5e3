"""Shards whose poses come out of pictures: the factory (see ``factory``) on several ComfyUI servers, or on a Ray cluster.

A shard of prompts is one run of the factory, with a journal of its own; a server works at a few at a time and takes the next when
one is whole, so a fast server makes more. Where one is silent, its shards go to another, each from the try at which it was, and it
is asked again until it answers; a server that Ray puts in the place of a lost one is such a server.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..batch.journal import read_journal
from ..batch.queue_client import QueueClient, QueueError, Refused, ServerDown
from .collection_shards import ShardRecord, shard_path
from .database import empty_database, save_database
from .encoder import SentenceEncoder
from .factory import Plan, accepted_entries, build_database, check_workflow, run_factory
from .prompt_file import PromptFile
from .scale import ScaleError, read_record

PICTURES = "pictures"  # folder beside the shards: journal and pictures of each
RETRIES = 3  # of a shard that fails, in a row and on one server
LOOK_SECONDS = 1.0

# What a thread has to say: a shard, what went wrong for good, or, as None, that it has ended.
Result = ShardRecord | BaseException | None


class _Stopped(Exception):
    """Somebody ends the run."""


@dataclass
class PictureShards:
    """A `scale.MakeShards`.

    Attributes:
        prompts: a shard's entries are those of its prompts whose pose was good enough.
        plan: as of the factory; its own prompts do not matter. A poses folder has a folder for each shard, ``000000`` and on.
        clients: the servers.
        encoder: makes the embeddings.
        at_once: shards that a server has in hand, so that it always has something to do.
        wait: seconds that a server may be silent before it is left out.
        say: one line about something that happened; called from any thread.
        waiting: entries that wait for their pose files, once all is done.
    """

    prompts: PromptFile
    plan: Plan
    clients: Sequence[QueueClient]
    encoder: SentenceEncoder
    say: Callable[[str], object]
    at_once: int = 2
    wait: float = 600.0
    waiting: int = 0
    _todo: deque[int] = field(default_factory=deque)
    _in_hand: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _encoding: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def digest(self) -> str:
        """Identifies all that decides about the entries."""
        return hashlib.sha256(f"{self.prompts.digest} {replace(self.plan, prompts=()).digest()}".encode()).hexdigest()

    def __call__(self, folder: Path, done: set[int]) -> Iterator[ShardRecord]:
        """The shards that are not `done`, as they come; those with entries that wait for their pose files are left out.

        Raises:
            FactoryError, QueueError: a workflow cannot run; ScaleError: no server is left.
        """
        check_workflow(self.plan.workflow)
        self._todo.extend(number for number in range(len(self.prompts)) if number not in done)
        results: queue.Queue[Result] = queue.Queue()
        threads = [
            threading.Thread(target=self._work, args=(client, folder, results))
            for client in self.clients
            for _ in range(self.at_once)
        ]
        for thread in threads:
            thread.start()
        running, silence = len(threads), ""
        try:
            while running:
                result = results.get()
                if isinstance(result, ServerDown):
                    silence = str(result)
                elif isinstance(result, BaseException):
                    raise result
                elif result is not None:
                    yield result
                else:
                    running -= 1
            if self._todo:
                raise ScaleError(f"no server is left that could go on: {silence}")
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _work(self, client: QueueClient, folder: Path, results: queue.Queue[Result]) -> None:
        """Make shards until there are no more, and say so; what goes wrong for good is a result too."""
        try:
            while (number := self._take()) is not None:
                try:
                    record = self._shard_in_spite(client, folder, number)
                except ServerDown as error:
                    self._give_back(number)
                    self._await(client, error)
                    continue
                except BaseException:
                    self._give_back(number)
                    raise
                self._let_go()
                if record is not None:
                    results.put(record)
        except _Stopped:
            return
        except BaseException as error:
            results.put(error)
        finally:
            results.put(None)

    def _take(self) -> int | None:
        """A shard that nobody has in hand. While others are, one may come back; None when none can, or at the end."""
        with self._changed:
            while not self._todo and self._in_hand and not self._stop.is_set():
                self._changed.wait(LOOK_SECONDS)
            if not self._todo or self._stop.is_set():
                return None
            self._in_hand += 1
            return self._todo.popleft()

    def _let_go(self) -> None:
        with self._changed:
            self._in_hand -= 1
            self._changed.notify_all()

    def _give_back(self, number: int) -> None:
        with self._changed:
            self._todo.appendleft(number)
        self._let_go()

    def _shard_in_spite(self, client: QueueClient, folder: Path, number: int) -> ShardRecord | None:
        """A shard, in spite of a server that fails now and then."""
        failures = 0
        while True:
            try:
                return self._shard(client, folder, number)
            except (Refused, ServerDown):
                raise
            except QueueError as error:
                failures += 1
                if failures > RETRIES:
                    raise
                self.say(f"shard {number} on {client.url}: {error}; trying again")

    def _await(self, client: QueueClient, error: ServerDown) -> None:
        self.say(f"{client.url} does not answer; waiting for it")
        deadline = time.monotonic() + self.wait
        while time.monotonic() < deadline:
            if self._stop.wait(LOOK_SECONDS):
                raise _Stopped
            try:
                client.version()
                return
            except QueueError:
                continue
        raise error

    def _shard(self, client: QueueClient, folder: Path, number: int) -> ShardRecord | None:
        """A shard; None where some of its entries wait for their pose files."""
        work = folder / PICTURES / f"{number:06d}"
        plan = self._plan(number)

        def note(text: str) -> None:
            if self._stop.is_set():
                raise _Stopped  # the journal has all that was done
            self.say(f"shard {number}: {text}")

        summary = run_factory(plan, client, work, note)
        if summary.waiting:
            with self._changed:
                self.waiting += summary.waiting
            return None
        entries = accepted_entries(plan.prompts, read_journal(work))
        with self._encoding:  # there is one sentence model
            database = build_database(empty_database(f"{number:06d}"), entries, self.encoder, plan.digest())
        save_database(database, shard_path(folder, number))
        return read_record(folder, number)

    def _plan(self, number: int) -> Plan:
        """The factory's plan for a shard: its prompts, seeds of its own, its folder of poses."""
        seed = int.from_bytes(hashlib.sha256(f"{self.plan.seed}/shard {number}".encode()).digest()[:6], "big")
        poses = None if self.plan.poses is None else self.plan.poses / f"{number:06d}"
        return replace(self.plan, prompts=self.prompts.prompts(number), seed=seed, poses=poses)
