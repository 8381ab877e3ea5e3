"""SeAl's grid: every appearance with every structure of its kind (section "Main Results").

Its 256 pictures (humans, animals, celebrities) are not published. The folder is laid out like this, with words in a text file
beside each picture:

    appearance/human/alice.png             alice.txt: who it is, "a woman in a red striped shirt"
    structure/human/pose/sitting.png       sitting.txt: what they are to do there, "sitting on a bench in a park"

Appearances of a kind without structures of its own, such as celebrities, have those of humans. Pictures that are transparent around
their subject are aligned by AnchorAlign, others are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..cases import Case, CaseSubject
from ..errors import EvaluationError
from .folder import Gallery, has_transparency, pictures_in, read_picture, shuffled, words_beside

PAPERS, WORKFLOW = "seal", "seal_identity_and_pose"
FALLBACK = "human"
CATEGORIES = {"human": "person", "celebrity": "person", "animal": "animal"}
LAYOUT = "lay it out as appearance/KIND/NAME.png and structure/KIND/TYPE/NAME.png, with a text file beside each picture"


@dataclass(frozen=True)
class Shown:
    """A picture with its words.

    Attributes:
        kind: of subject; `type` is the type of structure, empty for an appearance.
        cut_out: whether it is transparent around its subject.
    """

    path: Path
    words: str
    kind: str
    type: str
    cut_out: bool

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.kind, self.type, self.path.stem) if part)


def grid_cases(
    dataset: Path, out: Path, seed: int, count: int | None, progress: Callable[[int, int], None]
) -> tuple[list[Case], dict[str, bool]]:
    """The grid, or so many pairs drawn from it; and which of them AnchorAlign can align.

    Raises:
        EvaluationError: pictures or words are missing, or the grid is smaller than so many.
    """
    appearances = [shown for kind in _folders(dataset / "appearance") for shown in _shown(kind, kind.name, "")]
    structures = [
        shown
        for kind in _folders(dataset / "structure")
        for type_ in _folders(kind)
        for shown in _shown(type_, kind.name, type_.name)
    ]
    pairs = _pairs(appearances, structures)
    if count is not None:
        pairs = _drawn(pairs, count, seed)
    gallery = Gallery(out)
    cases, aligned = [], {}
    for place, (appearance, structure) in enumerate(pairs, start=1):
        case = _case(appearance, structure, seed, gallery)
        cases.append(case)
        aligned[case.key] = appearance.cut_out and structure.cut_out
        progress(place, len(pairs))
    return cases, aligned


def _folders(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not found:
        raise EvaluationError(f"there are no folders in {folder}; {LAYOUT}")
    return found


def _shown(folder: Path, kind: str, type_: str) -> list[Shown]:
    example = "sitting on a bench in a park" if type_ else "a woman in a red striped shirt"
    return [
        Shown(path, words_beside(path, example).rstrip("."), kind, type_, has_transparency(read_picture(path)))
        for path in pictures_in(folder, LAYOUT)
    ]


def _pairs(appearances: list[Shown], structures: list[Shown]) -> list[tuple[Shown, Shown]]:
    kinds = {structure.kind for structure in structures}
    found = []
    for appearance in appearances:
        kind = appearance.kind if appearance.kind in kinds else FALLBACK
        fitting = [structure for structure in structures if structure.kind == kind]
        if not fitting:
            raise EvaluationError(f"there are no structures for {appearance.kind}, nor for {FALLBACK}; {LAYOUT}")
        found += [(appearance, structure) for structure in fitting]
    return found


def _drawn(pairs: list[tuple[Shown, Shown]], count: int, seed: int) -> list[tuple[Shown, Shown]]:
    if count > len(pairs):
        raise EvaluationError(f"the grid has {len(pairs)} pairs, not {count}; lower --count")
    by_name = {f"{appearance.name} in {structure.name}": (appearance, structure) for appearance, structure in pairs}
    return [by_name[name] for name in sorted(shuffled(by_name, seed, "grid")[:count])]


def _case(appearance: Shown, structure: Shown, seed: int, gallery: Gallery) -> Case:
    reference = gallery.add(appearance.path, f"references/{appearance.name}")
    category = CATEGORIES.get(appearance.kind, "other")
    return Case(
        key=f"seal_{appearance.name}_{structure.name}",
        prompt=f"{appearance.words} {structure.words}",
        subjects=(CaseSubject(appearance.path.stem, appearance.words, category, (reference,)),),
        group=appearance.name,
        part=f"{appearance.kind}, {structure.type}",
        seed=seed,
        structure=gallery.add(structure.path, f"structures/{structure.name}"),
    )
