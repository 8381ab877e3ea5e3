"""What a batch shows at the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from comfyui_ensemble.batch.live_line import LiveLine, duration
from comfyui_ensemble.batch.runner import Progress, Speed
from comfyui_ensemble.batch.terminal import progress_line


def test_line():
    assert progress_line(Progress(0, 0, 8, 1, None)) == "[------------------------] 0/8, 1 server"
    line = progress_line(Progress(5, 1, 8, 2, 125.0))
    assert line == "[##################------] 6/8, 1 failed, 2 min 05 s left, 2 servers"
    assert progress_line(Progress(8, 0, 8, 0, 0.0)) == "[########################] 8/8, 0 servers"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0123, "12.3 ms"), (3.44, "3.4 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")]
)
def test_duration(seconds: float, words: str):
    assert duration(seconds) == words


def test_the_end_is_foreseen_from_the_present_speed(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    speed = Speed()
    assert speed.remaining(0, 200) is None
    for done in range(1, 101):  # at first 10 seconds a job, then 2
        now[0] += 10.0 if done <= 40 else 2.0
        left = speed.remaining(done, 200 - done)
    assert left == pytest.approx(2.0 * 100)
    now[0] += 50.0  # it hangs: that counts too
    assert speed.remaining(100, 100) == pytest.approx((50 * 2.0 + 50.0) / 50 * 100)


def test_without_a_terminal_lines_come_from_time_to_time(capsys):
    line = LiveLine()
    for number in range(5):
        line.show(f"line {number}", keep=False)
    line.say("a note")
    line.show("the end", keep=True)
    assert capsys.readouterr().err == "line 0\na note\nthe end\n"


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_at_a_terminal_a_line_is_written_over():
    import pty

    code = (
        "from comfyui_ensemble.batch.live_line import LiveLine\n"
        "line = LiveLine()\nline.show('x' * 500, keep=False)\nline.say('a note')\nline.show('the end', keep=True)\n"
    )
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True)
    shown = os.read(ours, 4096).decode()
    os.close(theirs)
    os.close(ours)
    assert shown.count("\r\n") == 2 and shown.endswith("\r\x1b[2Kthe end\r\n")
    assert "\r\x1b[2Ka note\r\n" in shown and 0 < shown.count("x") < 500
