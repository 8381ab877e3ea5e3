"""Which pictures and texts a metric compares, case by case: what is shown to the encoders, and what cannot be and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from .benchmarks.folder import read_picture
from .cases import Box, Case, CaseSubject
from .crops import Box as Corners
from .crops import box_of_mask, subject_crop
from .errors import EvaluationError
from .faces import Face, cropped_face, posed_face
from .gather import Gathered
from .people import PeopleFinder, person_at
from .results import Measurement
from .similarity import Kind, Metric

FACES = ("face", "person")  # categories that have a face
GARMENTS = ("upper garment", "lower garment", "dress", "bag", "hat", "shoes")
FASHION_TEXT = "FashionCLIP-T"  # its texts are those of the garments, as One-for-All has it
FACE_WORDS = "face"  # what a detector is asked for


class BoxFinder(Protocol):
    """Finds what words say, as `detector.Detector` does."""

    name: str

    def find(self, picture: torch.Tensor, words: str) -> Corners | None:
        """Its box in a picture (H, W, 3), in pixels; None where it is not there."""
        ...


@dataclass(frozen=True)
class Asked:
    """One comparison.

    Attributes:
        measurement: what becomes of it, still without a score.
        picture, other: what is compared, as `similarity.Measure.scores` takes it.
    """

    measurement: Measurement
    picture: torch.Tensor
    other: Any


@dataclass
class Asker:
    """Makes the comparisons of a benchmark's pictures.

    Attributes:
        whole: compare whole pictures, wherever their subjects are.
    """

    gathered: Gathered
    people: PeopleFinder | None = None
    detector: BoxFinder | None = None
    whole: bool = False
    _kept: dict[Path, torch.Tensor] = field(default_factory=dict)

    def ask(self, metric: Metric, case: Case) -> Iterator[Asked | Measurement]:
        """The comparisons of a case, or measurements without a score where there can be none."""
        blank = self.blank(metric.name, case)
        if metric.kind is Kind.TEXT:
            yield from self._texts(metric, case, blank)
        elif metric.kind is Kind.STRUCTURE:
            yield self._structure(case, blank)
        else:
            for subject in _subjects(metric, case):
                yield from self._subject(metric, case, subject, replace(blank, subject=subject.name))

    def blank(self, metric: str, case: Case) -> Measurement:
        """A measurement of a case's picture without a score."""
        path = self.gathered.pictures.get(case.key)
        return Measurement(metric, None, case.key, picture="" if path is None else path.name)

    def picture(self, case: Case) -> torch.Tensor:
        """(H, W, 3) of a case's picture."""
        return self.read(self.gathered.pictures[case.key])

    def read(self, path: Path) -> torch.Tensor:
        """(H, W, 3) of a file, on white where it is transparent."""
        if path not in self._kept:
            picture = read_picture(path).convert("RGBA")
            paper = Image.new("RGBA", picture.size, "white")
            pixels = np.asarray(Image.alpha_composite(paper, picture).convert("RGB"))
            self._kept[path] = torch.from_numpy(pixels.astype(np.float32) / 255)
        return self._kept[path]

    def forget(self) -> None:
        """Free the pictures that were read."""
        self._kept.clear()

    def _texts(self, metric: Metric, case: Case, blank: Measurement) -> Iterator[Asked | Measurement]:
        texts = [("", case.prompt)]
        if metric.name == FASHION_TEXT:
            worn = [(each.name, each.description) for each in case.subjects if each.category in GARMENTS]
            texts = worn or texts
        for subject, text in texts:
            named = replace(blank, subject=subject, reference=text)
            yield Asked(named, self.picture(case), text) if text else replace(named, note="there is no text for it")

    def _structure(self, case: Case, blank: Measurement) -> Asked | Measurement:
        if not case.structure:
            return replace(blank, note="there is no structure to keep")
        other = self.read(self.gathered.file(case.structure))
        return Asked(replace(blank, reference=case.structure), self.picture(case), other)

    def _subject(
        self, metric: Metric, case: Case, subject: CaseSubject, blank: Measurement
    ) -> Iterator[Asked | Measurement]:
        find = self._face if metric.kind is Kind.FACE else self._crop
        try:
            found = find(case, subject)
        except EvaluationError as error:  # the others of the picture have their scores
            found = str(error)
        if isinstance(found, str):
            yield replace(blank, reference=subject.references[0], note=found)
            return
        shown, note = found
        for name in subject.references[:1] if metric.kind is Kind.FACE else subject.references:
            other = self._reference(metric, name, subject, cut_out=shown is not self.picture(case))
            named = replace(blank, reference=name, note=note)
            yield replace(named, note=other) if isinstance(other, str) else Asked(named, shown, other)

    def _crop(self, case: Case, subject: CaseSubject) -> tuple[torch.Tensor, str] | str:
        """The subject of a picture, and how it was found; or why it was not."""
        picture = self.picture(case)
        if self.whole:
            return picture, ""
        box, mask = self._place(picture, subject)
        if box is not None:
            return subject_crop(picture, box, mask), ""
        if self.detector is None:
            return picture, ""
        words = subject.description or subject.category
        box = self.detector.find(picture, words)
        return (
            f"'{words}' was not found"
            if box is None
            else (subject_crop(picture, box), f"found by {self.detector.name}")
        )

    def _place(self, picture: torch.Tensor, subject: CaseSubject) -> tuple[Corners | None, torch.Tensor | None]:
        """Box and mask (H, W) of a subject where the case has them; the box around the mask where it has that alone."""
        box = None if subject.box is None else _in_pixels(subject.box, picture)
        if not subject.mask:
            return box, None
        pixels = np.asarray(read_picture(self.gathered.file(subject.mask)).convert("L"), np.float32)
        mask = torch.from_numpy(pixels / 255)
        around = box_of_mask(picture, mask, f"the mask {subject.mask}")
        return box or around, mask

    def _reference(self, metric: Metric, name: str, subject: CaseSubject, cut_out: bool) -> torch.Tensor | str:
        """What a reference is shown as; or why it cannot be."""
        picture = self.read(self.gathered.file(name))
        if metric.kind is not Kind.FACE:
            height, width = picture.shape[:2]
            return subject_crop(picture, (0, 0, width, height)) if cut_out else picture
        face = self._face_in(Path(name).stem, picture, None)
        if isinstance(face, str) and subject.category == "face":
            face = cropped_face(picture)
        return face if isinstance(face, str) else face.picture

    def _face(self, case: Case, subject: CaseSubject) -> tuple[torch.Tensor, str] | str:
        picture = self.picture(case)
        box = None if self.whole else self._place(picture, subject)[0]
        face = self._face_in(case.key, picture, box)
        return face if isinstance(face, str) else (face.picture, face.note)

    def _face_in(self, key: str, picture: torch.Tensor, box: Corners | None) -> Face | str:
        """The face of somebody in a box of a picture; or why there is none."""
        frame = None if self.people is None else self.people.find(key, picture)
        if frame is not None:
            person = person_at(frame, None if box is None else _in_shares(box, picture))
            face = None if person is None else posed_face(picture, person)
            return "no face was found" if face is None else face
        if self.detector is None:
            return "nothing looks for faces; give OpenPose's weights, --poses or --detector"
        inside = picture if box is None else _cut(picture, box)
        place = self.detector.find(inside, FACE_WORDS)
        return "no face was found" if place is None else cropped_face(subject_crop(inside, place))


def _subjects(metric: Metric, case: Case) -> list[CaseSubject]:
    """Those that a metric is about and that have a reference."""
    shown = [subject for subject in case.subjects if subject.references]
    return [subject for subject in shown if metric.kind is not Kind.FACE or subject.category in FACES]


def _in_pixels(box: Box, picture: torch.Tensor) -> Corners:
    """A box in shares of a picture (H, W, 3) as left, top, right and bottom in pixels."""
    height, width = picture.shape[:2]
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def _in_shares(box: Corners, picture: torch.Tensor) -> Box:
    height, width = picture.shape[:2]
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _cut(picture: torch.Tensor, box: Corners) -> torch.Tensor:
    left, top, right, bottom = map(round, box)
    if right <= left or bottom <= top:
        raise EvaluationError(f"the box {box} covers nothing of its picture; build the benchmark again")
    return picture[top:bottom, left:right]
