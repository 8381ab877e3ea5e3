"""One score of one subject of one picture, and lists of them as text: JSON lines, one measurement a line.

So measurements travel between nodes, and tables that are written one after the other are one table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import EvaluationError


@dataclass(frozen=True)
class Measurement:
    """One score.

    Attributes:
        metric: its name as the papers write it ("OKS", "CLIP-I").
        score: None where it could not be measured.
        key: what makes scores comparable pairs: the picture's number, its file's name, or a job's name.
        subject: who of the picture; empty for the whole picture.
        picture: the picture's file; empty where it has none.
        reference: what it was compared with: a file, or the text.
        note: why there is no score, or how it was measured.
        people: with the first one of OKS of a picture: everybody in it, see `oks_precision.People`.
    """

    metric: str
    score: float | None
    key: str
    subject: str = ""
    picture: str = ""
    reference: str = ""
    note: str = ""
    people: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.metric.strip():
            raise EvaluationError("a measurement has no metric's name")
        if self.score is not None and not math.isfinite(self.score):
            raise EvaluationError(f"the score of {self.metric} of '{self.key}' is not a finite number")


@dataclass(frozen=True)
class Mean:
    """The mean of one metric over what could be measured.

    Attributes:
        mean: None where nothing could be.
        measured, unmeasured: how many had a score, and how many had none.
    """

    metric: str
    mean: float | None
    measured: int
    unmeasured: int

    def __str__(self) -> str:
        value = "not measured" if self.mean is None else f"{self.mean:.4f} over {self.measured}"
        missing = f" ({self.unmeasured} could not be measured)" if self.unmeasured else ""
        return f"{self.metric}: {value}{missing}"


def means(measurements: Iterable[Measurement]) -> list[Mean]:
    """The mean of every metric, in the order in which the metrics first appear."""
    scores: dict[str, list[float | None]] = {}
    for measurement in measurements:
        scores.setdefault(measurement.metric, []).append(measurement.score)
    return [_mean(metric, values) for metric, values in scores.items()]


def _mean(metric: str, values: list[float | None]) -> Mean:
    measured = [value for value in values if value is not None]
    mean = math.fsum(measured) / len(measured) if measured else None
    return Mean(metric, mean, len(measured), len(values) - len(measured))


def results_table(measurements: Iterable[Measurement]) -> str:
    """JSON lines; empty fields are left out. Ends with a line break, so that tables can be joined."""
    return "".join(_line(measurement) for measurement in measurements)


def _line(measurement: Measurement) -> str:
    fields_of = asdict(measurement).items()
    written = {name: value for name, value in fields_of if value not in ("", None) or name in ("key", "score")}
    text = json.dumps(written, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode() + "\n"  # halves of characters, which no file can hold, become ?


def read_results(text: str) -> list[Measurement]:
    """The measurements of one table or of several joined ones; empty lines do not matter.

    Raises:
        EvaluationError: a line is not a measurement; the sentence says which line.
    """
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return [_read_line(number, line) for number, line in lines]


def _read_line(number: int, line: str) -> Measurement:
    try:
        values = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # ValueError: JSONDecodeError is one, and so is what a huge number raises
        raise EvaluationError(f"line {number} of the results is not JSON; join only tables of measurements") from None
    problem = _problem(values)
    if problem:
        raise EvaluationError(f"line {number} of the results {problem}")
    score = values["score"]
    try:
        return Measurement(**{**values, "score": None if score is None else float(score)})
    except (EvaluationError, OverflowError) as error:
        raise EvaluationError(f"line {number} of the results: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a score")


def _problem(values: Any) -> str:
    """What keeps parsed JSON from being a measurement; empty where nothing does."""
    names = {field.name for field in fields(Measurement)}
    if not isinstance(values, dict) or not {"metric", "score", "key"} <= values.keys():
        return "is not a measurement: it lacks metric, score or key"
    if unknown := values.keys() - names:
        return f"has a field that no measurement has: {min(unknown)}"
    score = values["score"]
    if isinstance(score, bool) or not isinstance(score, (int, float, type(None))):
        return "has a score that is neither a number nor null"
    if not isinstance(values.get("people"), (dict, type(None))):
        return "has people that are no object"
    texts = [value for name, value in values.items() if name not in ("score", "people")]
    if not all(isinstance(text, str) for text in texts):
        return "has a field that should be text and is not"
    if any(map(_is_broken, texts)):
        return "has a text with half a character, which no file can hold"
    return ""


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
