"""What the Similarity node compares with what: every picture with every reference, or every subject with its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..evaluation.crops import subject_crop
from ..evaluation.detector import Detector
from ..evaluation.errors import EvaluationError
from ..evaluation.faces import Face, cropped_face, posed_face
from ..evaluation.people import person_at
from ..evaluation.results import Measurement
from ..evaluation.similarity import Kind, Metric
from ..pose_db.keypoints import PoseFrame
from ..pose_db.people import Person, read_people
from .boxes import Corners

NO_FACE = "no face was found"


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    Attributes:
        measurement: still without a score.
        picture, other: what is compared; None where there is nothing to compare, which the measurement's note tells.
    """

    measurement: Measurement
    picture: torch.Tensor | None = None
    other: Any = None


@dataclass(frozen=True)
class View:
    """Where a subject is in a picture.

    Attributes:
        crop: None where it was not found.
        box: None for the whole picture.
        note: why it was not found, or how.
    """

    crop: torch.Tensor | None
    box: Corners | None = None
    note: str = ""


@dataclass(frozen=True)
class Scene:
    """What the node was given.

    Attributes:
        pictures: (H, W, 3) each.
        keys: what each picture is called.
        references: (H, W, 3) each.
        names: of the subjects, in their order; may be fewer.
        boxes: of every picture.
        masks: (H, W) each, of every picture.
        poses, reference_poses: one frame for every picture, for every reference.
    """

    metric: Metric
    pictures: Sequence[torch.Tensor]
    keys: Sequence[str]
    references: Sequence[torch.Tensor] = ()
    text: str = ""
    names: Sequence[str] = ()
    boxes: Sequence[Sequence[Corners]] | None = None
    masks: Sequence[Sequence[torch.Tensor]] | None = None
    detector: Detector | None = None
    poses: Sequence[PoseFrame] | None = None
    reference_poses: Sequence[PoseFrame] | None = None
    _cut: list[torch.Tensor] = field(default_factory=list)

    @property
    def by_subject(self) -> bool:
        """Whether something says where the subjects are."""
        return self.boxes is not None or self.masks is not None or self.detector is not None

    def name(self, number: int, otherwise: str = "") -> str:
        return self.names[number] if number < len(self.names) else otherwise


def comparisons(scene: Scene) -> list[Comparison]:
    """All comparisons, picture by picture.

    Raises:
        EvaluationError: numbers or sizes do not go together; one sentence.
    """
    kind = scene.metric.kind
    make = {Kind.TEXT: _with_text, Kind.STRUCTURE: _with_structure, Kind.FACE: _of_faces}.get(kind, _with_references)
    return [each for number in range(len(scene.pictures)) for each in make(scene, number)]


def _blank(scene: Scene, number: int) -> Measurement:
    return Measurement(scene.metric.name, None, scene.keys[number])


def _with_text(scene: Scene, number: int) -> Iterator[Comparison]:
    blank = replace(_blank(scene, number), reference=scene.text)
    yield Comparison(blank, scene.pictures[number], scene.text)


def _with_structure(scene: Scene, number: int) -> Iterator[Comparison]:
    count = len(scene.references)
    if count not in (1, len(scene.pictures)):
        raise EvaluationError(
            f"{count} structure pictures came for {len(scene.pictures)} pictures; give one for all or one for each"
        )
    yield Comparison(_blank(scene, number), scene.pictures[number], scene.references[number if count > 1 else 0])


def _with_references(scene: Scene, number: int) -> Iterator[Comparison]:
    for place, view, reference in _pairs(scene, _views(scene, number)):
        blank = replace(_blank(scene, number), **_about(scene, place, reference), note=view.note)
        shown = _cut_references(scene) if scene.by_subject else scene.references
        yield Comparison(blank, view.crop, shown[reference])


