"""Poses from and to the formats that others use: OpenPose JSON folders and COCO person keypoints.

* OpenPose writes one ``<picture>_keypoints.json`` a picture. Its own files have no canvas size, so that is read from
  the picture beside it; a text is read from ``<picture>.txt``, as training sets keep captions. BODY-18 and BODY-25
  are read, BODY-18 is written.
* COCO has 17 keypoints, no neck, and a visibility: 0 not labelled, 1 labelled but hidden, 2 visible. The neck is the
  middle of the shoulders, as OpenPose defines it. Captions come from a captions file of the same pictures, or from
  ``caption`` of an image.

Sources: github.com/CMU-Perceptual-Computing-Lab/openpose (doc/02_output.md); cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..models_info.files import whole_file
from .database import PoseEntry
from .keypoints import KEYPOINT_INDEX, KEYPOINTS, PoseFrame, check_frames, frame_from_people, keypoint_array
from .people import BODY, read_people

OPENPOSE_SUFFIX = "_keypoints.json"
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
COCO_KEYPOINTS = (
    *(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
    ),
    *("left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)
HIDDEN_CONFIDENCE = 0.5  # of a keypoint that COCO calls labelled but not visible
_FROM_COCO = [KEYPOINT_INDEX[name] for name in COCO_KEYPOINTS]
_SHOULDERS = [KEYPOINT_INDEX["left_shoulder"], KEYPOINT_INDEX["right_shoulder"]]
_NECK = KEYPOINT_INDEX["neck"]
# BODY-18 from BODY-25, whose ninth keypoint is the middle of the hips and whose last six are feet.
_FROM_BODY_25 = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]


class ExchangeError(ValueError):
    """A file of another program that cannot be read; the message is one sentence fit for an artist."""


def body_people(frame: PoseFrame) -> np.ndarray:
    """Body keypoints of everybody in a frame of either dialect, (P, 18, 3) in canvas pixels.

    Raises:
        ValueError: a person is damaged, not BODY-18, or far outside the canvas.
    """
    canvas = np.array([frame["canvas_width"], frame["canvas_height"], 1.0])
    people = [person[BODY] * canvas for person in read_people(frame)]
    return np.stack(people) if people else np.zeros((0, len(KEYPOINTS), 3))


def entry_from_frame(frame: PoseFrame, prompt: str, tags: Mapping[str, Any] | None = None) -> PoseEntry:
    """A database entry of a frame; a ValueError where `body_people` has one."""
    people = body_people(frame)
    known = {"people": len(people)} | dict(tags or {})
    return PoseEntry(prompt.strip(), people, (int(frame["canvas_width"]), int(frame["canvas_height"])), known)


# COCO


def from_coco_person(keypoints: Sequence[float]) -> np.ndarray:
    """51 numbers x, y, visibility as BODY-18 with a neck, (18, 3)."""
    values = np.asarray(keypoints, dtype=np.float64).reshape(len(COCO_KEYPOINTS), 3)
    person = np.zeros((len(KEYPOINTS), 3))
    person[_FROM_COCO, :2] = values[:, :2]
    person[_FROM_COCO, 2] = np.select([values[:, 2] >= 2, values[:, 2] >= 1], [1.0, HIDDEN_CONFIDENCE], 0.0)
    shoulders = person[_SHOULDERS]
    if (shoulders[:, 2] > 0).all():
        person[_NECK] = [*shoulders[:, :2].mean(0), shoulders[:, 2].min()]
    return np.where(person[:, 2:] > 0, person, 0.0)


def to_coco_person(person: np.ndarray) -> list[float]:
    """BODY-18 (18, 3) as COCO's 51 numbers; the neck is left out."""
    confidence = person[_FROM_COCO, 2]
    visibility = np.select([confidence > HIDDEN_CONFIDENCE, confidence > 0], [2, 1], 0)
    position = np.where(visibility[:, None] > 0, person[_FROM_COCO, :2], 0.0)
    return np.concatenate([position, visibility[:, None]], axis=1).reshape(-1).tolist()


