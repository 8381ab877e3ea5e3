"""One step of a construction: a folder, a journal, and every item done once.

A step's folder is named by all that decides about its results. Other settings or another model therefore begin that step
and those after it anew, in folders of their own, and leave everything before as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...batch.journal import Event, open_journal
from ...models_info.files import remove_partial_files

KIND = "ensemble-data-construction"
SAMPLED = 16  # numbers of a tensor that go into a model's identity
EDGE = 1 << 20  # bytes of a file's either end that do


class ItemError(ValueError):
    """One item that cannot be used; the message says why and is kept in the step's journal."""


@dataclass(frozen=True)
class Report:
    """Where a run says how far it is.

    Attributes:
        progress: step, items done, items in all.
        check: raises where the run is to stop.
    """

    progress: Callable[[str, int, int], None] = lambda step, done, total: None
    check: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Step:
    """A step of one run.

    Attributes:
        name: of its folder.
        decides: all that its results depend on besides the item itself; must be JSON.
        after: identities of the steps whose results it uses.
        work: folder that holds all steps.
    """

    name: str
    decides: Mapping[str, Any]
    work: Path
    after: tuple[str, ...] = ()
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps([self.name, self.decides, self.after], sort_keys=True)
        object.__setattr__(self, "identity", hashlib.sha256(text.encode()).hexdigest()[:16])

    @property
    def folder(self) -> Path:
        return self.work / f"{self.name}-{self.identity}"

    def run(self, keys: Iterable[str], make: Callable[[str], Mapping[str, Any]], report: Report) -> dict[str, Event]:
        """What `make` gave for every key, now or in an earlier run; keys whose `make` raised `ItemError` have a `problem`.

        Files that `make` writes must be whole files (`models_info.files`) named by their key, so that an item which was cut
        off is made again over what was left of it.

        Raises:
            JournalError: another run works here, or the journal is damaged.
        """
        wanted = list(dict.fromkeys(keys))
        with open_journal(self.folder, self.identity, KIND) as journal:
            done = {event["key"]: event for event in journal.events if event["event"] == "done"}
            if any(key not in done for key in wanted):
                remove_partial_files(self.folder)  # the journal's lock keeps others out
            for number, key in enumerate(wanted):
                report.check()
                if key not in done:
                    done[key] = journal.write("done", key=key, **_result(make, key))
                report.progress(self.name, number + 1, len(wanted))
        return {key: done[key] for key in wanted}


def _result(make: Callable[[str], Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    try:
        return make(key)
    except ItemError as error:
        return {"problem": str(error)}


def digest(value: Any) -> str:
    """A short name for any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def module_identity(module: torch.nn.Module) -> str:
    """Tells a model from others, from a few numbers of each of its tensors."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sample = value.detach().flatten()[:SAMPLED].to(device="cpu", dtype=torch.float32)
        found.update(f"{name} {tuple(value.shape)} {sample.tolist()}".encode())
    return found.hexdigest()[:16]


def file_identity(path: Path) -> str:
    """Tells a large file from others, from its size and its two ends."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        found.update(file.read(EDGE))
        file.seek(max(0, size - EDGE))
        found.update(file.read(EDGE))
    return found.hexdigest()[:16]
