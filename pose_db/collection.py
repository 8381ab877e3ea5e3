"""A collection: a pose database too large for one file and for memory, read where it lies on the disk.

    NAME.safetensors            the index, and what shards there are; this is the file to choose
    NAME.shards/000000.poses    ordinary pose databases (``database``), one a shard, their entries counted on

Opening maps the index and reads no entry. A search touches the lists it visits and the embeddings of its candidates; the
texts of a shard are read when one of its entries is asked for. Several processes that open a collection share its pages.

Tensors of ``NAME.safetensors`` for n entries in L lists, M codes each (see ``codes`` and ``code_index``):

===============  =====================  ======================================================
tensor           shape, type            holds
===============  =====================  ======================================================
``centres``      (L, 384) float32       of the lists
``prototypes``   (M, 256, 384 / M) f32  what codes stand for
``offsets``      (L + 1,) int64         list i is ``entries[offsets[i]:offsets[i + 1]]``
``entries``      (n,) int32             list after list
``codes``        (n * M,) uint8         list after list, each as (M, entries of the list)
===============  =====================  ======================================================

Up to ``index.FLAT_LIMIT`` entries there are no such tensors, and every entry is compared. The metadata has the one key
``pose_collection``: JSON with format, version, the number of entries and the ``index_sha256`` of every shard, how many lists and
candidates a search takes, a SHA-256 over the tensors, and how the collection was made.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..models_info.files import whole_file
from .code_index import CodeIndex, Lists
from .codes import Quantizer
from .collection_shards import AGAIN, COMMAND, ShardRecord, Shards, shard_folder
from .database import EMBEDDING_WIDTH, PoseDatabaseError, load_database
from .index import FlatIndex, Index
from .keypoints import PoseFrame, frame_from_people
from .mapped_file import map_tensors
from .retriever import PoseRetriever

HEADER = "pose_collection"
FORMAT, VERSION = "ensemble-pose-collection", "1"
_TENSORS = ("centres", "prototypes", "offsets", "entries", "codes")
_TEXTS_KEPT = 8  # shards whose texts stay in memory

T = TypeVar("T")


class _Column(Sequence[T]):
    """One value of every entry, read when it is asked for."""

    def __init__(self, length: int, value: Callable[[int], T]) -> None:
        self._length, self._value = length, value

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._value(number) for number in range(*index.indices(self._length))]
        number = index + self._length if index < 0 else index
        if not 0 <= number < self._length:
            raise IndexError(index)
        return self._value(number)


class PoseCollection:
    """Reads as a `PoseDatabase` does, an entry at a time.

    Attributes:
        name: the file's name without its ending.
        shards: where the entries are.
        prompts, tags: as a `PoseDatabase`'s, but each is read when it is asked for.
        info: how the collection was made.
    """

    def __init__(self, path: Path, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.name, self.info = path.stem, dict(header["info"])
        self.shards = Shards(shard_folder(path), [ShardRecord(*record) for record in header["shards"]])
        self._header, self._tensors = header, tensors
        self._texts: OrderedDict[int, dict[str, list[Any]]] = OrderedDict()
        self.prompts: Sequence[str] = _Column(len(self), lambda entry: self._text("prompts", entry))
        self.tags: Sequence[dict[str, Any]] = _Column(len(self), lambda entry: self._text("tags", entry))

    def __len__(self) -> int:
        return len(self.shards)

    def people(self, index: int) -> np.ndarray:
        """Keypoints of entry `index`, (P, 18, 3) in canvas pixels."""
        position, row = self.shards.place(index)
        return self.shards.at(position).people(row)

    def frame(self, index: int) -> PoseFrame:
        """Entry `index` as an OpenPose frame."""
        position, row = self.shards.place(index)
        shard = self.shards.at(position)
        return frame_from_people(shard.people(row), *shard.canvas(row))

    @cached_property
    def index(self) -> Index:
        """What searches it."""
        if not self._tensors:
            return FlatIndex(np.concatenate([np.zeros((0, EMBEDDING_WIDTH), np.float32), *self.shards.blocks()]))
        quantizer = Quantizer(self._tensors["centres"], self._tensors["prototypes"])
        lists = Lists(quantizer, *(self._tensors[name] for name in ("offsets", "entries", "codes")))
        return CodeIndex(lists, self.shards.embeddings_of, self._header["visits"], self._header["candidates"])

    @property
    def person_offsets(self) -> np.ndarray:
        """What a whole database has in memory, and a collection has not.

        Raises:
            PoseDatabaseError: always.
        """
        raise PoseDatabaseError(f"{self.name} is a collection, which is not changed or copied here; use `{COMMAND}`")

    def _text(self, kind: str, entry: int) -> Any:
        position, row = self.shards.place(entry)
        texts = self._texts.pop(position, None) or self.shards.at(position).read_texts()
        self._texts[position] = texts  # the last one used
        if len(self._texts) > _TEXTS_KEPT:
            self._texts.popitem(last=False)
        return texts[kind][row]


def is_collection(path: Path) -> bool:
    """Whether a file is a collection's."""
    try:
        with safe_open(path, framework="numpy") as file:
            return HEADER in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def save_collection(
    path: Path,
    shards: Sequence[ShardRecord],
    info: dict[str, str],
    lists: Lists | None = None,
    visits: int = 0,
    candidates: int = 0,
) -> None:
    """Write the collection's file beside its shards, wholly or not at all; without `lists` every entry is compared."""
    tensors = {} if lists is None else _tensors(lists)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "shards": [[record.number, record.entries, record.sha256] for record in shards],
        "visits": visits,
        "candidates": candidates,
        "sha256": _digest(tensors),
        "info": info,
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header, sort_keys=True)})


