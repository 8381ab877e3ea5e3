"""Codes and their products, against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from comfyui_ensemble.pose_db.code_index import CodeIndex, exact_best, sort_into_lists, tune
from comfyui_ensemble.pose_db.codes import Quantizer, code_products, encode, part_products, train_quantizer
from comfyui_ensemble.pose_db.synthetic import SyntheticEmbeddings

LISTS, PARTS, WIDTH = 40, 48, 8


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return SyntheticEmbeddings(2500).entries(0, 2500)


@pytest.fixture(scope="module")
def quantizer(vectors) -> Quantizer:
    return train_quantizer(vectors, LISTS, PARTS)


def test_a_vector_goes_to_the_list_and_the_prototypes_that_are_nearest(vectors, quantizer):
    homes, codes = encode(quantizer, vectors[:50])
    centres, prototypes = quantizer.centres.astype(np.float64), quantizer.prototypes.astype(np.float64)
    for vector, home, code in zip(vectors[:50].astype(np.float64), homes, codes, strict=True):
        products = [float(sum(vector * centre)) for centre in centres]
        assert products[home] == pytest.approx(max(products), abs=1e-6)
        rest = (vector - centres[home]).reshape(PARTS, -1)
        for part in range(PARTS):
            distances = [float(sum((rest[part] - prototype) ** 2)) for prototype in prototypes[part]]
            assert distances[code[part]] == pytest.approx(min(distances), abs=1e-7)


def test_products_of_codes(vectors, quantizer):
    """q . (c + decoded rest), part by part."""
    homes, codes = encode(quantizer, vectors[:20])
    query = vectors[100]
    found = quantizer.centres[homes] @ query + code_products(part_products(quantizer.prototypes, query), codes.T)
    for number in range(20):
        expected = 0.0
        for part in range(PARTS):
            decoded = quantizer.prototypes[part, codes[number, part]].astype(np.float64)
            place = slice(part * WIDTH, part * WIDTH + WIDTH)
            expected += float(
                (query[place].astype(np.float64) * (quantizer.centres[homes[number], place] + decoded)).sum()
            )
        assert found[number] == pytest.approx(expected, abs=1e-5)


def test_lists_hold_every_entry_once_in_order(vectors, quantizer):
    parts = [encode(quantizer, block) for block in (vectors[:1500], vectors[1500:1501], vectors[1501:])]
    lists = sort_into_lists(quantizer, parts)
    homes, codes = encode(quantizer, vectors)
    assert sorted(lists.entries.tolist()) == list(range(len(vectors)))
    for number in range(LISTS):
        mine = lists.entries[lists.offsets[number] : lists.offsets[number + 1]]
        assert mine.tolist() == np.flatnonzero(homes == number).tolist()
        block = lists.codes[PARTS * lists.offsets[number] : PARTS * lists.offsets[number + 1]].reshape(PARTS, -1)
        assert np.array_equal(block.T, codes[mine])


def test_search_is_exact_where_it_looks(vectors, quantizer):
    """All lists and all candidates: the exact search. As tuned: the best entry nearly always, and exact scores."""
    lists = sort_into_lists(quantizer, [encode(quantizer, vectors)])
    queries = SyntheticEmbeddings(2500).queries(300)
    best = exact_best(queries, [vectors[:1000], vectors[1000:]], 10)
    whole = CodeIndex(lists, lambda entries: vectors[entries], LISTS, len(vectors))
    for query, wanted in zip(queries[:30], best, strict=False):
        scores, entries = whole.search(query, 10)
        assert entries.tolist() == wanted.tolist() == np.argsort(-(vectors @ query), kind="stable")[:10].tolist()
        np.testing.assert_allclose(scores, vectors[entries] @ query, atol=1e-6)
    visits, candidates = tune(lists, lambda: [vectors], lambda entries: vectors[entries], 0)
    tuned = CodeIndex(lists, lambda entries: vectors[entries], visits, candidates)
    hits = sum(tuned.search(query, 1)[1][0] == wanted[0] for query, wanted in zip(queries, best, strict=True))
    assert visits < LISTS and hits >= 0.99 * len(queries)


def test_vectors_without_structure_are_found_too():
    """Directions at random cannot be grouped: more lists are read, more candidates compared."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2000, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    quantizer = train_quantizer(vectors, 20, PARTS)
    lists = sort_into_lists(quantizer, [encode(quantizer, vectors)])
    index = CodeIndex(lists, lambda entries: vectors[entries], *tune(lists, lambda: [vectors], lambda e: vectors[e], 0))
    asked = 0.6 * vectors + 0.8 * np.roll(vectors, 7, axis=0)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    hits = sum(index.search(query, 1)[1][0] == (vectors @ query).argmax() for query in asked[:300])
    assert hits >= 0.97 * 300


@pytest.mark.parametrize("count", [1, 500, 2500])
def test_any_rank_is_answered(vectors, quantizer, count):
    lists = sort_into_lists(quantizer, [encode(quantizer, vectors)])
    scores, entries = CodeIndex(lists, lambda found: vectors[found], 4, 32).search(vectors[0], count)
    assert len(scores) == len(set(entries.tolist())) == count
    assert (np.diff(scores) <= 0).all()
