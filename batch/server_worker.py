"""One server of a batch: a thread that keeps it busy, brings its pictures home, and copes with its silence."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .board import Board
from .errors import BatchError
from .jobs import Job
from .journal import Event
from .plan import Plan
from .queue_client import QueueClient, QueueError, ServerDown, queue_result, was_interrupted
from .records import Records
from .saving import file_ending, kept_files, manifest_row, write_files

DEPTH = 2  # jobs at a server: one at work, one waiting, so that it never idles
GRACE_SECONDS = 10.0  # a server that is silent for longer loses its jobs to others
PAUSES = (0.05, 1.0)  # seconds between two looks, shortest and longest
SILENT_PAUSES = (0.5, 5.0)
CLEAN_SECONDS = 60.0  # how long the end of an interrupted workflow is waited for


@dataclass
class Held:
    """A job at this server.

    Attributes:
        sent: its event in the journal.
        running: when it was first seen at work.
    """

    job: Job
    sent: Event
    running: float | None = None

    @property
    def prompt_id(self) -> str:
        return self.sent["prompt_id"]


class ServerWorker(threading.Thread):
    """Takes jobs from the board until there are none.

    Attributes:
        silent_since: when the server stopped answering; None while it answers.
        problem: why the batch cannot go on, as an error of this thread.
        left_out: why this server takes no part any more.
    """

    def __init__(
        self,
        client: QueueClient,
        plan: Plan,
        board: Board,
        records: Records,
        check: Callable[[QueueClient], str],
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(name=client.url, daemon=True)
        self.client, self.plan, self.board, self.records = client, plan, board, records
        self._check, self._stop_all, self._say = check, stop, say
        self.version: str | None = None
        self.held: dict[str, Held] = {}
        self.stale: dict[str, Held] = {}  # sent here, but not in this server's hands any more
        self.silent_since: float | None = None
        self.problem: Exception | None = None
        self.left_out = ""
        self._uploaded: dict[str, str] = {}
        self._silences = 0
        self._pause = PAUSES[0]

    # The thread

    def run(self) -> None:
        try:
            while not self._stop_all.is_set() and self.board.left() and not self.left_out:
                self._turn()
                self._stop_all.wait(self._pause)
        except Exception as error:
            self.problem = error
            self._stop_all.set()
        finally:
            self.board.leave(self.client.url)
            self._withdraw()

    def _turn(self) -> None:
        try:
            if self.version is None:
                self.connect()
            self._fill()
            self._look()
        except QueueError as error:
            self._silent(error)
        except BatchError as error:
            if self.version is not None:
                raise
            self.left_out = str(error)
            self._say(f"{error}; going on without it")
        else:
            if self.silent_since is not None:
                self._say(f"{self.client.url} answers again")
            self.silent_since, self._silences = None, 0

    def connect(self) -> None:
        """Check the server and take up what was sent to it before.

        Raises:
            QueueError, BatchError: it takes no part, for now or for good.
        """
        self.meet(self._check(self.client))

    def meet(self, version: str) -> None:
        """Take part, beginning with the jobs that were sent to this server before and are still wanted.

        Raises:
            QueueError: the server does not answer.
        """
        for prompt_id, held in list(self.stale.items()):
            state = self.client.state(prompt_id)
            if state is not None and self.board.claim(held.job, self.client.url):
                self.held[prompt_id] = held
            elif state is not None and state.history is None:
                self.client.cancel(prompt_id)  # another server has it by now
            del self.stale[prompt_id]
        self.version = version
        self.board.join(self.client.url)

    def _silent(self, error: QueueError) -> None:
        now = time.monotonic()
        if self.silent_since is None:
            self.silent_since = now
            self._say(str(error).split(";")[0] + "; trying again")
        shortest, longest = SILENT_PAUSES
        self._pause = min(longest, shortest * 2**self._silences)
        self._silences += 1
        if now - self.silent_since >= GRACE_SECONDS and self.version is not None:
            self._abandon()

    def _abandon(self) -> None:
        """Leave this server's jobs to others; what it makes of them is looked at when it is back."""
        self.board.leave(self.client.url)
        self.version = None
        self._uploaded.clear()
        for prompt_id, held in self.held.items():
            self.stale[prompt_id] = Held(held.job, held.sent)
            self.board.give_back(held.job)
        self.held.clear()

    # Sending

    def _fill(self) -> None:
        while len(self.held) < DEPTH and not self._stop_all.is_set():
            job = self.board.take(self.client.url, len(self.held))
            if job is None:
                return
            self._send(job)

    def _send(self, job: Job) -> None:
        try:
            uploaded, files = self._upload(job)
        except ServerDown:
            self.board.give_back(job)
            raise
        except QueueError as error:
            self._failed(job, str(error))
            return
        prompt_id = str(uuid.uuid4())
        prompt = job.prompt(self.plan.workflow, uploaded)
        sent = self.records.send(job, self.client.url, prompt_id, prompt, files)
        self.held[prompt_id] = Held(job, sent)
        try:
            self.client.submit(prompt, prompt_id)
        except ServerDown:
            raise
        except QueueError as error:
            del self.held[prompt_id]
            self._uploaded.clear()  # perhaps the server was set up anew
            self._failed(job, str(error), hopeless=True)

    def _upload(self, job: Job) -> tuple[dict[tuple[str, str], str], dict[str, dict[str, str]]]:
        """What the job's files are called on the server; and for the manifest, what they are."""
        names, files = {}, {}
        for slot, path in job.pictures.items():
            try:
                data = path.read_bytes()
            except OSError as error:
                raise QueueError(f"{path} cannot be read any more: {error.strerror}") from None
            digest = hashlib.sha256(data).hexdigest()
            # Named by its content, so that it is sent once and never in another's place.
            name = f"ensemble_{digest[:24]}{file_ending(path.name.lower())}"
            if name not in self._uploaded:
                self._uploaded[name] = self.client.upload(name, data, "input")
            names[slot] = self._uploaded[name]
            files[self.plan.addresses[slot]] = {"file": str(path), "sha256": digest}
        return names, files

    # Looking

    def _look(self) -> None:
        shortest, longest = PAUSES
        self._pause = min(longest, max(shortest, self._pause * 1.2))
        for held in list(self.held.values()):
            state = self.client.state(held.prompt_id)
            if state is None:
                self._lost(held, "it vanished from the server's queue")
            elif state.history is not None:
                self._ended(held, state.history)
                self._pause = shortest
            elif state.running:
                self._running(held)
        if self.board.others_idle(self.client.url):
            self._share()

    def _running(self, held: Held) -> None:
        held.running = held.running or time.monotonic()
        if time.monotonic() - held.running > self.client.timeout:
            self.client.cancel(held.prompt_id)
            del self.held[held.prompt_id]
            self._failed(held.job, f"it took longer than {self.client.timeout:.0f} seconds")

    def _lost(self, held: Held, reason: str) -> None:
        del self.held[held.prompt_id]
        self._uploaded.clear()
        if held.running is not None:  # it may be what brought the server down
            self._failed(held.job, reason)
            return
        self.records.note("lost", held.job, prompt_id=held.prompt_id, reason=reason)
        if not self.board.lose(held.job):
            self._say(f"job {held.job.number} is given up: {reason}")

    def _failed(self, job: Job, reason: str, hopeless: bool = False) -> None:
        """A try that came to nothing.

        Args:
            hopeless: every other job would fare the same, if none has been saved yet.
        """
        self.records.note("failed", job, server=self.client.url, reason=reason)
        if hopeless and not self.board.saved:
            self.board.give_back(job)
            raise BatchError(f"job {job.number}: {reason}")
        again = self.board.fail(job, self.client.url, reason)
        self._say(f"job {job.number} {'failed, it is tried again' if again else 'is given up'}: {reason}")

    def _share(self) -> None:
        """Hand a job that only waits here to a server that has nothing to do."""
        for prompt_id, held in reversed(self.held.items()):
            if held.running is None and self.client.dequeue(prompt_id):
                del self.held[prompt_id]
                self.records.note("shared", held.job, prompt_id=prompt_id)
                self.board.give_back(held.job)
                return

    # Saving

    def _ended(self, held: Held, history: dict[str, Any]) -> None:
        if was_interrupted(history):
            self._lost(held, "somebody stopped it in ComfyUI")
            return
        try:
            result = queue_result(history)
        except QueueError as error:
            del self.held[held.prompt_id]
            self._failed(held.job, str(error))
            return
        files = kept_files(result)
        if not files:
            del self.held[held.prompt_id]
            self._failed(held.job, "the workflow saved no file; add a Save Image node", hopeless=True)
            return
        try:
            contents = [self.client.fetch(file) for file in files]
        except ServerDown:
            raise
        except QueueError as error:
            del self.held[held.prompt_id]
            self._failed(held.job, f"its pictures cannot be fetched: {error}")
            return
        self._save(held, history, files, contents)

    def _save(self, held: Held, history: dict[str, Any], files: list[dict[str, str]], contents: list[bytes]) -> None:
        assert self.version is not None  # or nothing would be held
        made_by = manifest_row(self.plan, held.job, held.sent, history) | {"comfyui": self.version}
        self.records.save(held.job, write_files(self.plan, held.job, made_by, files, contents))
        del self.held[held.prompt_id]
        self.board.save(held.job)

    # Leaving

    def _withdraw(self) -> None:
        """Take back what is still in the server's queue; what nobody waits for any more must not be made."""
        try:
            for prompt_id in reversed(self.held):
                self.client.cancel(prompt_id)
            deadline = time.monotonic() + CLEAN_SECONDS
            while self.held and time.monotonic() < deadline:
                for held in list(self.held.values()):
                    self._withdrawn(held)
                time.sleep(PAUSES[0])
        except QueueError:
            pass
        if self.held:
            self._say(f"{self.client.url} still has {len(self.held)} of this batch's jobs; look at its queue")

    def _withdrawn(self, held: Held) -> None:
        """Note what became of a cancelled job; one that ended before that is found by the next start."""
        state = self.client.state(held.prompt_id)
        if state is not None and state.history is None:
            return
        del self.held[held.prompt_id]
        if state is None or (state.history is not None and was_interrupted(state.history)):
            with suppress(OSError):  # the disk may be what ends the batch
                self.records.note("withdrawn", held.job, prompt_id=held.prompt_id)
