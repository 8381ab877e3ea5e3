"""Collections of millions of poses: made shard by shard, killed and continued at will (see ``collection``).

Every shard that is whole is in a journal before the next begins, as every job of a batch is; what a killed run had not written
down is made again. At the end all embeddings are put into lists of codes, also shard by shard, every part a file of its own that
is whole or not there. Shards and codes depend on the plan alone, not on how many workers there are or how often it was killed.

    python dev.py python -m comfyui_ensemble.pose_db.scale --help
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ..batch.journal import Event, open_journal
from .collection import is_collection, open_collection
from .collection_index import write_index
from .collection_shards import ShardRecord, shard_folder, shard_path
from .database import HEADER, PoseDatabaseError, save_database
from .index import FLAT_LIMIT
from .mapped_file import map_tensors
from .scale_sources import Source
from .scale_workers import run_jobs

KIND = "ensemble-pose-collection"  # of its journal
PLAN_KEY = "plan"  # in a collection's info: the digest of what made it

# The folder for shards, and the numbers of those that are there -> the others, as they come.
MakeShards = Callable[[Path, set[int]], Iterator[ShardRecord]]
Say = Callable[[str], object]


class ScaleError(RuntimeError):
    """A collection cannot be made; the message is one sentence without its full stop."""


def build_collection(
    out: Path, plan: str, make: MakeShards, workers: int, say: Say, flat_limit: int = FLAT_LIMIT
) -> int:
    """Begin a collection, or go on with one; returns its entries.

    Args:
        out: the file, ``NAME.safetensors``; shards and journal are in a folder beside it.
        plan: identifies what the collection holds.
        make: makes the shards that are missing. Where it leaves some out, the collection is made of the others.
        workers: processes that put embeddings into lists.
        flat_limit: entries up to which all are compared and nothing is put into lists.

    Raises:
        ScaleError, JournalError, PoseDatabaseError, WorkersLost, OSError: it cannot begin or go on; what is done so far is kept.
    """
    if out.exists() and not (is_collection(out) and open_collection(out).info.get(PLAN_KEY) == plan):
        raise ScaleError(f"{out} is there and another run made it; choose another name")
    folder = shard_folder(out)
    with open_journal(folder, plan, KIND) as journal:
        for partial_file in folder.glob(".*.partial"):
            partial_file.unlink()
        records = finished_shards(journal.events, folder)
        for record in make(folder, set(records)):
            journal.write("shard", **asdict(record))
            records[record.number] = record
        shards = [records[number] for number in sorted(records) if records[number].entries]
        if not shards:
            raise ScaleError("no entry was made, so there is nothing to search")
        write_index(out, shards, {PLAN_KEY: plan}, workers, say, flat_limit)
    return sum(record.entries for record in shards)


def finished_shards(events: Sequence[Event], folder: Path) -> dict[int, ShardRecord]:
    """The shards that a journal has and that are still there, by number."""
    records = {}
    for event in events:
        if event["event"] == "shard":
            record = ShardRecord(event["number"], event["entries"], event["sha256"])
            if read_record(folder, record.number) == record:
                records[record.number] = record
    return records


def read_record(folder: Path, number: int) -> ShardRecord | None:
    """What a shard's file says of itself; None where it is not there or cannot be read."""
    try:
        metadata, tensors = map_tensors(shard_path(folder, number))
        return ShardRecord(number, len(tensors["embeddings"]), json.loads(metadata[HEADER])["index_sha256"])
    except (OSError, ValueError, KeyError):
        return None


def shards_of(source: Source, workers: int, say: Say) -> MakeShards:
    """Shards from a source, made by several processes."""

    def make(folder: Path, done: set[int]) -> Iterator[ShardRecord]:
        todo = [number for number in range(source.count()) if number not in done]
        total, made = source.count(), len(done)
        for _number, record in run_jobs(partial(make_shard, source, folder), todo, workers):
            made += 1
            say(f"shard {made}/{total}: {record.entries} entries")
            yield record

    return make


def make_shard(source: Source, folder: Path, number: int) -> ShardRecord:
    """Make one shard and write it."""
    save_database(source.make(number), shard_path(folder, number))
    record = read_record(folder, number)
    if record is None:
        raise PoseDatabaseError(f"{shard_path(folder, number)} was written and cannot be read again")
    return record


if __name__ == "__main__":
    from .scale_cli import main

    raise SystemExit(main())
