"""What a long run has done so far, on disk: one JSON line an event, each safe before the next step begins.

A process that is killed leaves at most one line cut off, which belongs to a step that was not finished; it is removed
at the next start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

VERSION = 1

Event = dict[str, Any]


class JournalError(RuntimeError):
    """A journal that cannot be continued; the message is one sentence."""


class Journal:
    """The events of one run, old ones read, new ones appended."""

    def __init__(self, file: BinaryIO, events: list[Event]) -> None:
        self._file = file
        self.events = events

    def write(self, event: str, **values: Any) -> Event:
        """Append an event; it is on the disk when this returns."""
        entry = {"event": event, **values}
        self._file.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.events.append(entry)
        return entry


@contextmanager
def open_journal(folder: Path, plan: str, kind: str) -> Iterator[Journal]:
    """The journal in `folder`, begun or continued, for as long as the block lasts; no other process can have it
    meanwhile.

    Args:
        plan: identifies what the run does; a journal of another plan is not continued.
        kind: of run, in a word; a journal of another kind is not continued either.

    Raises:
        JournalError: another process works in the folder, or the journal is damaged or of another plan.
    """
    from filelock import FileLock, Timeout  # comes with ComfyUI; the system frees the lock of a killed process

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "journal.lock", timeout=0), (folder / "journal.jsonl").open("a+b") as file:
            journal = Journal(file, _read(file, folder))
            _check_start(journal, plan, kind, folder)
            yield journal
    except Timeout:
        raise JournalError(f"another run works in {folder}; wait for it or take another folder") from None


def read_journal(folder: Path) -> list[Event]:
    """The whole events of a journal, without touching it; none where there is no journal."""
    path = folder / "journal.jsonl"
    return _events(path.read_bytes(), folder) if path.is_file() else []


def _read(file: BinaryIO, folder: Path) -> list[Event]:
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        file.truncate(whole)
    return _events(data, folder)


def _events(data: bytes, folder: Path) -> list[Event]:
    events = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            event = json.loads(line)
            event["event"]
        except (ValueError, KeyError, TypeError):
            raise JournalError(f"line {number} of the journal in {folder} is damaged; take another folder") from None
        events.append(event)
    return events


def _check_start(journal: Journal, plan: str, kind: str, folder: Path) -> None:
    if not journal.events:
        journal.write("start", format=kind, version=VERSION, plan=plan)
        return
    start = journal.events[0]
    if (start.get("format"), start.get("version")) != (kind, VERSION):
        raise JournalError(f"the journal in {folder} is of another kind of run; take another folder")
    if start.get("plan") != plan:
        raise JournalError(
            f"the journal in {folder} belongs to other prompts, settings or another workflow; take another folder"
        )