def import_coco(path: Path, captions: Path | None = None) -> list[PoseEntry]:
    """Entries of a COCO person-keypoints file, one a picture that has people and a caption.

    Args:
        captions: a COCO captions file of the same pictures; the first caption of each is taken.

    Raises:
        ExchangeError: a file cannot be read or lacks something; it names what.
    """
    data = _read_json(path, dict)
    images = {image["id"]: image for image in _records(data, path, "images", ("id", "width", "height"))}
    people: dict[Any, list[np.ndarray]] = {}
    for number, annotation in enumerate(_records(data, path, "annotations", ("image_id", "keypoints")), start=1):
        if annotation["image_id"] not in images:
            raise ExchangeError(
                f"{path.name}: annotation {number} belongs to the unknown image {annotation['image_id']}"
            )
        person = _coco_person(annotation, number, path)
        if person is not None:
            people.setdefault(annotation["image_id"], []).append(person)
    texts = _captions(images, captions)
    found = [
        PoseEntry(
            texts[key],
            np.stack(persons),
            (round(images[key]["width"]), round(images[key]["height"])),
            {"people": len(persons), "source": str(images[key].get("file_name", key))},
        )
        for key, persons in people.items()
        if texts.get(key)
    ]
    if people and not found:
        raise ExchangeError(f"{path.name} has poses but no captions; add a captions file of the same pictures")
    return found


