"""Maximum inner product search over unit-length embeddings (ASTRA, Eq. 2): exact when small, by lists when large.

Up to ``FLAT_LIMIT`` entries every entry is compared (FAISS, ``IndexFlatIP``). Above it the entries are sorted into
lists around k-means centres, and only the lists whose centres lie nearest to the query are read (an inverted file:
Sivic and Zisserman, "Video Google", ICCV 2003; Jegou et al., "Product Quantization for Nearest Neighbor Search", 2011,
section IV). Lists hold the vectors themselves, so scores are exact and only a neighbour in an unread list can be
missed. How many lists are read is not guessed: it is raised at build time until at least ``RECALL`` of sample queries
find the same best entry as the exact search, or until a search reads ``MOST_READ`` entries.

An inverted file is kept on disk and memory-mapped: opening it reads it once, for its checksum, and afterwards
searches touch only the lists they visit. The file is in safetensors layout; its metadata carries the SHA-256 of the
embeddings it was made for and of its own tensors, so an index of other entries, or a damaged one, is noticed before the
first search.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import save_file

from ..models_info.files import whole_file
from .mapped_file import map_tensors

FLAT_LIMIT = 100_000  # comparing as many takes 12 ms on one core
RECALL = 0.998  # of the best entry, on the sample
MOST_READ = 25_000  # entries, where more recall would take more: about 5 ms on one core
INDEX_FORMAT = "ensemble-pose-index"
INDEX_VERSION = "1"

_SAMPLES = 1000
# Between a prompt and an entry it could be about. With these two the bundled database, put into lists, finds nearly as many
# best entries of the sample as of the held-out prompts, whatever the number of lists that are read (docs/retrieval.md).
_SAMPLE_COSINES = (0.3, 0.7)
_ALSO_SAID = 3
_TRAINING_PER_LIST = 40  # vectors a k-means centre; FAISS asks for at least 39
_TENSORS = ("centres", "offsets", "entries", "vectors")


class IndexFileError(ValueError):
    """An index file that cannot be used; the message is one sentence fit for an artist."""


class Index(Protocol):
    """Anything that finds the nearest embeddings."""

    def search(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and entries, both (count,), best first, for a query (384,); `count` is at most all entries."""
        ...


