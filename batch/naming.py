"""What the pictures of a batch are called: ``{index:04d}_{prompt_slug}``.

In braces stands `index` (from 1), `workflow`, or a column: by its heading, or by what follows the last point of it where no
other column ends so. ``_slug`` after it makes short plain words of a text. A slash makes a folder; what a cell holds never does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from ..models_info.files import is_file_name
from .errors import BatchError, closest
from .jobs import NOTE, Job, JobList
from .queue_client import Workflow

DEFAULT = "{index:05d}"
SLUG_LENGTH, TEXT_LENGTH, PART_BYTES = 60, 100, 200
RESERVED = ("_batch", "manifest")  # what the batch itself keeps in its folder
_FORBIDDEN = re.compile(r"[\\/:*?\"<>|\x00-\x1f]+")
_MORE = re.compile(r"(.+)_p\d+")


def job_names(template: str, jobs: JobList, workflow: Workflow, workflow_name: str) -> list[str]:
    """The name of every job's first picture, without its ending; below the output folder.

    Raises:
        BatchError: the template asks for what is not there, leaves the folder, or gives two jobs one name.
    """
    parts = _parsed(template)
    names = [_name(template, parts, job, _fields(jobs, job, workflow, workflow_name)) for job in jobs.jobs]
    _check_distinct(names, jobs.jobs)
    return names


def numbered(name: str, place: int) -> str:
    """The name of a job's picture number `place`, from 0."""
    return name if place == 0 else f"{name}_p{place + 1}"


def slug(text: str) -> str:
    """Words in small letters and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    words = re.findall(r"[^\W_]+", (plain if plain.strip() else text).casefold())
    short = "-".join(words)
    if len(short) > SLUG_LENGTH:
        short = short[: SLUG_LENGTH + 1].rpartition("-")[0] or short[:SLUG_LENGTH]
    return short or "x"


def _parsed(template: str) -> list[tuple[str, str | None, str]]:
    try:
        return [(text, name, spec or "") for text, name, spec, _conversion in Formatter().parse(template)]
    except ValueError as error:
        raise BatchError(
            f"--name '{template}' cannot be read ({error}); write it like {{index:04d}}_{{seed}}"
        ) from None


def _fields(jobs: JobList, job: Job, workflow: Workflow, workflow_name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    short: dict[str, list[Any]] = {}
    for column in jobs.columns:
        value = job.cells.get(column.name)
        if value is None and column.target is not None:
            value = workflow[column.target.node]["inputs"].get(column.target.declared.name)
        if column.target is None or column.target.declared.is_file:
            value = Path(str(value)).stem if value is not None and not column.name.startswith(NOTE) else value
        value = "" if value is None or isinstance(value, (list, dict)) else value
        found[column.name.removeprefix(NOTE)] = value
        short.setdefault(column.name.rsplit(".", 1)[-1], []).append(value)
    found = {name: values[0] for name, values in short.items() if len(values) == 1} | found
    found |= {f"{name}_slug": slug(str(value)) for name, value in found.items()}
    return found | {"index": job.number, "workflow": workflow_name}


def _name(template: str, parts: Sequence[tuple[str, str | None, str]], job: Job, fields: Mapping[str, Any]) -> str:
    name = ""
    for text, field, spec in parts:
        name += text
        if field is None:
            continue
        if field not in fields:
            known = ", ".join(sorted(known for known in fields if not known.endswith("_slug")))
            raise BatchError(f"--name has no '{field}'{closest(field, fields) or f'; there are {known}'}")
        name += _formatted(field, fields[field], spec)
    for part in name.split("/"):
        if not is_file_name(part) or len(part.encode()) > PART_BYTES:
            raise BatchError(f"--name '{template}' gives job {job.number} the name '{name}', which no file can have")
    if name.split("/")[0].casefold() in RESERVED:
        raise BatchError(
            f"--name '{template}' gives job {job.number} the name '{name}', which the batch keeps for itself"
        )
    return name


def _formatted(field: str, value: Any, spec: str) -> str:
    try:
        text = format(value, spec)
    except (ValueError, TypeError):
        raise BatchError(f"--name cannot write '{field}' as '{spec}'; leave out what follows its colon") from None
    short = text[:TEXT_LENGTH] if isinstance(value, str) else text
    return _FORBIDDEN.sub("_", short).strip(" .")


def _check_distinct(names: Sequence[str], jobs: Sequence[Job]) -> None:
    """A BatchError where two jobs would write one file, on a system that takes large and small letters for the same too."""
    taken: dict[str, Job] = {}
    for name, job in zip(names, jobs, strict=True):
        key = unicodedata.normalize("NFC", name).casefold()
        if key in taken:
            raise BatchError(
                f"jobs {taken[key].number} and {job.number} would both be saved as '{name}'; put {{index}} into --name"
            )
        taken[key] = job
    for key, job in taken.items():
        more = _MORE.fullmatch(key)
        if more and more[1] in taken:
            raise BatchError(
                f"'{key}' of job {job.number} is what a second picture of job {taken[more[1]].number} would be called;"
                " change --name"
            )
