"""Retrieval: prompt -> embedding -> maximum inner product over the database (ASTRA, section 3.1.1, Eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .database import PoseDatabase
from .encoder import SentenceEncoder


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

    def __init__(self, database: PoseDatabase, encoder_folder: Path) -> None:
        self.database = database
        self._encoder_folder = encoder_folder

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        return SentenceEncoder(self._encoder_folder)

    @cached_property
    def _index(self):
        import faiss  # optional dependency, and slow to import

        index = faiss.IndexFlatIP(self.database.embeddings.shape[1])
        index.add(np.ascontiguousarray(self.database.embeddings, dtype=np.float32))
        return index

    def search(self, prompt: str, count: int) -> list[Match]:
        """The `count` best entries for `prompt`, best first (fewer where the database is smaller).

        Scores are cosines in [-1, 1]: both sides have unit length, so the inner product of Eq. 2 is the cosine.
        """
        query = self._encoder.encode([prompt])
        scores, entries = self._index.search(query, min(count, len(self.database)))
        return [Match(int(entry), float(score)) for entry, score in zip(entries[0], scores[0], strict=True)]
