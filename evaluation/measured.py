"""What has been measured so far, safe on the disk after every few pictures, so that the same command goes on where it was cut off.

_measure/journal.jsonl   scores, each with the model that gave it and the picture's SHA-256
results.jsonl            the measurements (`results`)
measure.json             where the pictures are, for the report
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..batch.journal import Journal, JournalError, open_journal
from ..models_info.files import whole_file
from .errors import EvaluationError
from .report_summary import Context
from .results import Measurement, read_results, results_table

KIND = "ensemble-measure"
FOLDER, RESULTS, ABOUT = "_measure", "results.jsonl", "measure.json"


class Measured:
    """The measurements of one output folder."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._found: dict[tuple[str, str, str, str], list[Measurement]] = {}
        for event in journal.events:
            if event["event"] == "measured":
                self._take(event)

    def find(self, metric: str, model: str, key: str, picture: str) -> list[Measurement] | None:
        """The measurements of a metric by a model of a picture with a SHA-256; None where there are none yet."""
        return self._found.get((metric, model, key, picture))

    def save(self, metric: str, model: str, pictures: Mapping[str, str], found: Sequence[Measurement]) -> None:
        """Keep the measurements of some pictures: key -> SHA-256."""
        rows = [asdict(each) for each in found]
        self._take(self._journal.write("measured", metric=metric, model=model, pictures=dict(pictures), rows=rows))

    def _take(self, event: Mapping[str, Any]) -> None:
        rows = [Measurement(**row) for row in event["rows"]]
        for key, digest in event["pictures"].items():
            place = (event["metric"], event["model"], key, digest)
            self._found[place] = [row for row in rows if row.key == key]


@contextmanager
def open_measured(folder: Path, plan: str) -> Iterator[Measured]:
    """The measurements in a folder, begun or continued; no other process can have them meanwhile.

    Args:
        plan: identifies what is compared with what; measurements of another plan are not continued.

    Raises:
        EvaluationError: another process works there, or they are of another plan.
    """
    try:
        with open_journal(folder / FOLDER, plan, KIND) as journal:
            yield Measured(journal)
    except JournalError as error:
        raise EvaluationError(str(error)) from None


def write_results(folder: Path, found: Sequence[Measurement], files: Mapping[str, Path], context: Context) -> None:
    """Write the measurements, and what a report needs besides.

    Args:
        files: what pictures and references are called -> file.
    """
    about = {
        "files": {name: str(path.absolute()) for name, path in files.items()},
        "benchmark": context.benchmark,
        "groups": context.groups,
        "parts": context.parts,
    }
    for name, text in (
        (RESULTS, results_table(found)),
        (ABOUT, json.dumps(about, ensure_ascii=False, indent=1) + "\n"),
    ):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")


def read_measured(path: Path) -> tuple[list[Measurement], dict[str, Path], Context]:
    """The measurements in a folder or a results file; what their pictures are called -> file; and their context.

    Raises:
        EvaluationError: there are none, or they are damaged.
    """
    folder, results = (path, path / RESULTS) if path.is_dir() else (path.parent, path)
    try:
        found = read_results(results.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError):
        raise EvaluationError(
            f"{results} cannot be read; give a folder that `measure` wrote, or a file of results"
        ) from None
    except EvaluationError as error:
        raise EvaluationError(f"{results}: {error}") from None
    about = _about(folder / ABOUT) if results.name == RESULTS else {}
    files = {str(name): Path(file) for name, file in about.get("files", {}).items()}
    return found, files, Context(about.get("benchmark", ""), about.get("groups"), about.get("parts"))


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("files", {}), dict):
        raise EvaluationError(f"{path} is damaged; measure again")
    return about


def digest(*paths: Path) -> str:
    """The SHA-256 of files, one after the other."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
