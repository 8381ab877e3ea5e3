"""Search in lists of codes, the best candidates compared exactly (ASTRA, Eq. 2, for millions of entries).

The lists whose centres lie nearest to the query are read, their codes give approximate scores, and the best of these are
compared with the embeddings themselves. A score is therefore exact; what can be missed is a neighbour in an unread list, or one
that its code ranks too low. How many lists are read and how many candidates compared is measured when the index is built (`tune`).

Nothing is copied into a process: centres, codes and embeddings are read where they are mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .codes import Quantizer, code_products, part_products
from .index import RECALL, reads_enough, sample_queries

LEAST_VISITS = 4
CANDIDATES = (32, 64, 128, 256, 512, 1024)
SAMPLES = 500
NEIGHBOURS, RECALL_OF_NEIGHBOURS = 10, 0.99

# Entries (n,) -> their embeddings (n, width) float32, unit length.
Fetch = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Lists:
    """Codes sorted into lists.

    Attributes:
        quantizer: what they stand for.
        offsets: (lists + 1,) int64; list i is ``entries[offsets[i]:offsets[i + 1]]``.
        entries: (n,) int32, list after list, ascending within each.
        codes: (n * M,) uint8, list after list, each as (M, entries of the list).
    """

    quantizer: Quantizer
    offsets: np.ndarray
    entries: np.ndarray
    codes: np.ndarray

    def nearest(self, query: np.ndarray, visits: int, least: int) -> np.ndarray:
        """The numbers of the `visits` lists whose centres lie nearest, or of more until they hold `least` entries."""
        scores = self.quantizer.centres @ query
        while True:
            found = _best(scores, visits)
            if visits >= len(scores) or int((self.offsets[found + 1] - self.offsets[found]).sum()) >= least:
                return found
            visits = min(2 * visits, len(scores))

    def approximate(self, query: np.ndarray, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores by the codes, and entries, of all that is in some lists."""
        spans = [(int(self.offsets[number]), int(self.offsets[number + 1])) for number in lists.tolist()]
        parts = len(self.quantizer.prototypes)
        codes = [self.codes[start * parts : stop * parts].reshape(parts, stop - start) for start, stop in spans]
        scores = code_products(part_products(self.quantizer.prototypes, query), np.concatenate(codes, axis=1))
        scores += np.repeat(self.quantizer.centres[lists] @ query, [stop - start for start, stop in spans])
        return scores, np.concatenate([self.entries[start:stop] for start, stop in spans])


class CodeIndex:
    """An `index.Index` for large collections.

    Attributes:
        visits: how many lists a search reads.
        candidates: how many entries it compares exactly; four times the wanted ones where that is more.
    """

    def __init__(self, lists: Lists, fetch: Fetch, visits: int, candidates: int) -> None:
        self.lists, self.visits, self.candidates = lists, visits, candidates
        self._fetch = fetch

    def search(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `index.Index.search`."""
        wanted = max(self.candidates, 4 * count)
        scores, entries = self.lists.approximate(query, self.lists.nearest(query, self.visits, count))
        entries = np.sort(entries[_best(scores, wanted)])
        exact = self._fetch(entries) @ query
        order = np.lexsort((entries, -exact))[:count]
        return exact[order], entries[order].astype(np.int64)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the `count` highest scores, in no order."""
    return np.arange(len(scores)) if count >= len(scores) else np.argpartition(-scores, count - 1)[:count]


def sort_into_lists(quantizer: Quantizer, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Lists:
    """The lists and codes of `codes.encode`, as they come for entries 0, 1, ... in several parts, list by list."""
    homes, codes = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(homes, kind="stable")
    counts = np.bincount(homes, minlength=len(quantizer.centres))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    blocks = [codes[order[start:stop]].T.reshape(-1) for start, stop in pairwise(offsets)]
    return Lists(quantizer, offsets, order.astype(np.int32), np.concatenate(blocks))


def tune(lists: Lists, blocks: Callable[[], Iterable[np.ndarray]], fetch: Fetch, seed: int) -> tuple[int, int]:
    """How many lists to read and how many candidates to compare.

    `RECALL` of sample queries must find the best entry, and of their best `NEIGHBOURS` entries `RECALL_OF_NEIGHBOURS` must be
    found; but no search reads more than `MOST_READ` entries' codes.

    Args:
        blocks: all embeddings, (n_i, width) float32, in order, anew at every call.
    """
    rng = np.random.default_rng(seed)
    total = len(lists.entries)
    chosen = np.sort(rng.choice(total, min(SAMPLES, total), replace=False))
    queries = sample_queries(fetch(chosen), rng)
    best = exact_best(queries, blocks(), min(NEIGHBOURS, total))
    visits = LEAST_VISITS
    while True:
        ranks = np.stack([_ranks(lists, query, visits, wanted) for query, wanted in zip(queries, best, strict=True)])
        for candidates in CANDIDATES:
            found = ranks < candidates
            if found[:, 0].mean() >= RECALL and found.mean() >= RECALL_OF_NEIGHBOURS:
                return visits, candidates
        if visits >= len(lists.quantizer.centres):
            return visits, CANDIDATES[-1]
        if reads_enough(visits, len(lists.quantizer.centres), total):
            return visits, _enough_candidates(ranks)
        visits *= 2


def _enough_candidates(ranks: np.ndarray) -> int:
    """The fewest that find `RECALL_OF_NEIGHBOURS` of what the most would find."""
    shares = np.array([(ranks < candidates).mean() for candidates in CANDIDATES])
    return CANDIDATES[int(np.argmax(shares >= RECALL_OF_NEIGHBOURS * shares[-1]))]


def exact_best(queries: np.ndarray, blocks: Iterable[np.ndarray], count: int) -> np.ndarray:
    """(q, count) the best entries of every query, best first, by comparing all, block by block."""
    scores = np.full((len(queries), 0), -np.inf, np.float32)
    entries = np.zeros((len(queries), 0), np.int64)
    start = 0
    for block in blocks:
        scores = np.concatenate([scores, queries @ block.T], axis=1)
        own = np.broadcast_to(np.arange(start, start + len(block)), (len(queries), len(block)))
        entries = np.concatenate([entries, own], axis=1)
        if scores.shape[1] > count:
            best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            scores, entries = np.take_along_axis(scores, best, 1), np.take_along_axis(entries, best, 1)
        start += len(block)
    order = np.lexsort((entries, -scores), axis=1)
    return np.take_along_axis(entries, order, 1)


def _ranks(lists: Lists, query: np.ndarray, visits: int, wanted: np.ndarray) -> np.ndarray:
    """(k,) for every entry of `wanted`, how many entries of the lists that are read have a higher approximate score; infinite
    where it is not among them."""
    scores, entries = lists.approximate(query, lists.nearest(query, visits, 1))
    own = np.array([scores[entries == entry].max(initial=-np.inf) for entry in wanted])
    return np.where(np.isin(wanted, entries), (scores > own[:, None]).sum(axis=1), np.inf)
