"""The same work for many numbers, in several processes: one that is lost is replaced, and what it held is done again."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")

LOSSES = 3  # in a row, without a job done between them
_WAITING = 2  # jobs handed to a process before it asks, so that it never waits


class WorkersLost(RuntimeError):
    """Processes end before they finish anything; the message is one sentence without its full stop."""


def run_jobs(work: Callable[[int], T], numbers: Iterable[int], workers: int) -> Iterator[tuple[int, T]]:
    """Every number with the result of `work`, as they come; `work` is a function of a module, or a part of one.

    A single worker is this process.

    Raises:
        WorkersLost: processes keep ending; what `work` raises is raised too.
    """
    if workers == 1:
        for number in numbers:
            yield number, work(number)
        return
    left, losses = list(numbers), 0
    while left:
        done: set[int] = set()
        try:
            for number, result in _run_in_pool(work, left, workers):
                done.add(number)
                yield number, result
        except BrokenProcessPool:
            losses = 1 if done else losses + 1
            if losses == LOSSES:
                raise WorkersLost(
                    f"the system ended {LOSSES} workers in a row, which happens when memory is short; use fewer workers"
                ) from None
        left = [number for number in left if number not in done]


def _run_in_pool(work: Callable[[int], T], numbers: list[int], workers: int) -> Iterator[tuple[int, T]]:
    context = multiprocessing.get_context("spawn")  # the same everywhere; a fork would copy threads' locks
    waiting: dict[Future[T], int] = {}
    todo = iter(numbers)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        for number in todo:
            waiting[pool.submit(work, number)] = number
            if len(waiting) >= _WAITING * workers:
                break
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                number = waiting.pop(future)
                result = future.result()
                following = next(todo, None)
                if following is not None:
                    waiting[pool.submit(work, following)] = following
                yield number, result
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose run was killed would wait for it for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
