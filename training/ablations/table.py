"""What an ablation is: rows of settings, the measures they are compared by, and what the paper says of them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import TrainingError
from ..progress import Progress

if TYPE_CHECKING:
    from .models import Models
    from .worlds import Case, Sizes

# Name -> the module that has its ABLATION, seen from this package.
ABLATIONS: dict[str, str] = {
    "astra": ".astra",
    "one-for-all": ".one_for_all",
    "anystory": ".anystory",
    "seal": ".seal",
}


@dataclass(frozen=True)
class Measure:
    """A number that is measured from a picture.

    Attributes:
        title: for people.
        better: 1 where more is better, -1 where less is.
    """

    title: str
    better: int


MEASURES: Mapping[str, Measure] = {
    "pose_error": Measure("pose error", -1),
    "limbs_found": Measure("limbs found", 1),
    "identity": Measure("identity", 1),
    "recognised": Measure("recognised", 1),
    "leakage": Measure("leakage", -1),
    "face": Measure("face", 1),
    "garments": Measure("garments and bag", 1),
    "routing_iou": Measure("routing IoU", 1),
    "kept": Measure("kept parts", 1),
    "changed": Measure("changed part", 1),
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        training: settings in which its training differs from the others'. Rows with equal ones share a training.
        drawing: settings of what is done with the result; see the study.
        paper: the paper's own numbers, one a column, None where it has none.
    """

    name: str
    training: Mapping[str, Any] = field(default_factory=dict)
    drawing: Mapping[str, Any] = field(default_factory=dict)
    paper: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Claim:
    """That one row is better than another, as the paper has it.

    Attributes:
        winner, loser: names of rows.
        measure: ours.
        column: the paper's, or "" where it prints no number.
        said: where it says so, if there is no number.
    """

    winner: str
    loser: str
    measure: str
    column: str = ""
    said: str = ""


class Study(Protocol):
    """How a family is trained, and how its test pictures are drawn."""

    stages: int  # trainings that one row needs, one after the other

    def cases(self) -> Sequence[Case]:
        """What is drawn: the same for all rows and seeds."""
        ...

    def train(
        self, training: Mapping[str, Any], steps: int, seed: int, folder: Path, report: Callable[[Progress], None]
    ) -> Any:
        """Train, or go on with what is in `folder`; gives what `draw` draws with."""
        ...

    def draw(self, trained: Any, drawing: Mapping[str, Any], case: Case, seed: int) -> Drawn:
        """The picture of a case."""
        ...

    def measure(self, drawn: Drawn, case: Case) -> dict[str, float]:
        """Numbers by the names of `MEASURES`; nan where there is nothing to measure."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A test picture.

    Attributes:
        picture: (H, W, 3) floats in [0, 1].
        truth: the scene that it should show.
        masks: where the routers saw every subject, (P, H, W); None without routers.
    """

    picture: np.ndarray
    truth: Any
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Ablation:
    """A table.

    Attributes:
        name: as the command calls it.
        title: its heading.
        source: where the paper has it.
        measures: names in `MEASURES`, the columns.
        columns: the paper's.
        rows: the full method first.
        claims: what the paper finds.
        note: what a reader must know of how it was measured.
        study: makes the study, from the models, the sizes and a folder for encodings.
    """

    name: str
    title: str
    source: str
    measures: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str
    study: Callable[[Models, Sizes, Path], Study]

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


def find_ablation(name: str) -> Ablation:
    """The table of that name.

    Raises:
        TrainingError: there is none.
    """
    if name not in ABLATIONS:
        raise TrainingError(f"there is no ablation '{name}'; choose among: {', '.join(ABLATIONS)}", "names")
    return importlib.import_module(ABLATIONS[name], __package__).ABLATION


def trainings(ablation: Ablation) -> dict[str, tuple[Mapping[str, Any], list[Row]]]:
    """The different trainings of a table: folder name -> its settings and the rows that share it; none where nothing is trained."""
    found: dict[str, tuple[Mapping[str, Any], list[Row]]] = {}
    by_settings: dict[str, str] = {}
    for row in ablation.rows:
        settings = json.dumps(row.training, sort_keys=True)
        folder = by_settings.setdefault(settings, folder_name(row.name))
        found.setdefault(folder, (row.training, []))[1].append(row)
    return found


def folder_name(name: str) -> str:
    """A row's name as that of a folder."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")
