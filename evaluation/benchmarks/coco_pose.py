"""ASTRA's benchmark of poses (section 4.1): pictures of COCO with up to three people. Everybody in them is a subject: the box
around a person cut out is the reference, the skeletons of all are the pose, a caption is the prompt.

The folder is laid out as COCO is: ``annotations/person_keypoints_val2017.json``, ``annotations/captions_val2017.json``,
``val2017/``. The paper does not say which pictures it takes; here it is those where every person that is annotated has
keypoints enough to draw and a box large enough to be recognised, none of them being a crowd.

Source: Lin et al., "Microsoft COCO", ECCV 2014; cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...pose_db.exchange import from_coco_person
from ...pose_db.keypoints import PoseFrame, frame_from_people
from ...pose_db.render import LINE_WIDTH, render_frame
from ..cases import Box, Case, CaseSubject
from ..errors import EvaluationError
from .folder import Gallery, read_picture, shuffled
from .links import Workflow
from .queues import workflow_size

PAPERS, WORKFLOW = "coco-pose", "astra_multi_subject"
MOST_PEOPLE = 3
MULTIPLE = 16  # pixels of a side come in these
LINE_SIDE = 512  # shorter side of a picture at which lines have their standard width
REMEDY = "give the folder of COCO 2017 with annotations/ and the pictures"


@dataclass(frozen=True)
class Wanted:
    """Which pictures are taken.

    Attributes:
        splits: such as val2017.
        keypoints: that each person must have.
        side: of the box around each person in pixels, at least.
    """

    count: int = 1_000
    seed: int = 0
    splits: tuple[str, ...] = ("val2017",)
    keypoints: int = 5
    side: int = 32


@dataclass(frozen=True)
class Picture:
    """One picture of COCO with everybody in it, from left to right."""

    number: int
    path: Path
    width: int
    height: int
    caption: str
    people: tuple[Mapping[str, Any], ...]

    @property
    def key(self) -> str:
        return f"coco_{self.path.parent.name}_{self.number:012d}"


def coco_cases(
    dataset: Path, out: Path, wanted: Wanted, workflow: Workflow, progress: Callable[[int, int], None]
) -> list[Case]:
    """The cases, with their references and skeletons drawn.

    Raises:
        EvaluationError: the dataset is not there or has too few pictures.
    """
    usable = [picture for split in wanted.splits for picture in _usable(dataset, split, wanted)]
    if len(usable) < wanted.count:
        raise EvaluationError(
            f"{len(usable)} pictures of {' and '.join(wanted.splits)} will do, {wanted.count} are wanted; lower --count,"
            " --min-keypoints or --min-side, or add --split train2017"
        )
    area = math.prod(workflow_size(workflow))
    by_key = {picture.key: picture for picture in usable}
    chosen = sorted(shuffled(by_key, wanted.seed, "coco")[: wanted.count])
    gallery = Gallery(out)
    cases = []
    for place, key in enumerate(chosen, start=1):
        cases.append(_case(by_key[key], fitting_size(by_key[key], area), wanted.seed, gallery))
        progress(place, len(chosen))
    return cases


def fitting_size(picture: Picture, area: int) -> tuple[int, int]:
    """Width and height of about the area in the picture's proportions."""
    scale = math.sqrt(area / (picture.width * picture.height))
    width, height = (max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in (picture.width, picture.height))
    return width, height


def _usable(dataset: Path, split: str, wanted: Wanted) -> list[Picture]:
    keypoints = _read(dataset / "annotations" / f"person_keypoints_{split}.json", ("bbox", "keypoints", "image_id"))
    captions = _captions(_read(dataset / "annotations" / f"captions_{split}.json", ("caption", "image_id", "id")))
    people: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in keypoints["annotations"]:
        people.setdefault(annotation["image_id"], []).append(annotation)
    found = []
    for image in keypoints["images"]:
        inside = people.get(image["id"], [])
        if (
            image["id"] in captions
            and 1 <= len(inside) <= MOST_PEOPLE
            and all(_will_do(each, wanted) for each in inside)
        ):
            ordered = sorted(inside, key=lambda each: (each["bbox"][0] + each["bbox"][2] / 2, each.get("id", 0)))
            path = dataset / split / Path(image["file_name"]).name
            found.append(
                Picture(image["id"], path, image["width"], image["height"], captions[image["id"]], tuple(ordered))
            )
    return found


