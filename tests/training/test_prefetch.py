"""Preparing ahead, in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from comfyui_ensemble.training.data import DataError, Draw
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.prefetch import AHEAD, Prefetch

WORKERS = (0, 1, 3)


def plan(batches: int, size: int = 3) -> Iterator[list[Draw]]:
    for step in range(batches):
        yield [Draw(step * size + number, 100 + step * size + number) for number in range(size)]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prefetch" in thread.name]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert threads() == []


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_come_in_order_whatever_takes_longest(workers: int):
    def prepare(draw: Draw) -> int:
        time.sleep(0.004 * (draw.position % 3 == 0))
        return draw.index

    with Prefetch(prepare, plan(10), workers) as batches:
        assert list(batches) == [[100 + 3 * step + number for number in range(3)] for step in range(10)]
        with pytest.raises(StopIteration):
            next(batches)


@pytest.mark.parametrize("workers", WORKERS)
def test_an_empty_plan_ends_at_once(workers: int):
    with Prefetch(lambda draw: draw, iter(()), workers) as batches:
        assert list(batches) == []


def test_samples_are_prepared_while_the_step_runs():
    done = [threading.Event() for _ in range(12)]

    with Prefetch(lambda draw: done[draw.position].set(), plan(12, 1), 2) as batches:
        for following, _ in enumerate(batches, 1):  # the step ends when the next sample is there
            assert following == len(done) or done[following].wait(60)


def test_waiting_is_measured():
    with Prefetch(lambda draw: time.sleep(0.02), plan(5, 1), 1) as batches:
        start = time.perf_counter()
        for _ in batches:
            pass
        elapsed = time.perf_counter() - start
    assert 0 < batches.waited <= elapsed
    with Prefetch(lambda draw: time.sleep(0.02), plan(3, 1), 0) as batches:
        list(batches)
    assert batches.waited > 0.055


def test_no_more_than_a_few_batches_are_prepared_ahead():
    begun: list[int] = []
    with Prefetch(lambda draw: begun.append(draw.position), plan(1000, 2), 4) as batches:
        for step in range(5):
            next(batches)
            time.sleep(0.02)
            assert len(begun) <= 2 * (step + 1 + AHEAD)
    assert len(begun) <= 2 * (5 + AHEAD)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    "error", [ValueError("the mask is torn"), OSError("the mask is torn"), DataError("the mask is torn")]
)
def test_what_is_wrong_with_a_sample_names_it_and_comes_in_its_turn(workers: int, error: Exception):
    def prepare(draw: Draw) -> int:
        if draw.position == 4:
            raise error
        return draw.position

    with Prefetch(prepare, plan(5), workers, lambda draw: f"line {draw.index}") as batches:
        assert next(batches) == [0, 1, 2]
        with pytest.raises(DataError, match=r"^line 104: the mask is torn$") as caught:
            next(batches)
        assert caught.value.input_name == "data"
        assert threads() == []  # nothing goes on after an error
        assert list(batches) == []


def test_an_error_about_another_input_stays_about_it():
    def prepare(draw: Draw) -> int:
        raise TrainingError("it is of another family", "clip_vision")

    with pytest.raises(DataError, match="sample 100: it is of another family") as caught:
        list(Prefetch(prepare, plan(1), 1))
    assert caught.value.input_name == "clip_vision"


@pytest.mark.parametrize("workers", WORKERS)
def test_faults_of_the_program_keep_their_kind(workers: int):
    def prepare(draw: Draw) -> int:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room") as caught:
        list(Prefetch(prepare, plan(1), workers))
    assert getattr(caught.value, "__notes__", ["while preparing sample 100"])[0] == "while preparing sample 100"


def test_an_interrupt_in_the_loop_ends_the_threads():
    with pytest.raises(KeyboardInterrupt), Prefetch(lambda draw: time.sleep(0.01), plan(1000), 3) as batches:
        next(batches)
        raise KeyboardInterrupt
    assert threads() == []


def test_what_is_begun_is_finished_and_the_rest_is_dropped():
    done: list[int] = []

    def prepare(draw: Draw) -> None:
        time.sleep(0.05)
        done.append(draw.position)

    batches = Prefetch(prepare, plan(1000, 4), 2)
    next(batches)
    batches.close()
    count = len(done)
    assert count <= 8
    time.sleep(0.1)
    assert len(done) == count
    batches.close()


def test_a_plan_that_fails_ends_the_threads():
    def broken() -> Iterator[list[Draw]]:
        yield from plan(2)
        raise RuntimeError("no more steps")

    with pytest.raises(RuntimeError, match="no more steps"):
        list(Prefetch(lambda draw: draw.position, broken(), 2))


@pytest.mark.parametrize("workers", WORKERS)
def test_nothing_is_prepared_with_gradients(workers: int):
    weight = torch.ones(2).requires_grad_()
    with torch.inference_mode(False), torch.enable_grad():
        ((made,),) = list(Prefetch(lambda draw: weight * 2, plan(1, 1), workers))
    assert not made.requires_grad
    assert not made.is_inference()
