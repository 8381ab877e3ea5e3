"""The pose database: text prompts, one pose each, and the prompts' embeddings, in one safetensors file.

File layout (version 1), all lengths in entries n and people p:

==================  ===============  ==========================================================================
tensor              shape, type      holds
==================  ===============  ==========================================================================
``canvases``        (n, 2) uint16    width and height in pixels
``person_offsets``  (n + 1,) int32   the people of entry i are ``keypoints[offsets[i]:offsets[i + 1]]``
``positions``       (p, 18, 2) u16   x, y in sixteenths of a pixel
``confidences``     (p, 18) uint8    confidence in 255ths; 0 = not there
``embeddings``      (n, 384) f16     unit-length all-MiniLM-L6-v2 vectors of the prompts
``texts``           (bytes,) uint8   UTF-8 JSON: ``{"prompts": [...], "tags": [...]}``
==================  ===============  ==========================================================================

The metadata has the one key ``pose_database``, a JSON object (several keys would be written in random order, and the same
database would not always be the same bytes). It carries format, version, how the file was made, a SHA-256 over every tensor
but the embeddings (``entries_sha256``), and one over that digest and the embeddings (``index_sha256``): damage, and an index
made for other entries, are noticed at load.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..models_info.files import whole_file
from .keypoints import KEYPOINTS, PoseFrame, frame_from_people

HEADER = "pose_database"
FORMAT = "ensemble-pose-database"
VERSION = "1"
EMBEDDING_WIDTH = 384
PIXEL_STEPS = 16  # positions are stored in sixteenths of a pixel
CONFIDENCE_STEPS = 255
MAX_CANVAS = 4095  # the largest canvas side whose positions still fit 16 bits

_ENTRY_TENSORS = ("canvases", "person_offsets", "positions", "confidences", "texts")


class PoseDatabaseError(ValueError):
    """A database file that cannot be used; the message is one sentence fit for an artist."""


@dataclass(frozen=True)
class PoseDatabase:
    """n prompts with a pose each.

    Attributes:
        name: the file's name without its ending.
        prompts: n texts.
        tags: n dicts: action, people, subjects, environment, camera, difficulty, variation.
        canvases: (n, 2) int, width and height in pixels.
        person_offsets: (n + 1,) int.
        keypoints: (p, 18, 3) float32, x, y in canvas pixels and confidence in [0, 1].
        embeddings: (n, 384) float32, unit length.
        info: how the file was made (seed, builder version, sources).
    """

    name: str
    prompts: list[str]
    tags: list[dict[str, Any]]
    canvases: np.ndarray
    person_offsets: np.ndarray
    keypoints: np.ndarray
    embeddings: np.ndarray
    info: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def people(self, index: int) -> np.ndarray:
        """Keypoints of entry `index`, (P, 18, 3) in canvas pixels."""
        return self.keypoints[self.person_offsets[index] : self.person_offsets[index + 1]]

    def frame(self, index: int) -> PoseFrame:
        """Entry `index` as an OpenPose frame."""
        width, height = self.canvases[index]
        return frame_from_people(self.people(index), width, height)


@dataclass(frozen=True)
class PoseEntry:
    """One prompt with its pose, before it has an embedding.

    Attributes:
        prompt: the text it is found by.
        people: (P, 18, 3) x, y in canvas pixels and confidence in [0, 1].
        canvas: width and height in pixels.
        tags: action, people, subjects, environment, camera, difficulty, variation; any of them.
    """

    prompt: str
    people: np.ndarray
    canvas: tuple[int, int]
    tags: dict[str, Any] = field(default_factory=dict)


def empty_database(name: str) -> PoseDatabase:
    """A database without entries."""
    keypoints = np.zeros((0, len(KEYPOINTS), 3), dtype=np.float32)
    embeddings = np.zeros((0, EMBEDDING_WIDTH), dtype=np.float32)
    return PoseDatabase(name, [], [], np.zeros((0, 2), np.int64), np.zeros(1, np.int64), keypoints, embeddings)


def append_entries(database: PoseDatabase, entries: Sequence[PoseEntry], embeddings: np.ndarray) -> PoseDatabase:
    """A new database with `entries` after those of `database`, which stays as it is.

    Canvases too large for the file are scaled down with their people; keypoints outside their canvas become "not there".

    Args:
        embeddings: (len(entries), 384), unit length.
    """
    fitted = [_fit_entry(entry) for entry in entries]
    counts = np.array([len(people) for people, _ in fitted], dtype=np.int64)
    return replace(
        database,
        prompts=[*database.prompts, *(entry.prompt for entry in entries)],
        tags=[*database.tags, *(dict(entry.tags) for entry in entries)],
        canvases=np.concatenate([database.canvases, *(np.array([canvas], np.int64) for _, canvas in fitted)]),
        person_offsets=np.concatenate([database.person_offsets, database.person_offsets[-1] + np.cumsum(counts)]),
        keypoints=np.concatenate([database.keypoints, *(people for people, _ in fitted)]),
        embeddings=np.concatenate(
            [database.embeddings, np.asarray(embeddings, np.float32).reshape(-1, EMBEDDING_WIDTH)]
        ),
    )


def _fit_entry(entry: PoseEntry) -> tuple[np.ndarray, tuple[int, int]]:
    """People (P, 18, 3) float32 and canvas of an entry as the file can hold them."""
    scale = min(1.0, MAX_CANVAS / max(entry.canvas))
    width, height = (max(1, int(side * scale)) for side in entry.canvas)
    people = np.array(entry.people, dtype=np.float32)  # (P, 18, 3), a copy
    people[..., :2] *= scale
    inside = ((people[..., :2] >= 0) & (people[..., :2] <= (width, height))).all(-1) & (people[..., 2] > 0)
    people[..., 2] = people[..., 2].clip(0, 1)
    return np.where(inside[..., None], people, np.float32(0)), (width, height)


def save_database(database: PoseDatabase, path: Path) -> None:
    """Write `database` to `path`; a file of that name is replaced by a whole one or not at all.

    Raises:
        PoseDatabaseError: the parts do not belong together, or a canvas is larger than 4,095 pixels.
    """
    _check_parts(database)
    texts = json.dumps({"prompts": database.prompts, "tags": database.tags}, ensure_ascii=False, separators=(",", ":"))
    tensors = {
        "canvases": database.canvases.astype(np.uint16),
        "person_offsets": database.person_offsets.astype(np.int32),
        "positions": np.rint(database.keypoints[..., :2] * PIXEL_STEPS).astype(np.uint16),
        "confidences": np.rint(database.keypoints[..., 2] * CONFIDENCE_STEPS).astype(np.uint8),
        "embeddings": database.embeddings.astype(np.float16),
        "texts": np.frombuffer(texts.encode(), dtype=np.uint8),
    }
    header = {**database.info, "format": FORMAT, "version": VERSION, **_checksums(tensors)}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header, sort_keys=True)})


def load_database(path: Path) -> PoseDatabase:
    """Read a pose database.

    Raises:
        PoseDatabaseError: the file is cut off, not a pose database, of a later version, or its index belongs to other entries.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            _check_header(header, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise PoseDatabaseError(f"the pose database {path.name} cannot be read ({error}); get the file again") from None
    checksums = _checksums(tensors)
    if checksums["entries_sha256"] != header.get("entries_sha256"):
        raise PoseDatabaseError(f"the pose database {path.name} is damaged (its checksum differs); get the file again")
    if checksums["index_sha256"] != header.get("index_sha256"):
        raise PoseDatabaseError(
            f"the index of the pose database {path.name} was made for other entries; build it again"
        )
    texts = json.loads(tensors["texts"].tobytes())
    keypoints = np.concatenate(
        [
            tensors["positions"].astype(np.float32) / PIXEL_STEPS,
            tensors["confidences"].astype(np.float32)[..., None] / CONFIDENCE_STEPS,
        ],
        axis=-1,
    )
    reserved = {"format", "version", "entries_sha256", "index_sha256"}
    return PoseDatabase(
        name=path.stem,
        prompts=texts["prompts"],
        tags=texts["tags"],
        canvases=tensors["canvases"].astype(np.int64),
        person_offsets=tensors["person_offsets"].astype(np.int64),
        keypoints=keypoints,
        embeddings=unit_length(tensors["embeddings"].astype(np.float32)),
        info={key: value for key, value in header.items() if key not in reserved},
    )


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows at length 1 again after their 16-bit storage."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _checksums(tensors: dict[str, np.ndarray]) -> dict[str, str]:
    digest = hashlib.sha256()
    for name in _ENTRY_TENSORS:
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    entries = digest.hexdigest()
    digest.update(np.ascontiguousarray(tensors["embeddings"]).data)
    return {"entries_sha256": entries, "index_sha256": digest.hexdigest()}


def _check_header(header: dict[str, str], path: Path) -> None:
    if header.get("format") != FORMAT:
        raise PoseDatabaseError(f"{path.name} is not a pose database; choose one made by this pack")
    if header.get("version") != VERSION:
        raise PoseDatabaseError(
            f"the pose database {path.name} has format version {header.get('version')}, this pack reads {VERSION};"
            " update ComfyUI-Ensemble"
        )


def _check_parts(database: PoseDatabase) -> None:
    entries, people = len(database.prompts), int(database.person_offsets[-1])
    expected = {
        "tags": (len(database.tags), entries),
        "canvases": (database.canvases.shape, (entries, 2)),
        "person_offsets": (database.person_offsets.shape, (entries + 1,)),
        "keypoints": (database.keypoints.shape, (people, len(KEYPOINTS), 3)),
        "embeddings": (database.embeddings.shape, (entries, EMBEDDING_WIDTH)),
    }
    for part, (found, wanted) in expected.items():
        if found != wanted:
            raise PoseDatabaseError(f"the pose database's {part} have shape {found}, expected {wanted}")
    if not np.isfinite(database.keypoints).all():
        raise PoseDatabaseError("a keypoint of the pose database is not a finite number")
    if entries and database.canvases.max() > MAX_CANVAS:
        raise PoseDatabaseError(f"a canvas of the pose database is larger than {MAX_CANVAS} pixels")
    positions = database.keypoints[..., :2]
    if positions.size and (positions.min() < 0 or positions.max() > MAX_CANVAS):
        raise PoseDatabaseError("a keypoint of the pose database lies outside its canvas")
