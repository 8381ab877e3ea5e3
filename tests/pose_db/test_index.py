"""The index against the exact search."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from comfyui_ensemble.pose_db.evaluate import measure_index
from comfyui_ensemble.pose_db.index import (
    FLAT_LIMIT,
    FlatIndex,
    IndexFileError,
    ListIndex,
    build_list_index,
    embeddings_checksum,
    load_list_index,
    make_index,
    save_list_index,
)
from comfyui_ensemble.pose_db.synthetic import SyntheticEmbeddings


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return SyntheticEmbeddings(6000).entries(0, 6000)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return SyntheticEmbeddings(6000).queries(200)


@pytest.fixture(scope="module")
def saved(vectors, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "poses.index"
    save_list_index(build_list_index(vectors), path, embeddings_checksum(vectors))
    return path


def exact(vectors: np.ndarray, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Every inner product in float64, sorted."""
    scores = vectors.astype(np.float64) @ query.astype(np.float64)
    order = np.argsort(-scores, kind="stable")[:count]
    return scores[order], order


def test_flat_is_exact(vectors, queries):
    index = make_index(vectors)
    assert isinstance(index, FlatIndex)
    for query in queries[:20]:
        scores, entries = index.search(query, 25)
        wanted_scores, wanted = exact(vectors, query, 25)
        assert entries.tolist() == wanted.tolist()
        np.testing.assert_allclose(scores, wanted_scores, atol=1e-5)


def test_lists_give_exact_scores_and_the_best_entry(vectors, queries, saved):
    index = load_list_index(saved, embeddings_checksum(vectors))
    hits = 0
    for query in queries:
        scores, entries = index.search(query, 5)
        np.testing.assert_allclose(scores, vectors[entries] @ query, atol=1e-5)
        assert (np.diff(scores) <= 0).all()
        hits += entries[0] == exact(vectors, query, 1)[1][0]
    assert hits >= 0.99 * len(queries)


def test_every_list_read_is_the_exact_search(vectors, queries, saved):
    index = load_list_index(saved, embeddings_checksum(vectors))
    index.visits = len(index.centres)
    for query in queries[:20]:
        assert index.search(query, 30)[1].tolist() == exact(vectors, query, 30)[1].tolist()


@pytest.mark.parametrize("count", [1, 1000, 6000])
def test_any_rank_is_answered(vectors, queries, saved, count):
    scores, entries = load_list_index(saved, embeddings_checksum(vectors)).search(queries[0], count)
    assert len(scores) == len(set(entries.tolist())) == count


def test_vectors_without_structure_read_more_lists(queries):
    """Directions at random have no near neighbours to group: the build notices and reads enough lists to stay right."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 384), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = build_list_index(vectors)
    asked = 0.6 * vectors + 0.8 * np.roll(vectors, 7, axis=0)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    hits = sum(index.search(query, 1)[1][0] == exact(vectors, query, 1)[1][0] for query in asked[:300])
    assert hits >= 0.97 * 300


def test_the_file_is_mapped_not_read(saved, vectors):
    index = load_list_index(saved, embeddings_checksum(vectors))
    assert isinstance(index.vectors, np.memmap) and isinstance(index.centres, np.memmap)
    assert not index.vectors.flags.writeable


def test_an_index_of_other_entries_is_refused(saved, vectors):
    other = vectors.copy()
    other[17] = other[18]
    with pytest.raises(IndexFileError, match=r"poses\.index was made for other entries; delete it"):
        load_list_index(saved, embeddings_checksum(other))


@pytest.mark.parametrize("keep", [0, 5, 300, 0.5, -1])
def test_a_truncated_file_is_refused(saved, vectors, tmp_path, keep):
    data = saved.read_bytes()
    path = tmp_path / "cut.index"
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(IndexFileError, match=r"cut\.index .*; delete it, and it is built again"):
        load_list_index(path, embeddings_checksum(vectors))


def test_a_damaged_file_is_refused(saved, vectors, tmp_path):
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "bad.index"
    path.write_bytes(data)
    with pytest.raises(IndexFileError, match="damaged"):
        load_list_index(path, embeddings_checksum(vectors))


def test_a_file_of_another_kind_is_refused(saved, vectors, tmp_path):
    path = tmp_path / "other.index"
    save_file(load_file(saved), path, metadata={"format": "something else"})
    with pytest.raises(IndexFileError, match="not an index"):
        load_list_index(path, embeddings_checksum(vectors))


def test_large_databases_keep_their_index_in_a_file(vectors, queries, tmp_path, monkeypatch):
    monkeypatch.setattr("comfyui_ensemble.pose_db.index.FLAT_LIMIT", 1000)
    path = tmp_path / "big.index"
    first = make_index(vectors, path)
    assert isinstance(first, ListIndex)
    written = path.read_bytes()
    assert make_index(vectors, path).search(queries[0], 3)[1].tolist() == first.search(queries[0], 3)[1].tolist()
    assert path.read_bytes() == written  # opened, not built again
    grown = np.concatenate([vectors, vectors[:1]])
    with pytest.raises(IndexFileError, match="made for other entries"):
        make_index(grown, path)
    assert path.read_bytes() == written
    assert [file.name for file in tmp_path.iterdir()] == ["big.index"]


def test_above_the_flat_limit(tmp_path):
    """120,000 entries: recall@1 against the exact search; the same at a million is in docs/retrieval.md."""
    figures = measure_index(FLAT_LIMIT + 20_000, tmp_path, queries=300)
    assert figures["recall_at_1"] >= 0.99
