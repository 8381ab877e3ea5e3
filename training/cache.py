"""Encoded pictures and captions, kept in memory and, if wanted, in a folder, so that each is encoded once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..models_info.files import whole_file

MEMORY = 1 << 30  # bytes kept by default
HEADER = "ensemble_encoding"  # the metadata's only key: a JSON object with the entry's name and its content's digest

Tensors = dict[str, torch.Tensor]


class EncodedCache:
    """Makes an encoding once. May be asked from several threads; the same encoding is never made twice at once.

    The tensors it gives belong to all who ask: do not change them in place.

    Args:
        encoder: what the encodings depend on besides their keys: the encoders' weights, their precision. Encodings of another
            encoder are never given.
        folder: where encodings outlive the run; one safetensors file each. None keeps them in memory alone. A folder that cannot
            be written to any more (a full disk) is not written to again.
        memory: bytes of encodings that are kept in memory; those used longest ago go first.
    """

    def __init__(self, encoder: str, folder: Path | None = None, memory: int = MEMORY) -> None:
        self.encoder, self.folder, self.memory = encoder, folder, memory
        self.made = 0  # encodings that were made, not found
        self._kept: OrderedDict[str, Tensors] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._making: WeakValueDictionary[str, Any] = WeakValueDictionary()  # a lock as long as somebody has it
        self._writable = folder is not None

    def __call__(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        """The encoding of `key`: equal keys mean equal content, encoded in the same way."""
        name = hashlib.blake2b(f"{self.encoder}\n{key}".encode(), digest_size=20).hexdigest()
        found = self._recall(name)
        if found is not None:
            return found
        with self._lock:
            turn = self._making.setdefault(name, threading.Lock())
        with turn:  # others who want the same wait here and then find it
            return self._recall(name) or self._make(name, make)

    def _make(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        found = self._read(name)
        if found is None:
            found = make()
            with self._lock:
                self.made += 1
            self._write(name, found)
        self._remember(name, found)
        return found

    def _recall(self, name: str) -> Tensors | None:
        with self._lock:
            found = self._kept.get(name)
            if found is not None:
                self._kept.move_to_end(name)
            return found

    def _remember(self, name: str, tensors: Tensors) -> None:
        with self._lock:
            if name in self._kept:
                return
            self._kept[name] = tensors
            self._bytes += _size(tensors)
            while self._bytes > self.memory:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= _size(dropped)

    def _path(self, name: str) -> Path | None:
        # Folders of 1/256 each: many file systems are slow with a hundred thousand files in one.
        return None if self.folder is None else self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, name: str) -> Tensors | None:
        """The encoding in its file; None where there is none, or it is damaged: then it is made again."""
        path = self._path(name)
        try:
            return _unpack(name, path.read_bytes()) if path is not None else None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def _write(self, name: str, tensors: Tensors) -> None:
        path = self._path(name)
        if path is None or not self._writable:
            return
        try:
            with whole_file(path) as temporary:
                temporary.write_bytes(_pack(name, tensors))
        except OSError:
            self._writable = False


def _pack(name: str, tensors: Tensors) -> bytes:
    # Copies, because safetensors refuses tensors that share memory.
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    content = _content(save(plain))
    return save(plain, {HEADER: json.dumps({"name": name, "digest": content})})


def _unpack(name: str, data: bytes) -> Tensors | None:
    """What `_pack` packed; None where it is another entry, or a bit of it has changed."""
    about = json.loads(_header(data)["__metadata__"][HEADER])
    return load(data) if about == {"name": name, "digest": _content(data)} else None


def _content(data: bytes) -> str:
    """Digest of a safetensors file but for its metadata."""
    header = {key: value for key, value in _header(data).items() if key != "__metadata__"}
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    digest.update(memoryview(data)[8 + _header_length(data) :])
    return digest.hexdigest()


def _header(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + _header_length(data)])


def _header_length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _size(tensors: Tensors) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
