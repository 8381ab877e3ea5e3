"""The shards of a collection: ordinary pose databases, memory-mapped, their entries counted on from shard to shard."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .database import (
    CONFIDENCE_STEPS,
    EMBEDDING_WIDTH,
    HEADER,
    PIXEL_STEPS,
    PoseDatabaseError,
    load_database,
    unit_length,
)
from .mapped_file import map_tensors

COMMAND = "python dev.py python -m comfyui_ensemble.pose_db.scale"
AGAIN = f"get it again, or build the collection anew with `{COMMAND}`"


@dataclass(frozen=True)
class ShardRecord:
    """What a collection knows of a shard: its number in the file's name, its entries, and its ``index_sha256``."""

    number: int
    entries: int
    sha256: str


def shard_folder(path: Path) -> Path:
    """Where the shards of the collection `path` lie."""
    return path.with_suffix(".shards")


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"{number:06d}.poses"


class Shard:
    """One shard, mapped.

    Attributes:
        embeddings: (n, 384) float16.
    """

    def __init__(self, path: Path, record: ShardRecord) -> None:
        """Raises PoseDatabaseError where the file is not the one that `record` means."""
        try:
            metadata, tensors = map_tensors(path)
            found = json.loads(metadata[HEADER])["index_sha256"]
            self.embeddings = tensors["embeddings"]
            self._canvases, self._offsets = tensors["canvases"], tensors["person_offsets"]
            self._positions, self._confidences = tensors["positions"], tensors["confidences"]
            self._texts = tensors["texts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PoseDatabaseError(
                f"the shard {path.name} of the collection cannot be read ({error}); {AGAIN}"
            ) from None
        if found != record.sha256 or len(self.embeddings) != record.entries:
            raise PoseDatabaseError(f"the shard {path.name} is not the one that the collection was made of; {AGAIN}")

    def canvas(self, row: int) -> tuple[int, int]:
        width, height = self._canvases[row].tolist()
        return width, height

    def people(self, row: int) -> np.ndarray:
        start, stop = (int(offset) for offset in self._offsets[row : row + 2])
        positions = self._positions[start:stop].astype(np.float32) / PIXEL_STEPS
        confidences = self._confidences[start:stop].astype(np.float32)[..., None] / CONFIDENCE_STEPS
        return np.concatenate([positions, confidences], axis=-1)

    def read_texts(self) -> dict[str, list[Any]]:
        """Prompts and tags of all entries."""
        return json.loads(self._texts.tobytes())


class Shards:
    """All shards of a collection, each mapped when one of its entries is first asked for.

    Attributes:
        records: what is known of each.
    """

    def __init__(self, folder: Path, records: Sequence[ShardRecord]) -> None:
        self.records = list(records)
        self._folder = folder
        self._starts = np.concatenate([[0], np.cumsum([record.entries for record in records])]).astype(np.int64)
        self._mapped: dict[int, Shard] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes where the files are, not what is in them."""
        return Shards, (self._folder, self.records)

    def __len__(self) -> int:
        """Entries of all."""
        return int(self._starts[-1])

    def place(self, entry: int) -> tuple[int, int]:
        """The position of the shard that has an entry, and the entry's row in it."""
        position = bisect_right(self._starts, entry) - 1
        return position, int(entry - self._starts[position])

    def at(self, position: int) -> Shard:
        """The shard at a position.

        Raises:
            PoseDatabaseError: see `Shard`.
        """
        if position not in self._mapped:
            record = self.records[position]
            self._mapped[position] = Shard(shard_path(self._folder, record.number), record)
        return self._mapped[position]

    def embeddings_of(self, entries: np.ndarray) -> np.ndarray:
        """(n, 384) float32, unit length, of some entries, (n,)."""
        found = np.empty((len(entries), EMBEDDING_WIDTH), np.float32)
        positions = np.searchsorted(self._starts, entries, side="right") - 1
        for position in np.unique(positions).tolist():
            mine = positions == position
            found[mine] = self.at(position).embeddings[entries[mine] - self._starts[position]]
        return unit_length(found)

    def block(self, position: int) -> np.ndarray:
        """All embeddings of a shard, (n_i, 384) float32 of unit length."""
        return unit_length(self.at(position).embeddings.astype(np.float32))

    def blocks(self) -> Iterator[np.ndarray]:
        """All embeddings, shard by shard."""
        return map(self.block, range(len(self.records)))

    def check(self) -> None:
        """Read every shard and compare its checksums.

        Raises:
            PoseDatabaseError: the first that is damaged or not the collection's.
        """
        for position, record in enumerate(self.records):
            self.at(position)
            load_database(shard_path(self._folder, record.number))