def _read(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise EvaluationError(f"there is no file {path}; {REMEDY}") from None
    except ValueError:
        raise EvaluationError(f"{path} is not JSON; get the dataset again") from None
    images = data.get("images") if isinstance(data, dict) else None
    annotations = data.get("annotations") if isinstance(data, dict) else None
    whole = _have(images, ("id", "file_name", "width", "height")) and _have(annotations, fields)
    if not whole:
        raise EvaluationError(f"{path} is not laid out as COCO is; get the dataset again")
    return data


def _have(records: Any, fields: Sequence[str]) -> bool:
    """Whether these are records that all have the fields."""
    wanted = set(fields)
    return isinstance(records, list) and all(isinstance(each, dict) and wanted <= each.keys() for each in records)


def _captions(data: Mapping[str, Any]) -> dict[int, str]:
    """Image -> the first of its captions, by their numbers."""
    found: dict[int, str] = {}
    for annotation in sorted(data["annotations"], key=lambda each: each["id"]):
        words = " ".join(str(annotation["caption"]).split())
        if words:
            found.setdefault(annotation["image_id"], words)
    return found


def _will_do(person: Mapping[str, Any], wanted: Wanted) -> bool:
    labelled = sum(visibility > 0 for visibility in person["keypoints"][2::3])
    return not person.get("iscrowd") and labelled >= wanted.keypoints and min(person["bbox"][2:]) >= wanted.side


def _case(picture: Picture, size: tuple[int, int], seed: int, gallery: Gallery) -> Case:
    image = read_picture(picture.path)
    if image.size != (picture.width, picture.height):
        raise EvaluationError(f"{picture.path} is not of the size that its annotations say; get the dataset again")
    frame = pose_frame(picture, size)
    line_width = max(1, round(LINE_WIDTH * min(size) / LINE_SIDE))
    skeletons = Image.fromarray(render_frame(frame, *size, line_width=line_width))
    count = len(picture.people)
    return Case(
        key=picture.key,
        prompt=picture.caption,
        subjects=tuple(_subject(picture, place, image, gallery) for place in range(count)),
        part="1 person" if count == 1 else f"{count} people",
        seed=seed,
        width=size[0],
        height=size[1],
        pose=frame,
        structure=gallery.add(skeletons, f"structures/{picture.key}"),
    )


def _subject(picture: Picture, place: int, image: Image.Image, gallery: Gallery) -> CaseSubject:
    left, top, width, height = picture.people[place]["bbox"]
    corners = (math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height))
    inside = (max(0, corners[0]), max(0, corners[1]), min(picture.width, corners[2]), min(picture.height, corners[3]))
    reference = gallery.add(image.crop(inside), f"references/{picture.key}_{place + 1}")
    return CaseSubject(f"person {place + 1}", "person", "person", (reference,), _shares(inside, picture))


def _shares(corners: Sequence[int], picture: Picture) -> Box:
    left, top, right, bottom = corners
    return left / picture.width, top / picture.height, right / picture.width, bottom / picture.height


def pose_frame(picture: Picture, size: tuple[int, int]) -> PoseFrame:
    """Everybody's keypoints on a canvas of the size, with COCO's area and box of each, which OKS needs."""
    across, down = size[0] / picture.width, size[1] / picture.height
    people = np.stack([from_coco_person(person["keypoints"]) for person in picture.people])
    people[..., :2] *= (across, down)
    frame = frame_from_people(people, *size)
    for found, person in zip(frame["people"], picture.people, strict=True):
        found["bbox"] = [value * side for value, side in zip(person["bbox"], (across, down) * 2, strict=True)]
        if person.get("area") is not None:
            found["area"] = person["area"] * across * down
    return frame
