"""What the commands are asked for, and the tools that measuring needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .asking import Asker
from .detector import Detector
from .errors import EvaluationError
from .gather import Gathered
from .measure import OKS, Likeness, Poses, Scorer
from .paper_tables import tables_of
from .people import BodyNetwork, PeopleFinder, PoseFiles
from .similarity import METRICS, Kind, find_weights, load_measure


@dataclass(frozen=True)
class Tools:
    """What measures, and how subjects are found."""

    scorers: list[Scorer]
    asker: Asker

    @property
    def finders(self) -> list[str]:
        """The names of what finds people and subjects."""
        return [finder.name if finder else "" for finder in (self.asker.people, self.asker.detector)]


def pairs(given: Sequence[str], option: str, names: Callable[[str], bool]) -> dict[str, Path]:
    """NAME=FILE arguments.

    Raises:
        EvaluationError: one is not of that form, or has a name that will not do.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (equals and path and names(name)) or name in found:
            raise EvaluationError(
                f"{option} '{text}' is not a new name, an equals sign and a path; write it like NAME=PATH"
            )
        found[name] = Path(path)
    return found


def chosen_metrics(given: Sequence[str], papers: str) -> list[str]:
    """The metrics that are asked for, or else those that the benchmark's papers have.

    Raises:
        EvaluationError: there is no such metric, or none is given where no benchmark has any.
    """
    columns = dict.fromkeys(metric for table in tables_of(papers) for _heading, metric in table.columns)
    metrics = list(dict.fromkeys(given)) or [metric for metric in columns if metric in METRICS or metric == OKS]
    for metric in metrics:
        if metric not in METRICS and metric != OKS:
            raise EvaluationError(f"there is no metric '{metric}'; choose of {OKS}, {', '.join(METRICS)}")
    if not metrics:
        raise EvaluationError(f"--metrics is missing; choose of {OKS}, {', '.join(METRICS)}")
    return metrics


def load_tools(chosen: argparse.Namespace, gathered: Gathered) -> Tools:
    """What the arguments of `measure` ask for.

    Raises:
        EvaluationError: something of it will not do.
        MissingModelError: weights are missing.
    """
    metrics = chosen_metrics(chosen.metrics, gathered.papers)
    models = pairs(chosen.model, "--model", lambda name: name in METRICS)
    detector = _detector(chosen.detector)
    asker = Asker(gathered, _people(chosen.poses, metrics, detector), detector, chosen.whole)
    known: dict[Path, Any] = {}
    scorers: list[Scorer] = [
        Poses(asker) if metric == OKS else Likeness(load_measure(metric, models.get(metric), known), asker)
        for metric in metrics
    ]
    return Tools(scorers, asker)


def _detector(given: str | None) -> Detector | None:
    from ..models_info.registry import GROUNDING_DINO

    if given is None:
        return None
    return Detector(Path(given) if given else find_weights(GROUNDING_DINO))


def _people(poses: Path | None, metrics: Sequence[str], detector: Detector | None) -> PeopleFinder | None:
    """OKS needs one in any case, faces where nothing else finds them."""
    if poses is not None:
        return PoseFiles(poses)
    faces = any(METRICS[metric].kind is Kind.FACE for metric in metrics if metric != OKS)
    return BodyNetwork() if OKS in metrics or (faces and detector is None) else None