def _coco_person(annotation: Mapping[str, Any], number: int, path: Path) -> np.ndarray | None:
    """One person (18, 3), or None for a crowd or for somebody without a labelled keypoint."""
    if annotation.get("iscrowd"):
        return None
    try:
        values = np.asarray(annotation["keypoints"], dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (3 * len(COCO_KEYPOINTS),) or not np.isfinite(values).all():
        raise ExchangeError(f"{path.name}: annotation {number} has not 51 finite numbers as keypoints; export it again")
    person = from_coco_person(values.tolist())
    return person if (person[:, 2] > 0).any() else None


def _captions(images: Mapping[Any, Mapping[str, Any]], captions: Path | None) -> dict[Any, str]:
    texts = {key: str(image["caption"]).strip() for key, image in images.items() if image.get("caption")}
    if captions is not None:
        records = _records(_read_json(captions, dict), captions, "annotations", ("image_id", "caption"))
        for record in reversed(records):
            texts[record["image_id"]] = str(record["caption"]).strip()
    return texts


def export_coco(entries: Iterable[PoseEntry], path: Path) -> None:
    """Write entries as a COCO person-keypoints file; every image carries its prompt as ``caption``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, entry in enumerate(entries, start=1):
        width, height = entry.canvas
        name = str(entry.tags.get("source", f"{image_id:06d}.png"))
        images.append({"id": image_id, "file_name": name, "width": width, "height": height, "caption": entry.prompt})
        for person in entry.people:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id} | _coco_annotation(person))
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO_KEYPOINTS)}
    _write_json({"images": images, "annotations": annotations, "categories": [category]}, path)


def _coco_annotation(person: np.ndarray) -> dict[str, Any]:
    seen = person[person[:, 2] > 0, :2]
    low, high = (seen.min(0), seen.max(0)) if len(seen) else (np.zeros(2), np.zeros(2))
    keypoints = to_coco_person(person)
    return {
        "category_id": 1,
        "iscrowd": 0,
        "keypoints": keypoints,
        "num_keypoints": int(np.count_nonzero(keypoints[2::3])),
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "area": float((high - low).prod()),
    }


# OpenPose


def read_openpose_file(path: Path, canvas: tuple[int, int] | None = None) -> list[PoseFrame]:
    """The frames of an OpenPose JSON file: OpenPose's own, a ControlNet editor's, or a list of frames.

    Args:
        canvas: width and height for a file that has none; otherwise those of the picture beside it.

    Raises:
        ExchangeError: the file cannot be read, or has no canvas size anywhere.
    """
    data = _read_json(path, (dict, list))
    frames = []
    for frame in [data] if isinstance(data, dict) else data:
        if not isinstance(frame, dict) or not isinstance(frame.get("people"), list):
            raise ExchangeError(f"{path.name} has no list of people; it is not an OpenPose file")
        width, height = _canvas(frame, path, canvas)
        people = [_body_18(person, path) for person in frame["people"]]
        frames.append({"people": people, "canvas_width": width, "canvas_height": height})
    try:
        return list(check_frames(frames))
    except ValueError as error:
        raise ExchangeError(f"{path.name}: {error}") from None


def _body_18(person: Any, path: Path) -> dict[str, Any]:
    """A person whose body has 18 keypoints; hands, face and feet stay as they are."""
    try:
        body = keypoint_array(person, BODY)
    except (AttributeError, TypeError, ValueError) as error:
        raise ExchangeError(f"{path.name}: {error}; detect the pose again") from None
    if body is None:
        raise ExchangeError(f"{path.name} has a person without body keypoints; detect the pose again")
    if len(body) == 25:
        return dict(person) | {BODY: body[_FROM_BODY_25].reshape(-1).tolist()}
    return dict(person)


def _canvas(frame: Mapping[str, Any], path: Path, canvas: tuple[int, int] | None) -> tuple[int, int]:
    try:
        if "canvas_width" in frame and "canvas_height" in frame:
            return int(frame["canvas_width"]), int(frame["canvas_height"])
    except (TypeError, ValueError):
        raise ExchangeError(f"{path.name}: its canvas size is not a number; detect the pose again") from None
    if canvas is not None:
        return canvas
    picture = _beside(path, PICTURE_ENDINGS)
    if picture is None:
        raise ExchangeError(f"{path.name} has no canvas size and no picture beside it; put the picture there")
    return picture_size(picture)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture file.

    Raises:
        ExchangeError: it is not a picture.
    """
    from PIL import Image, UnidentifiedImageError  # not needed by files that carry their canvas

    try:
        with Image.open(path) as opened:
            return opened.size
    except (OSError, UnidentifiedImageError):
        raise ExchangeError(f"{path.name} cannot be read as a picture; get the file again") from None


def _beside(path: Path, endings: Sequence[str]) -> Path | None:
    """The file of the same picture with one of `endings`."""
    stem = path.name.removesuffix(OPENPOSE_SUFFIX).removesuffix(".json")
    return next((path.with_name(stem + ending) for ending in endings if path.with_name(stem + ending).is_file()), None)


def import_openpose(folder: Path, canvas: tuple[int, int] | None = None) -> list[PoseEntry]:
    """Entries of a folder of OpenPose files, in the order of their names.

    Raises:
        ExchangeError: a file is damaged or has no text; nothing is taken then.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ExchangeError(f"the folder {folder.name} holds no OpenPose JSON file")
    found = []
    for path in paths:
        text = _beside(path, (".txt",))
        if text is None:
            raise ExchangeError(f"{path.name} has no text; write its prompt into a .txt file of the picture's name")
        prompt = text.read_text(encoding="utf-8")
        for frame in read_openpose_file(path, canvas):
            try:
                found.append(entry_from_frame(frame, prompt, {"source": path.name}))
            except ValueError as error:
                raise ExchangeError(f"{path.name}: {error}") from None
    return found


def export_openpose(entries: Iterable[PoseEntry], folder: Path) -> None:
    """Write one ``<number>_keypoints.json`` and ``<number>.txt`` an entry."""
    for number, entry in enumerate(entries, start=1):
        frame = {"version": 1.3} | frame_from_people(entry.people, *entry.canvas)
        _write_json(frame, folder / f"{number:06d}{OPENPOSE_SUFFIX}")
        with whole_file(folder / f"{number:06d}.txt") as temporary:
            temporary.write_text(entry.prompt + "\n", encoding="utf-8")


# Files


def _read_json(path: Path, kinds: type | tuple[type, ...]) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExchangeError(
            f"{path.name} cannot be read as JSON ({type(error).__name__}); get the file again"
        ) from None
    if not isinstance(data, kinds):
        raise ExchangeError(f"{path.name} is JSON of another kind than expected; get the file again")
    return data


def _records(data: Mapping[str, Any], path: Path, name: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The list `name` of a COCO file, every record with `fields`."""
    records = data.get(name)
    if not isinstance(records, list):
        raise ExchangeError(f"{path.name} has no list '{name}'; it is not a COCO file of this kind")
    for number, record in enumerate(records, start=1):
        missing = [field for field in fields if not isinstance(record, dict) or record.get(field) is None]
        if missing:
            raise ExchangeError(f"{path.name}: number {number} of '{name}' lacks {' and '.join(missing)}")
    return records


def _write_json(data: Any, path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
