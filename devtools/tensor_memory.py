"""How much memory tensors take while a piece of code runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of tensors made inside a ``with`` block, a storage once, views not at all.

    What a kernel takes for itself while it runs is not seen.

    Attributes:
        alive: bytes that live now.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        given = {_identity(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _identity(tensor) not in given | self._known:
                self._count(tensor)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage, identity = tensor.untyped_storage(), _identity(tensor)
        size = storage.nbytes()
        self._known.add(identity)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, identity, size)

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.alive -= size


def _identity(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