def _of_faces(scene: Scene, number: int) -> Iterator[Comparison]:
    for place, view, reference in _pairs(scene, _views(scene, number)):
        blank = replace(_blank(scene, number), **_about(scene, place, reference))
        face, other = _face(scene, number, place, view), _reference_face(scene, reference)
        if isinstance(face, str) or isinstance(other, str):
            why = face if isinstance(face, str) else f"{other} in the reference"
            yield Comparison(replace(blank, note=why))
        else:
            yield Comparison(replace(blank, note=face.note), face.picture, other.picture)


def _pairs(scene: Scene, views: Sequence[View]) -> Iterator[tuple[int, View, int]]:
    """Number of the subject, where it is, number of its reference."""
    count = len(scene.references)
    if not scene.by_subject:
        yield from ((place, views[0], place) for place in range(count))
        return
    if count not in (1, len(views)):
        raise EvaluationError(
            f"{len(views)} subjects came with {count} references; give one reference for each, in the same order, or one for all"
        )
    yield from ((place, view, place if count > 1 else 0) for place, view in enumerate(views))


def _about(scene: Scene, place: int, reference: int) -> dict[str, str]:
    """Names of a subject and its reference, where there are several or they have names."""
    count = len(scene.references)
    otherwise = f"subject {place + 1}" if scene.by_subject else ""
    return {
        "subject": scene.name(place, otherwise),
        "reference": f"reference {reference + 1}" if count > 1 else "",
    }


def _views(scene: Scene, number: int) -> list[View]:
    """The subjects of a picture; the whole picture where nothing says where they are."""
    picture = scene.pictures[number]
    if scene.detector is not None:
        return [_found(scene.detector, picture, name) for name in scene.names]
    boxes = None if scene.boxes is None else scene.boxes[number]
    masks = None if scene.masks is None else scene.masks[number]
    if boxes is None and masks is None:
        return [View(picture)]
    count = len(boxes or masks or ())
    if masks is not None and len(masks) != count:
        raise EvaluationError(f"{len(masks)} masks came with {count} boxes for a picture; give one mask for each box")
    places = [(boxes[place] if boxes else None, masks[place] if masks else None) for place in range(count)]
    return [View(subject_crop(picture, box, mask), box) for box, mask in places]


def _found(detector: Detector, picture: torch.Tensor, words: str) -> View:
    box = detector.find(picture, words)
    if box is None:
        return View(None, note=f"'{words}' was not found")
    return View(subject_crop(picture, box), box, f"found by {detector.name}")


def _cut_references(scene: Scene) -> list[torch.Tensor]:
    """The references as crops are shown: whole, in a white square; made once."""
    if not scene._cut:
        scene._cut.extend(
            subject_crop(reference, (0, 0, reference.shape[1], reference.shape[0])) for reference in scene.references
        )
    return scene._cut


def _face(scene: Scene, number: int, place: int, view: View) -> Face | str:
    """The face of a subject; or why there is none."""
    if view.crop is None:
        return view.note
    if scene.poses is None:
        return cropped_face(view.crop)
    frame, picture = scene.poses[number], scene.pictures[number]
    person = _person(frame, picture, place if len(scene.references) > 1 else None, view.box)
    face = None if person is None else posed_face(picture, person)
    return NO_FACE if face is None else face


def _person(frame: PoseFrame, picture: torch.Tensor, place: int | None, box: Corners | None) -> Person | None:
    """Who is in a box; otherwise who has a place in the order of the pose, or the largest where none is asked for."""
    if box is not None or place is None:
        height, width = picture.shape[:2]
        shares = None if box is None else (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        return person_at(frame, shares)
    try:
        people = read_people(frame)
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    return people[place] if place < len(people) else None


def _reference_face(scene: Scene, reference: int) -> Face | str:
    """The face of a reference; or why there is none."""
    picture = scene.references[reference]
    if scene.reference_poses is None:
        return cropped_face(picture)
    person = person_at(scene.reference_poses[reference], None)
    face = None if person is None else posed_face(picture, person)
    return NO_FACE if face is None else face
