"""What collections are made of, a shard at a time: authored actions, and databases that are there already.

A source can be sent to another process, knows how many shards it has, and makes each of them alone, in any order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from .actions import ACTION_FOLDER, Action, load_actions
from .builder import BUILDER_VERSION, SOURCES, entry_tags, pose_variations
from .database import EMBEDDING_WIDTH, PoseDatabase, PoseDatabaseError, load_database
from .encoder import SentenceEncoder, one_thread
from .mapped_file import map_tensors
from .variations import choose_variations

ROUND_SEED = 0x9E3779B9  # seeds of the rounds of variations after the first lie this far apart


class Source(Protocol):
    """Makes shards."""

    def digest(self) -> str:
        """Identifies all that decides about the shards."""
        ...

    def count(self) -> int:
        """How many shards there are."""
        ...

    def make(self, number: int) -> PoseDatabase:
        """One shard, the same whenever it is made."""
        ...


@cache
def _actions() -> list[Action]:
    return load_actions()


@dataclass(frozen=True)
class AuthoredPoses:
    """The authored actions, a shard each, with any number of rounds of 30 variations.

    The first round is the bundled database's. A prompt that an earlier round of the action came to is left out: of 40 rounds
    about 1,000 prompts remain, of 1,200.

    Attributes:
        rounds: of 30 variations.
        seed: of the first round.
        encoder: folder of all-MiniLM-L6-v2; None makes zero embeddings, to look at prompts and poses alone.
    """

    rounds: int
    seed: int
    encoder: Path | None

    def digest(self) -> str:
        """See `Source`."""
        digest = hashlib.sha256(f"authored {BUILDER_VERSION} {self.rounds} {self.seed} {self.encoder is None}".encode())
        for path in sorted(ACTION_FOLDER.glob("*.json")):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def count(self) -> int:
        """See `Source`."""
        return len(_actions())

    def make(self, number: int) -> PoseDatabase:
        """See `Source`."""
        action = _actions()[number]
        seen: set[str] = set()
        parts = []
        for round_number in range(self.rounds):
            seed = self.seed + round_number * ROUND_SEED
            variations = [one for one in choose_variations(action, seed) if one.prompt not in seen]
            seen |= {variation.prompt for variation in variations}
            if variations:
                keypoints, canvases = pose_variations(action, variations, seed)
                tags = [entry_tags(action, variation) | {"round": round_number} for variation in variations]
                parts.append(([variation.prompt for variation in variations], tags, keypoints, canvases))
        prompts = [prompt for part in parts for prompt in part[0]]
        keypoints = np.concatenate([part[2] for part in parts])  # (n, P, 18, 3)
        people = keypoints.shape[1]
        return PoseDatabase(
            name=action.id,
            prompts=prompts,
            tags=[tags for part in parts for tags in part[1]],
            canvases=np.concatenate([part[3] for part in parts]).astype(np.int64),
            person_offsets=people * np.arange(len(prompts) + 1, dtype=np.int64),
            keypoints=keypoints.reshape(-1, 18, 3).astype(np.float32),
            embeddings=encode(self.encoder, prompts),
            info={"builder": BUILDER_VERSION, "seed": str(self.seed), "sources": SOURCES},
        )


@dataclass(frozen=True)
class Databases:
    """Pose databases that are there, cut into shards.

    Attributes:
        paths: their files, in the order of their entries.
        entries: of a shard, at most.
    """

    paths: tuple[Path, ...]
    entries: int

    def digest(self) -> str:
        """See `Source`."""
        digest = hashlib.sha256(f"databases {self.entries}".encode())
        for path in self.paths:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def count(self) -> int:
        """See `Source`."""
        return len(self._cuts())

    def make(self, number: int) -> PoseDatabase:
        """See `Source`."""
        path, start = self._cuts()[number]
        return part_of(_loaded(path), start, start + self.entries)

    def _cuts(self) -> list[tuple[Path, int]]:
        return [(path, start) for path in self.paths for start in range(0, _entries(path), self.entries)]


@cache
def _entries(path: Path) -> int:
    try:
        return len(map_tensors(path)[1]["canvases"])
    except (ValueError, KeyError):
        return len(load_database(path))  # says what is wrong


_last: dict[Path, PoseDatabase] = {}


def _loaded(path: Path) -> PoseDatabase:
    """A database, the last one kept: its parts are made one after the other."""
    if path not in _last:
        _last.clear()
        _last[path] = load_database(path)
    return _last[path]


def part_of(database: PoseDatabase, start: int, stop: int) -> PoseDatabase:
    """Entries `start` to below `stop` of a database, or to its end."""
    stop = min(stop, len(database))
    first, last = database.person_offsets[start], database.person_offsets[stop]
    return PoseDatabase(
        name=database.name,
        prompts=database.prompts[start:stop],
        tags=database.tags[start:stop],
        canvases=database.canvases[start:stop],
        person_offsets=database.person_offsets[start : stop + 1] - first,
        keypoints=database.keypoints[first:last],
        embeddings=database.embeddings[start:stop],
        info=database.info,
    )


def encode(folder: Path | None, prompts: list[str]) -> np.ndarray:
    """(n, 384) float32, unit length; zeros where there is no folder. On one thread: other workers have the other cores, and the
    last bits do not depend on their number."""
    if folder is None:
        return np.zeros((len(prompts), EMBEDDING_WIDTH), np.float32)
    encoder = encoder_of(folder)
    with one_thread():
        return encoder.encode(prompts)


@cache
def encoder_of(folder: Path) -> SentenceEncoder:
    """The sentence model, once a process.

    Raises:
        PoseDatabaseError: the folder holds none.
    """
    try:
        return SentenceEncoder(folder)
    except OSError as error:
        raise PoseDatabaseError(f"{folder} holds no sentence model ({error})") from None
