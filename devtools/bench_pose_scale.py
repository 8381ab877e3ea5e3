"""A million synthetic poses as a collection: rows for ``dev.py bench``.

The collection is built anew, which takes minutes and 1 GB of disk, and searched by two processes at once, on a thread each (see
``scale_measure``). A search is timed in processor time, which other work on the machine disturbs little.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
from comfyui_ensemble.pose_db.scale_measure import measure_collection
from devtools.bench_row import AT_LEAST, SHARE, Row

ENTRIES, WORKERS = 1_000_000, 2
MB = 1_000_000
PROMISED_MS = 5.0
PROMISED_RECALL = 0.99


def rows() -> list[Row]:
    """Search, recall, size, memory and build time."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure_collection(ENTRIES, Path(folder), WORKERS, lambda text: None)
    title = f"{ENTRIES:,} poses"
    measured = [
        Row("pose_scale.search", f"{title}, a search alone", "ms", found["processor_ms"], PROMISED_MS),
        Row(
            "pose_scale.recall_1", f"{title}, best entry found", SHARE, found["recall_at_1"], PROMISED_RECALL, AT_LEAST
        ),
        Row("pose_scale.recall_10", f"{title}, best ten found", SHARE, found["recall_at_10"]),
        Row("pose_scale.build", f"{title}, building with {WORKERS} workers", "s", found["build_seconds"]),
        Row("pose_scale.index", f"{title}, index on disk", "MB", found["index_bytes"] / MB, device="any"),
        Row("pose_scale.disk", f"{title}, entries on disk", "MB", found["shard_bytes"] / MB, device="any"),
    ]
    memory = found["memory_mib"]
    if all("mapped_pss" in one for one in memory):  # Linux says
        shared = max(one["mapped_pss"] / one["mapped_rss"] for one in memory)
        name = f"{title}, a process's share of the mapped pages when {found['processes']} search"
        measured += [
            Row("pose_scale.own_memory", f"{title}, a process's own memory", "MiB", max(one["own"] for one in memory)),
            Row("pose_scale.shared", name, SHARE, shared),
        ]
    return measured
