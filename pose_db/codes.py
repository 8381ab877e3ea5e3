"""Vectors as lists of short codes: an inverted file with product quantisation.

A vector v is put into the list whose centre c it is most like. What is left, v - c, is cut into M parts, and each part is
replaced by the number of the nearest of 256 prototypes: M bytes in place of 4 times its width. The inner product with a query
q is then q . c plus M numbers of a table that depends on q alone.

Source: Jegou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", IEEE TPAMI 33(1), 2011: sections II and
IV, with the inner product in the place of the distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

PARTS = 48  # codes of a vector; 384 numbers are 48 parts of 8
PROTOTYPES = 256  # of a part: a byte
TRAINING_PER_LIST = 40  # vectors a centre; FAISS asks for at least 39
_TRAINING_OF_PARTS = 50_000  # vectors that prototypes are found from, at most
_ROUNDS = 8  # of k-means for the centres


@dataclass(frozen=True)
class Quantizer:
    """What codes stand for.

    Attributes:
        centres: (lists, width) float32, unit length.
        prototypes: (M, 256, width / M) float32.
    """

    centres: np.ndarray
    prototypes: np.ndarray


def train_quantizer(sample: np.ndarray, lists: int, parts: int = PARTS, seed: int = 0, threads: int = 1) -> Quantizer:
    """Centres and prototypes for vectors such as `sample`, (n, width) float32 of unit length, n at least 256 and `lists`."""
    import faiss  # optional dependency, and slow to import

    width = sample.shape[1]
    some = np.random.default_rng(seed).permutation(len(sample))[:_TRAINING_OF_PARTS]
    with _threads(threads):
        kmeans = faiss.Kmeans(width, lists, niter=_ROUNDS, seed=seed, spherical=True, max_points_per_centroid=2**30)
        kmeans.cp.min_points_per_centroid = 1
        kmeans.train(sample)
        centres = np.ascontiguousarray(kmeans.centroids, dtype=np.float32)
        rest = sample[some] - centres[_nearest(centres, sample[some])]
        quantizer = faiss.ProductQuantizer(width, parts, 8)
        quantizer.cp.seed = seed
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(np.ascontiguousarray(rest))
    prototypes = faiss.vector_to_array(quantizer.centroids).reshape(parts, PROTOTYPES, width // parts)
    return Quantizer(centres, np.ascontiguousarray(prototypes, dtype=np.float32))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """FAISS uses so many threads inside the block."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _nearest(centres: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(n,) int32, for every vector, (n, width) float32, the list that it belongs to."""
    import faiss

    search = faiss.IndexFlatIP(centres.shape[1])
    search.add(centres)
    return search.search(vectors, 1)[1][:, 0].astype(np.int32)


def encode(quantizer: Quantizer, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lists (n,) int32 and the codes (n, M) uint8 of vectors, (n, width) float32 of unit length, on one thread."""
    import faiss

    parts, _, part_width = quantizer.prototypes.shape
    coder = faiss.ProductQuantizer(parts * part_width, parts, 8)
    faiss.copy_array_to_vector(quantizer.prototypes.ravel(), coder.centroids)
    with _threads(1):
        lists = _nearest(quantizer.centres, vectors)
        return lists, coder.compute_codes(np.ascontiguousarray(vectors - quantizer.centres[lists]))


def part_products(prototypes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(M, 256) float32: every prototype's inner product with its part of a query, (width,)."""
    parts, _, part_width = prototypes.shape
    return np.einsum("mpw,mw->mp", prototypes, query.reshape(parts, part_width))


def code_products(products: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(n,) float32: what codes, (M, n) uint8, say about q . (v - c), given the query's `part_products`."""
    found = np.zeros(codes.shape[1], np.float32)
    for of_part, part in zip(products, codes, strict=True):  # a part's prototypes stay in the processor's cache
        found += of_part.take(part)
    return found
