"""Prepares samples ahead of the step that needs them, in threads, and hands them over in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from .data import DataError, Draw
from .errors import TrainingError

AHEAD = 2  # batches that are prepared, or being prepared, beyond the one that is in use

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """Iterates over prepared batches.

        with Prefetch(prepare, (data.batch(step, size) for step in range(start, stop)), workers) as batches:
            for batch in batches:  # list of what `prepare` returned, in the draws' order
                ...
        print(batches.waited)

    Args:
        prepare: what makes a draw ready, such as ``lambda draw: task.prepare(data.load(draw), draw.position)``; called without
            gradients, from several threads at once where there are several workers.
        plan: the draws of each batch; read as far as is needed.
        workers: threads; 0 prepares in the caller's own thread at the moment it is needed.
        name: how messages call a draw.

    Raises (from the loop that iterates):
        DataError: `prepare` raised an OSError or a ValueError; says at which sample.
        Exception: whatever else it raised, with a note of the sample.
    """

    def __init__(
        self,
        prepare: Callable[[Draw], Made],
        plan: Iterable[Sequence[Draw]],
        workers: int,
        name: Callable[[Draw], str] = lambda draw: f"sample {draw.index}",
    ) -> None:
        self.waited = 0.0  # seconds that the loop spent waiting for samples, all batches together
        self._prepare, self._name = prepare, name
        self._plan = iter(plan)
        self._pending: deque[list[tuple[Draw, Future[Made]]]] = deque()
        self._pool = ThreadPoolExecutor(workers, "ensemble-prefetch") if workers > 0 else None

    def __enter__(self) -> Prefetch[Made]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[Made]]:
        return self

    def __next__(self) -> list[Made]:
        start = time.perf_counter()
        try:
            return self._next_batch()
        except BaseException:
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - start

    def close(self) -> None:
        """Drop what is not begun, wait for what is, and end the threads. Closing twice does no harm."""
        self._plan = iter(())
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _next_batch(self) -> list[Made]:
        if self._pool is None:
            return [self._make(draw) for draw in next(self._plan)]
        while len(self._pending) <= AHEAD and (draws := next(self._plan, None)) is not None:
            self._pending.append([(draw, self._pool.submit(self._make, draw)) for draw in draws])
        if not self._pending:
            raise StopIteration
        return [future.result() for _, future in self._pending.popleft()]

    def _make(self, draw: Draw) -> Made:
        try:
            with torch.no_grad():
                return self._prepare(draw)
        except (OSError, ValueError) as error:
            about = error.input_name if isinstance(error, TrainingError) else "data"
            raise DataError(f"{self._name(draw)}: {error}", about) from error
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"while preparing {self._name(draw)}")
            raise
