"""Puts a collection's embeddings into lists of codes, a shard at a time.

Of all embeddings a sample is in memory, to find centres and prototypes, and one shard in each worker. What is done is kept in a
folder beside the shards that is named by them: a killed run goes on, and for other shards it begins anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from ..models_info.files import whole_file
from .code_index import Lists, sort_into_lists, tune
from .codes import TRAINING_PER_LIST, Quantizer, encode, train_quantizer
from .collection import open_collection, save_collection
from .collection_shards import ShardRecord, Shards, shard_folder
from .index import list_count
from .scale_workers import run_jobs

SEED = 0
Say = Callable[[str], object]


def write_index(
    out: Path,
    records: Sequence[ShardRecord],
    info: dict[str, str],
    workers: int,
    say: Say,
    flat_limit: int,
) -> None:
    """Write the file of a collection whose shards are there; one of the same shards is left as it is.

    Args:
        workers: processes.
        flat_limit: entries up to which all are compared and nothing is put into lists.

    Raises:
        PoseDatabaseError: a shard is damaged.
        WorkersLost: see `run_jobs`.
    """
    if out.exists() and open_collection(out).shards.records == list(records):
        return
    shards = Shards(shard_folder(out), records)
    if len(shards) <= flat_limit:
        save_collection(out, records, info)
        return
    folder = shard_folder(out) / f"index-{_digest(records)}"
    folder.mkdir(exist_ok=True)
    for partial_file in folder.glob(".*.partial"):
        partial_file.unlink()
    lists = _lists(folder, shards, workers, say)
    say("looking how many lists a search must read")
    visits, candidates = tune(lists, shards.blocks, shards.embeddings_of, SEED)
    save_collection(out, records, info, lists, visits, candidates)
    for old in shard_folder(out).glob("index-*"):  # this one, and those of shards that have changed since
        shutil.rmtree(old)


def _digest(records: Sequence[ShardRecord]) -> str:
    return hashlib.sha256(json.dumps([astuple(record) for record in records]).encode()).hexdigest()[:16]


def _lists(folder: Path, shards: Shards, workers: int, say: Say) -> Lists:
    quantizer = _quantizer(folder / "quantizer.safetensors", shards, workers, say)
    total = len(shards.records)
    todo = [position for position in range(total) if not _codes_path(folder, position).is_file()]
    made = total - len(todo)
    for _position, _done in run_jobs(partial(_encode_shard, folder, shards), todo, workers):
        made += 1
        say(f"shard {made}/{total} is in lists")
    return sort_into_lists(quantizer, _read_codes(folder, total))


def _quantizer(path: Path, shards: Shards, workers: int, say: Say) -> Quantizer:
    """Centres and prototypes, found once."""
    if not path.is_file():
        lists = list_count(len(shards))
        say(f"finding {lists} lists for {len(shards)} entries")
        count = min(len(shards), TRAINING_PER_LIST * lists)
        chosen = np.sort(np.random.default_rng(SEED).choice(len(shards), count, replace=False))
        quantizer = train_quantizer(shards.embeddings_of(chosen), lists, seed=SEED, threads=workers)
        _save(path, {"centres": quantizer.centres, "prototypes": quantizer.prototypes})
    return Quantizer(**load_file(path))


def _codes_path(folder: Path, position: int) -> Path:
    return folder / f"{position:06d}.codes"


def _encode_shard(folder: Path, shards: Shards, position: int) -> None:
    quantizer = Quantizer(**load_file(folder / "quantizer.safetensors"))
    homes, codes = encode(quantizer, shards.block(position))
    _save(_codes_path(folder, position), {"homes": homes, "codes": codes})


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with whole_file(path) as temporary:
        save_file(tensors, temporary)


def _read_codes(folder: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for position in range(count):
        tensors = load_file(_codes_path(folder, position))
        yield tensors["homes"], tensors["codes"]