class FlatIndex:
    """Compares a query with every entry."""

    def __init__(self, vectors: np.ndarray) -> None:
        import faiss  # optional dependency, and slow to import

        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def search(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The exact answer; see `Index.search`."""
        scores, entries = self._index.search(query[None], count)
        return scores[0], entries[0]


class ListIndex:
    """Compares a query with the entries of the lists whose centres are nearest.

    Attributes:
        centres: (lists, width) float32, unit length.
        offsets: (lists + 1,) int64; list i is rows ``offsets[i]:offsets[i + 1]`` of `entries` and `vectors`.
        entries: (n,) int64, the entry of each row.
        vectors: (n, width) float32, memory-mapped where they come from a file.
        visits: how many lists a search reads.
    """

    def __init__(self, tensors: dict[str, np.ndarray], visits: int) -> None:
        self.centres, self.offsets = tensors["centres"], tensors["offsets"]
        self.entries, self.vectors = tensors["entries"], tensors["vectors"]
        self.visits = visits
        self._nearest_lists = FlatIndex(self.centres)

    def search(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The best entries of the lists that were read; see `Index.search`."""
        spans = self._spans(query, count)
        scores = np.concatenate([self.vectors[start:stop] @ query for start, stop in spans])
        entries = np.concatenate([self.entries[start:stop] for start, stop in spans])
        best = np.argpartition(-scores, count - 1)[:count]
        best = best[np.lexsort((entries[best], -scores[best]))]
        return scores[best], entries[best]

    def _spans(self, query: np.ndarray, count: int) -> list[tuple[int, int]]:
        """Rows of the lists to read: the usual number of lists, or more where a high rank needs more entries."""
        visits = self.visits
        while True:
            lists = self._nearest_lists.search(query, visits)[1]
            start, stop = self.offsets[lists], self.offsets[lists + 1]
            if np.sum(stop - start) >= count:
                return list(zip(start.tolist(), stop.tolist(), strict=True))
            visits = min(2 * visits, len(self.centres))


def make_index(vectors: np.ndarray, path: Path | None = None) -> Index:
    """The index that fits the number of entries.

    Args:
        vectors: (n, width) float32, unit length.
        path: where an inverted file is kept: one that is there is mapped, otherwise it is built and written. Without a
            path it is built in memory. Building takes minutes for a million entries.

    Raises:
        IndexFileError: the file is damaged or was made for other vectors; it is left as it is.
    """
    if len(vectors) <= FLAT_LIMIT:
        return FlatIndex(vectors)
    if path is None:
        return build_list_index(vectors)
    checksum = embeddings_checksum(vectors)
    if not path.exists():
        save_list_index(build_list_index(vectors), path, checksum)
    return load_list_index(path, checksum)


def embeddings_checksum(vectors: np.ndarray) -> str:
    """SHA-256 of embeddings: what binds an index file to its entries."""
    return hashlib.sha256(np.ascontiguousarray(vectors, dtype=np.float32).data).hexdigest()


def list_count(entries: int) -> int:
    """Lists for a number of entries: 4 sqrt(n), so that choosing lists and reading them cost about the same."""
    return max(1, round(4 * math.sqrt(entries)))


def build_list_index(vectors: np.ndarray, seed: int = 0) -> ListIndex:
    """Sort `vectors`, (n, width) float32 of unit length, into lists and measure how many a search has to read."""
    import faiss

    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    lists = list_count(len(vectors))
    training = faiss.Kmeans(
        vectors.shape[1], lists, niter=8, seed=seed, spherical=True, max_points_per_centroid=_TRAINING_PER_LIST
    )
    training.train(vectors)
    centres = np.ascontiguousarray(training.centroids, dtype=np.float32)
    nearest = faiss.IndexFlatIP(vectors.shape[1])
    nearest.add(centres)
    home = nearest.search(vectors, 1)[1][:, 0]
    order = np.argsort(home, kind="stable")
    tensors = {
        "centres": centres,
        "offsets": np.searchsorted(home[order], np.arange(lists + 1)).astype(np.int64),
        "entries": order.astype(np.int64),
        "vectors": vectors[order],
    }
    return ListIndex(tensors, _needed_visits(tensors, vectors, seed))


def _needed_visits(tensors: dict[str, np.ndarray], vectors: np.ndarray, seed: int) -> int:
    """The smallest power of two that answers `RECALL` of sample queries as the exact search does, or what `MOST_READ` allows."""
    import faiss

    rng = np.random.default_rng(seed)
    chosen = vectors[rng.choice(len(vectors), min(_SAMPLES, len(vectors)), replace=False)]
    queries = sample_queries(chosen, rng)
    truth = faiss.knn(queries, vectors, 1, metric=faiss.METRIC_INNER_PRODUCT)[0][:, 0]
    visits, lists = 4, len(tensors["centres"])
    while visits < lists:
        if share_found(ListIndex(tensors, visits), queries, truth) >= RECALL or reads_enough(
            visits, lists, len(vectors)
        ):
            return visits
        visits *= 2
    return lists


def share_found(index: Index, queries: np.ndarray, best: np.ndarray) -> float:
    """The share of queries, (n, width), for which the index finds an entry with the score `best`, (n,), of the exact search."""
    found = np.array([index.search(query, 1)[0][0] for query in queries])
    return float(np.mean(found >= best - 1e-6))


def reads_enough(visits: int, lists: int, entries: int) -> bool:
    """Whether twice as many lists would be more than a search may read."""
    return 2 * visits * entries > MOST_READ * lists


def sample_queries(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What prompts about some entries could be, in the absence of prompts.

    Each of `vectors`, (n, width) of unit length, is turned by a random angle, half of the way towards the mean of
    `_ALSO_SAID` of the others and half in no direction in particular: a prompt speaks of its entry, a little of things
    that other entries are about, and of what none of them is. A prompt turned at random alone is much easier to find.
    The cosine to the entry is drawn from `_SAMPLE_COSINES`.
    """
    others = _unit(np.mean([vectors[rng.permutation(len(vectors))] for _ in range(_ALSO_SAID)], axis=0))
    away = others + _unit(rng.standard_normal(vectors.shape).astype(np.float32))
    away = _unit(away - np.sum(away * vectors, axis=1, keepdims=True) * vectors)
    cosine = rng.uniform(*_SAMPLE_COSINES, (len(vectors), 1)).astype(np.float32)
    return cosine * vectors + np.sqrt(1 - cosine**2) * away


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def save_list_index(index: ListIndex, path: Path, checksum: str) -> None:
    """Write an inverted file for the embeddings with this checksum, wholly or not at all."""
    tensors = {name: np.ascontiguousarray(getattr(index, name)) for name in _TENSORS}
    metadata = {
        "format": INDEX_FORMAT,
        "version": INDEX_VERSION,
        "embeddings_sha256": checksum,
        "tensors_sha256": _digest(tensors),
        "visits": str(index.visits),
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_list_index(path: Path, checksum: str) -> ListIndex:
    """Map an inverted file.

    Raises:
        IndexFileError: it is not there, damaged, of another version, or was made for embeddings of another checksum.
    """
    try:
        metadata, mapped = map_tensors(path)
        if metadata.get("format") != INDEX_FORMAT or metadata.get("version") != INDEX_VERSION:
            raise IndexFileError(
                f"{path.name} is not an index that this version of the pack reads; delete it, and it is built again"
            )
        tensors = {name: mapped[name] for name in _TENSORS}
    except (OSError, KeyError, ValueError, AttributeError) as error:
        if isinstance(error, IndexFileError):
            raise
        raise IndexFileError(f"the index {path.name} cannot be read; delete it, and it is built again") from error
    if metadata.get("embeddings_sha256") != checksum:
        raise IndexFileError(f"the index {path.name} was made for other entries; delete it, and it is built again")
    if metadata.get("tensors_sha256") != _digest(tensors):
        raise IndexFileError(
            f"the index {path.name} is damaged (its checksum differs); delete it, and it is built again"
        )
    return ListIndex(tensors, int(metadata["visits"]))


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in _TENSORS:
        digest.update(name.encode())
        digest.update(tensors[name].data)
    return digest.hexdigest()
