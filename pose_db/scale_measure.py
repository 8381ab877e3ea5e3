"""What a collection of many synthetic entries takes to build, on the disk and in memory, and how well and fast it is searched.

    python -m comfyui_ensemble.pose_db.scale measure --entries 1000000 --folder FOLDER

Memory is that of two processes that search the same collection at the same time, on a thread each: what each holds for itself, and
the pages of the collection's files, of which each is charged its share ("proportional set size", Linux alone).
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from .code_index import CodeIndex, exact_best
from .collection import PoseCollection, open_collection
from .collection_shards import shard_folder
from .database import PoseDatabase
from .index import FLAT_LIMIT
from .scale import build_collection, shards_of
from .synthetic import SyntheticEmbeddings

SHARD = 4096
QUERIES = 1000
NEIGHBOURS = 10
PROCESSES = 2
SECONDS = 600  # that a process may search


@dataclass(frozen=True)
class SyntheticPoses:
    """A `scale_sources.Source` of vectors, with one point for a pose and a number for a prompt."""

    entries: int

    def digest(self) -> str:
        """See `Source`."""
        return f"synthetic {self.entries}"

    def count(self) -> int:
        """See `Source`."""
        return -(-self.entries // SHARD)

    def make(self, number: int) -> PoseDatabase:
        """See `Source`."""
        start, stop = number * SHARD, min((number + 1) * SHARD, self.entries)
        keypoints = np.zeros((stop - start, 18, 3), np.float32)
        keypoints[:, 0] = 256, 256, 1
        return PoseDatabase(
            name="synthetic",
            prompts=[f"entry {entry}" for entry in range(start, stop)],
            tags=[{"people": 1}] * (stop - start),
            canvases=np.full((stop - start, 2), 512, np.int64),
            person_offsets=np.arange(stop - start + 1, dtype=np.int64),
            keypoints=keypoints,
            embeddings=SyntheticEmbeddings(self.entries).entries(start, stop),
        )


def measure_collection(
    entries: int, folder: Path, workers: int, say: Callable[[str], object], flat_limit: int = FLAT_LIMIT
) -> dict[str, Any]:
    """Build a collection in `folder`, where it stays, and search it; a collection that is there is searched as it is."""
    path = folder / f"synthetic_{entries}.safetensors"
    source = SyntheticPoses(entries)
    start = time.perf_counter()
    build_collection(path, source.digest(), shards_of(source, workers, say), workers, say, flat_limit)
    built = time.perf_counter() - start
    peak = _peak_memory()
    searched = _in_processes(path, entries)  # before this process maps the collection too
    collection = open_collection(path)
    return {
        "entries": entries,
        "workers": workers,
        "build_seconds": built,
        "build_memory_mib": peak,
        "index_bytes": path.stat().st_size,
        "shard_bytes": sum(file.stat().st_size for file in shard_folder(path).glob("*.poses")),
        **index_figures(collection.index),
        **measure_recall(collection, SyntheticEmbeddings(entries).queries(QUERIES)),
        **searched,
    }


def _peak_memory() -> float | None:
    """MiB, pages of files included: the most that this process had; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def measure_recall(collection: PoseCollection, queries: np.ndarray) -> dict[str, Any]:
    """Against comparing all: of the best entry and of the best ten, for queries (q, 384) of unit length."""
    best = exact_best(queries, collection.shards.blocks(), NEIGHBOURS)
    found = [collection.index.search(query, NEIGHBOURS)[1] for query in queries]
    first = np.mean([entries[0] == row[0] for entries, row in zip(found, best, strict=True)])
    ten = np.mean([len(set(entries.tolist()) & set(row.tolist())) for entries, row in zip(found, best, strict=True)])
    return {"queries": len(queries), "recall_at_1": float(first), "recall_at_10": float(ten) / NEIGHBOURS}


def index_figures(index: Any) -> dict[str, int]:
    """How a collection is searched; zeros where every entry is compared."""
    if not isinstance(index, CodeIndex):
        return {"lists": 0, "lists_read": 0, "candidates": 0}
    return {
        "lists": len(index.lists.quantizer.centres),
        "lists_read": index.visits,
        "candidates": index.candidates,
    }


def _in_processes(path: Path, entries: int) -> dict[str, Any]:
    """Latency and memory of processes that search at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(target=_search, args=(path, entries, number, barrier, answers)) for number in range(PROCESSES)
    ]
    with _one_thread_each():
        for process in processes:
            process.start()
    found = [answers.get(timeout=SECONDS) for _ in processes]
    for process in processes:
        process.join()
    return {
        "processes": PROCESSES,
        "open_seconds": max(one["open"] for one in found),
        "median_ms": 1000 * float(np.median([one["seconds"] for one in found])),
        "p95_ms": 1000 * float(np.percentile([one["seconds"] for one in found], 95)),
        "processor_ms": 1000 * float(np.median([one["busy"] for one in found])),
        "memory_mib": [{name: round(value, 1) for name, value in one["memory"].items()} for one in found],
    }


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile compute on one thread: others would spin, and count as processor time."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _search(path: Path, entries: int, number: int, barrier: Barrier, answers: Any) -> None:
    """One process: other queries than the other's, one after the other."""
    queries = SyntheticEmbeddings(entries).queries(PROCESSES * QUERIES)[number::PROCESSES]
    before = memory_of(path)
    start = time.perf_counter()
    index = open_collection(path).index
    index.search(queries[0], NEIGHBOURS)
    opened = time.perf_counter() - start
    barrier.wait(SECONDS)
    seconds, busy = [], []
    for query in queries:
        start, work = time.perf_counter(), time.process_time()
        index.search(query, NEIGHBOURS)
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - work)
    barrier.wait(SECONDS)
    memory = memory_of(path)
    barrier.wait(SECONDS)  # nobody ends before all have looked: shares are of those that live
    memory["own_growth"] = memory["own"] - before["own"]
    answers.put({"open": opened, "seconds": seconds, "busy": busy, "memory": memory})


def memory_of(path: Path) -> dict[str, float]:
    """MiB of this process: anonymous memory of its own; the collection's pages that it has mapped (`mapped_rss`), and its
    share of them (`mapped_pss`); all of it together (`rss`, `pss`). Empty where the system does not say (Linux does)."""
    smaps = Path("/proc/self/smaps")
    if not smaps.is_file():
        return {"own": 0.0}
    mapped = {"Rss": 0, "Pss": 0}
    ours = False
    for line in smaps.read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(path.with_suffix("")) in line
        elif ours and line.split(":")[0] in mapped:
            mapped[line.split(":")[0]] += int(line.split()[1])
    total = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(encoding="utf-8"), re.M))
    kib = {
        "own": int(total["Anonymous"]),
        "mapped_rss": mapped["Rss"],
        "mapped_pss": mapped["Pss"],
        "rss": int(total["Rss"]),
        "pss": int(total["Pss"]),
    }
    return {name: value / 1024 for name, value in kib.items()}