def _tensors(lists: Lists) -> dict[str, np.ndarray]:
    values = (lists.quantizer.centres, lists.quantizer.prototypes, lists.offsets, lists.entries, lists.codes)
    return {name: np.ascontiguousarray(value) for name, value in zip(_TENSORS, values, strict=True)}


def open_collection(path: Path) -> PoseCollection:
    """Map a collection; its shards are looked at when they are needed.

    Raises:
        PoseDatabaseError: the file is damaged, of another version, or no collection.
    """
    try:
        metadata, tensors = map_tensors(path)
        header = json.loads(metadata[HEADER])
        if (header["format"], header["version"]) != (FORMAT, VERSION):
            raise PoseDatabaseError(
                f"the pose collection {path.name} has format version {header['version']}, this pack reads {VERSION};"
                " update ComfyUI-Ensemble"
            )
        if header["sha256"] != _digest(tensors):
            raise PoseDatabaseError(f"the pose collection {path.name} is damaged (its checksum differs); {AGAIN}")
        return PoseCollection(path, header, tensors)
    except PoseDatabaseError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PoseDatabaseError(f"the pose collection {path.name} cannot be read ({error}); {AGAIN}") from None


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()


class CollectionRetriever(PoseRetriever):
    """A `PoseRetriever` over a collection."""

    def __init__(self, collection: PoseCollection, encoder_folder: Path) -> None:
        database: Any = collection  # reads as one
        super().__init__(database, encoder_folder)

    @cached_property
    def _index(self) -> Index:
        collection: Any = self.database
        return collection.index

    def extended(self, entries: Any) -> PoseRetriever:
        """A collection is not grown in memory.

        Raises:
            PoseDatabaseError: always.
        """
        raise PoseDatabaseError(
            f"{self.database.name} is a collection, which this cannot add to; add to a small database and make both a"
            f" collection with `{COMMAND} files`"
        )


def open_retriever(path: Path, encoder_folder: Path) -> PoseRetriever:
    """What searches a pose database or a collection by text.

    Raises:
        PoseDatabaseError: the file cannot be used.
    """
    if is_collection(path):
        return CollectionRetriever(open_collection(path), encoder_folder)
    return PoseRetriever(load_database(path), encoder_folder, path.with_suffix(".index"))
