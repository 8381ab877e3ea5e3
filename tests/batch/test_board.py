"""The board: every job in one place, whoever takes it."""

from __future__ import annotations

import random
import threading
import time

import pytest

from comfyui_ensemble.batch import board as board_module
from comfyui_ensemble.batch.board import MOST_LOSSES, Board
from comfyui_ensemble.batch.jobs import Job


def board_of(count: int, retries: int = 3) -> Board:
    return Board([Job(number, number, {}) for number in range(1, count + 1)], retries)


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(board_module, "BACK_OFF", (0.001, 0.002))


def test_many_servers_at_once_never_have_the_same_job():
    board = board_of(300, retries=10_000)
    in_hands: set[int] = set()
    done: list[int] = []
    guard = threading.Lock()

    def serve(name: str) -> None:
        dice = random.Random(name)
        board.join(name)
        while board.left():
            job = board.take(name, 0)
            if job is None:
                time.sleep(0.001)
                continue
            with guard:
                assert job.number not in in_hands
                in_hands.add(job.number)
            time.sleep(dice.random() * 0.002)
            with guard:
                in_hands.remove(job.number)
            fate = dice.random()
            if fate < 0.2:
                board.give_back(job)
            elif fate < 0.3:
                board.fail(job, name, "bad luck")
            else:
                done.append(job.number)
                board.save(job)
        board.leave(name)

    threads = [threading.Thread(target=serve, args=(f"server {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == list(range(1, 301)) and board.saved == 300 and not board.given_up


def test_a_job_that_failed_goes_to_another_server_and_is_given_up_in_the_end():
    board = board_of(1, retries=2)
    board.join("a")
    board.join("b")
    job = board.take("a", 0)
    assert job is not None and board.take("b", 0) is None
    assert board.fail(job, "a", "one")
    time.sleep(0.01)
    assert board.take("a", 0) is None  # b has not tried it yet
    assert board.take("b", 0) == job and board.fail(job, "b", "two")
    time.sleep(0.01)
    assert board.take("a", 0) == job and not board.fail(job, "a", "three")
    assert board.given_up == {1: "three"} and board.left() == 0


def test_the_only_server_gets_it_again_after_a_while(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(board_module, "BACK_OFF", (1.0, 5.0))
    board = board_of(1, retries=10)
    board.join("a")
    for pause in (1, 2, 4, 5, 5):
        job = board.take("a", 0)
        assert job is not None
        board.fail(job, "a", "no")
        now[0] += pause - 1 / 8
        assert board.take("a", 0) is None
        now[0] += 1 / 8


def test_nobody_takes_a_job_in_advance_while_another_is_idle():
    board = board_of(2)
    first = board.take("a", 0)
    assert first is not None and board.take("a", 1) is not None
    assert board.take("b", 0) is None and board.others_idle("a") and not board.others_idle("b")
    board.give_back(first)
    assert board.take("a", 1) is None
    assert board.take("b", 0) == first and not board.others_idle("a")


def test_a_server_that_left_is_not_waited_for():
    board = board_of(2)
    board.join("a")
    board.join("b")
    assert board.take("a", 0) and board.take("a", 1) and board.take("b", 0) is None
    board.leave("b")
    assert not board.others_idle("a")


def test_only_a_ready_job_can_be_claimed():
    board = board_of(2)
    one = Job(1, 1, {})
    assert board.claim(one, "a") and not board.claim(one, "b")
    board.give_back(one)
    assert board.claim(one, "b")
    board.save(one)
    assert not board.claim(one, "a") and board.left() == 1


def test_a_job_that_vanishes_again_and_again_is_given_up():
    board = board_of(1)
    for _time in range(MOST_LOSSES):
        job = board.take("a", 0)
        assert job is not None and board.lose(job)
    job = board.take("a", 0)
    assert job is not None and not board.lose(job)
    assert "vanished" in board.given_up[1]
