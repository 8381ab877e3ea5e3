"""Pictures -> measurements, metric by metric, a few pictures at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from .asking import Asked, Asker
from .cases import Case
from .errors import EvaluationError
from .gather import Gathered
from .measured import Measured, digest
from .oks_rows import oks_rows
from .results import Measurement
from .similarity import Measure

OKS = "OKS"
AT_ONCE = 16  # pictures between two savings
MISSING = "the picture was not made"

Report = Callable[[str, int, int], None]  # metric, how many pictures of how many


class Scorer(Protocol):
    """Measures one metric; `model` says with what, so that scores of another model are not taken for its own."""

    @property
    def metric(self) -> str: ...

    @property
    def model(self) -> str: ...

    def scores(self, cases: Sequence[Case]) -> list[Measurement]:
        """The measurements of some cases whose pictures are there."""
        ...


@dataclass(frozen=True)
class Likeness:
    """A metric of `similarity`."""

    measure: Measure
    asker: Asker

    @property
    def metric(self) -> str:
        return self.measure.metric.name

    @property
    def model(self) -> str:
        return " + ".join(encoder.name for encoder in self.measure.encoders)

    def scores(self, cases: Sequence[Case]) -> list[Measurement]:
        answers = [answer for case in cases for answer in self._answers(case)]
        scored = iter(self._scored_together([answer for answer in answers if isinstance(answer, Asked)]))
        measured = [next(scored) if isinstance(each, Asked) else each for each in answers]
        return list(_means_of_references(measured))

    def _answers(self, case: Case) -> list[Asked | Measurement]:
        try:
            return list(self.asker.ask(self.measure.metric, case))
        except EvaluationError as error:
            return [replace(self.asker.blank(self.metric, case), note=str(error))]

    def _scored_together(self, asked: Sequence[Asked]) -> list[Measurement]:
        """All at once; where one of them will not do, one by one, so that it alone has no score."""
        try:
            scores = self.measure.scores([each.picture for each in asked], [each.other for each in asked])
        except EvaluationError as error:
            if len(asked) == 1:
                return [replace(asked[0].measurement, note=str(error))]
            return [measurement for each in asked for measurement in self._scored_together([each])]
        return [self._scored(each, score) for each, score in zip(asked, scores, strict=True)]

    def _scored(self, asked: Asked, score: float) -> Measurement:
        said = self.measure.note(asked.other) if isinstance(asked.other, str) else ""
        notes = [note for note in (asked.measurement.note, said) if note]
        return replace(asked.measurement, score=score, note="; ".join(notes))


def _means_of_references(measured: Iterable[Measurement]) -> Iterator[Measurement]:
    """One measurement a subject: where it has several references, the mean."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for each in measured:
        groups.setdefault((each.key, each.subject), []).append(each)
    for group in groups.values():
        scores = [each.score for each in group]
        there = [score for score in scores if score is not None]
        if len(group) == 1 or len(there) < len(group):
            yield group[0]
        else:
            notes = [note for note in (group[0].note, f"mean over {len(group)} references") if note]
            yield replace(group[0], score=sum(there) / len(there), note="; ".join(notes))


@dataclass(frozen=True)
class Poses:
    """OKS of everybody who should be in a picture."""

    asker: Asker
    metric: str = OKS

    @property
    def model(self) -> str:
        return "" if self.asker.people is None else self.asker.people.name

    def scores(self, cases: Sequence[Case]) -> list[Measurement]:
        return [measurement for case in cases for measurement in self._scores(case)]

    def _scores(self, case: Case) -> list[Measurement]:
        blank = self.asker.blank(OKS, case)
        people = self.asker.people
        frame = None if people is None or case.pose is None else people.find(case.key, self.asker.picture(case))
        if case.pose is None or frame is None:
            why = "no pose was asked for" if case.pose is None else "nobody has looked for people in it"
            return [replace(blank, note=why)]
        try:  # people of a pose are those of the case, in the same order
            return oks_rows(blank, [subject.name for subject in case.subjects], frame, dict(case.pose))
        except EvaluationError as error:
            return [replace(blank, note=str(error))]


def plan_of(gathered: Gathered, whole: bool, finders: Sequence[str]) -> str:
    """Identifies what is compared with what: the cases, and how subjects are found."""
    decisive = [[asdict(case) for case in gathered.cases], whole, list(finders)]
    decisive += [{name: str(path) for name, path in gathered.given.items()}]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def digests_of(gathered: Gathered) -> dict[str, str]:
    """Key -> SHA-256 of every picture that was made, its masks included."""
    masks = {case.key: [subject.mask for subject in case.subjects if subject.mask] for case in gathered.cases}
    return {key: digest(path, *map(gathered.file, masks[key])) for key, path in gathered.pictures.items()}


def measure_all(
    scorers: Sequence[Scorer],
    gathered: Gathered,
    digests: Mapping[str, str],
    measured: Measured,
    report: Report,
    forget: Callable[[], None],
) -> None:
    """Measure what has not been measured.

    Args:
        forget: frees the pictures that were read; called between savings.
    """
    made = [case for case in gathered.cases if case.key in digests]
    for scorer in scorers:
        metric, model = scorer.metric, scorer.model
        todo = [case for case in made if measured.find(metric, model, case.key, digests[case.key]) is None]
        done = len(made) - len(todo)
        for start in range(0, len(todo), AT_ONCE):
            some = todo[start : start + AT_ONCE]
            found = scorer.scores(some)
            measured.save(metric, model, {case.key: digests[case.key] for case in some}, found)
            forget()
            done += len(some)
            report(metric, done, len(made))


def collect(
    scorers: Sequence[Scorer], gathered: Gathered, digests: Mapping[str, str], measured: Measured
) -> list[Measurement]:
    """All measurements there are, and one without a score for every picture that was not made."""
    found: list[Measurement] = []
    for scorer in scorers:
        for case in gathered.cases:
            if case.key not in digests:
                found.append(Measurement(scorer.metric, None, case.key, note=MISSING))
                continue
            found += measured.find(scorer.metric, scorer.model, case.key, digests[case.key]) or []
    return found


def files_of(found: Sequence[Measurement], gathered: Gathered) -> Mapping[str, Path]:
    """What the measurements call pictures and references -> their files."""
    files = {path.name: path for path in gathered.pictures.values()}
    known = {name for case in gathered.cases for subject in case.subjects for name in subject.references}
    known |= {case.structure for case in gathered.cases if case.structure}
    return files | {each.reference: gathered.file(each.reference) for each in found if each.reference in known}
