"""Tensors of a safetensors file, memory-mapped: opening reads the header alone, and processes share what they touch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

_KINDS = {
    "F16": np.float16,
    "F32": np.float32,
    "I32": np.int32,
    "I64": np.int64,
    "U8": np.uint8,
    "U16": np.uint16,
}
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def map_tensors(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the tensors of a file, read-only.

    Raises:
        ValueError: it is cut off or no safetensors file.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _LONGEST_HEADER else b""
        size = file.seek(0, 2)
    try:
        header: dict[str, Any] = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _mapped(path, 8 + length, size, entry) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is damaged ({error})") from None
    return metadata, tensors


def _mapped(path: Path, start: int, size: int, entry: dict[str, Any]) -> np.ndarray:
    kind, shape = np.dtype(_KINDS[entry["dtype"]]), tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != kind.itemsize * math.prod(shape) or start + end > size:
        raise ValueError("it is cut off")
    if begin == end:
        return np.zeros(shape, kind)  # nothing to map
    return np.memmap(path, kind, "r", start + begin, shape)
