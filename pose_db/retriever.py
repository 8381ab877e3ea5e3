"""Retrieval: prompt -> embedding -> maximum inner product over the database (ASTRA, section 3.1.1, Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .database import PoseDatabase, PoseEntry, append_entries
from .encoder import SentenceEncoder
from .index import Index, make_index

DEFAULT_THRESHOLD = 0.47
"""The lowest cosine at which a pose is used: best F1 on the fitting half of the held-out prompts, ``docs/retrieval.md``."""


@dataclass(frozen=True)
class Match:
    """One neighbour of a prompt: its entry in the database and the cosine between the two."""

    entry: int
    score: float


class PoseRetriever:
    """A pose database that can be searched by text.

    The sentence model and the index are made at the first search and live as long as this object, that is, as long as
    ComfyUI keeps the loader's output.
    """

    def __init__(self, database: PoseDatabase, encoder_folder: Path, index_path: Path | None = None) -> None:
        """`index_path`: where the index of a large database is kept on disk; see `index.make_index`."""
        self.database = database
        self._encoder_folder = encoder_folder
        self._index_path = index_path

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        return SentenceEncoder(self._encoder_folder)

    @cached_property
    def _index(self) -> Index:
        return make_index(self.database.embeddings, self._index_path)

    def search(self, prompt: str, count: int) -> list[Match]:
        """The `count` best entries for `prompt`, best first (fewer where the database is smaller).

        Scores are cosines in [-1, 1]: both sides have unit length, so the inner product of Eq. 2 is the cosine.
        """
        return self.search_all([prompt], count)[0]

    def search_all(self, prompts: Sequence[str], count: int) -> list[list[Match]]:
        """As `search` for several prompts, whose sentences are encoded together."""
        found = []
        for query in self._encoder.encode(list(prompts)):
            scores, entries = self._index.search(query, min(count, len(self.database)))
            found.append([Match(int(entry), float(score)) for entry, score in zip(entries, scores, strict=True)])
        return found

    def extended(self, entries: Sequence[PoseEntry]) -> PoseRetriever:
        """A new retriever whose database has `entries` too. This one stays as it is; both share one sentence model."""
        embeddings = self._encoder.encode([entry.prompt for entry in entries])
        grown = PoseRetriever(append_entries(self.database, entries, embeddings), self._encoder_folder)
        grown.__dict__["_encoder"] = self._encoder  # fills the cached property
        return grown
