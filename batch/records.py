"""What a batch keeps in its output folder besides the pictures: the journal it is resumed from, every prompt as it was sent,
and the manifest, one JSON line a picture that says what made it.

    _batch/journal.jsonl        what was sent where and what came back, safe on the disk before the next step
    _batch/prompts/HASH.json    the workflow of a job in API form, named by its SHA-256
    manifest.jsonl              made from the journal, so that the two cannot disagree
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..models_info.files import remove_partial_files, whole_file
from .errors import BatchError
from .jobs import Job
from .journal import Event, Journal, open_journal, read_journal
from .queue_client import Workflow

KIND = "ensemble-batch"
FOLDER, MANIFEST = "_batch", "manifest.jsonl"


def batch_secret(out: Path) -> str | None:
    """What the random seeds of the batch in this folder are drawn with; None where there is no batch yet."""
    return next((event["secret"] for event in read_journal(out / FOLDER) if event["event"] == "seeds"), None)


class Records:
    """The records of one batch. Every method may be called from any thread; after an error every one of them fails."""

    def __init__(self, out: Path, journal: Journal) -> None:
        self.out = out
        self._journal = journal
        self._lock = threading.Lock()
        self._error: OSError | None = None

    def saved(self) -> set[int]:
        """The jobs whose pictures are there."""
        return {event["job"] for event in self._journal.events if event["event"] == "saved"}

    def under_way(self) -> dict[int, Event]:
        """The jobs that were sent to a server and not heard of since: number -> how they were sent."""
        sent: dict[int, Event] = {}
        for event in self._journal.events:
            if event["event"] == "sent":
                sent[event["job"]] = event
            elif "job" in event:
                sent.pop(event["job"], None)
        return sent

    def send(self, job: Job, server: str, prompt_id: str, prompt: Workflow, files: dict[str, dict[str, str]]) -> Event:
        """A job is about to be sent.

        Args:
            files: input -> name and SHA-256 of the file that fills it.
        """
        text = json.dumps(prompt, ensure_ascii=False, sort_keys=True, indent=1).encode()
        digest = hashlib.sha256(text).hexdigest()
        with self._writing():
            path = self.out / FOLDER / "prompts" / f"{digest}.json"
            if not path.exists():
                with whole_file(path) as temporary:
                    temporary.write_bytes(text)
            return self._journal.write(
                "sent", job=job.number, server=server, prompt_id=prompt_id, prompt=digest, files=files
            )

    def note(self, event: str, job: Job, **values: Any) -> None:
        """Something else happened to a job that was sent."""
        with self._writing():
            self._journal.write(event, job=job.number, **values)

    def save(self, job: Job, rows: Sequence[dict[str, Any]]) -> None:
        """A job's pictures are on the disk; `rows` are their lines of the manifest."""
        with self._writing():
            self._journal.write("saved", job=job.number, rows=list(rows))
            with (self.out / MANIFEST).open("ab") as file:
                file.write(_lines(rows))

    def write_manifest(self) -> None:
        """Write the manifest anew, in the order of the jobs."""
        saved = [event for event in self._journal.events if event["event"] == "saved"]
        rows = [row for event in sorted(saved, key=lambda event: event["job"]) for row in event["rows"]]
        with self._writing(), whole_file(self.out / MANIFEST) as temporary:
            temporary.write_bytes(_lines(rows))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                yield
            except OSError as error:  # what was written last may be cut off, so nothing must follow it
                self._error = error
                raise


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@contextmanager
def open_records(out: Path, plan: str, secret: str) -> Iterator[Records]:
    """The records in an output folder, begun or continued; no other process can have them meanwhile.

    Args:
        plan: identifies the batch; that of another is not continued.
        secret: what its random seeds are drawn with.

    Raises:
        JournalError: another process works in the folder, or its journal is of something else.
    """
    with open_journal(out / FOLDER, plan, KIND) as journal:
        if not any(event["event"] == "seeds" for event in journal.events):
            journal.write("seeds", secret=secret)
        remove_partial_files(out)
        records = Records(out, journal)
        records.write_manifest()
        yield records


def check_free(out: Path, names: Sequence[str]) -> None:
    """A BatchError where a file of one of these names, with whatever ending, is in the folder before a batch begins."""
    wanted = {(out / name).parent: set() for name in names}
    for name in names:
        wanted[(out / name).parent].add((out / name).name)
    for folder, stems in wanted.items():
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.stem in stems and path.is_file():
                raise BatchError(f"{path} is there already; choose another --out or --name")


def pack_version() -> str:
    """Of this pack: of the checkout, or as it was installed."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        found = re.search(r'^version = "(.+)"', project.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    try:
        return version("comfyui-ensemble")
    except PackageNotFoundError:
        return "unknown"
