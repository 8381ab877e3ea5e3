"""A training's progress at the terminal: one live line, or plain lines from time to time where there is no terminal."""

from __future__ import annotations

from ..batch.live_line import LiveLine, duration
from .progress import Progress


class TerminalReport:
    """Give it to `train` as `report`."""

    def __init__(self) -> None:
        self._line = LiveLine()

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            self._line.say(progress.note + ".")
        else:
            self._line.show(progress_line(progress), keep=progress.step == progress.steps)


def progress_line(progress: Progress) -> str:
    """Where a training is, in one line."""
    others = "".join(f", {name} {value:.4g}" for name, value in progress.losses.items() if name != "loss")
    return (
        f"step {progress.step}/{progress.steps}: loss {progress.loss:.4g}{others}, learning rate {progress.learning_rate:.3g},"
        f" {duration(progress.step_seconds)} a step, {duration(progress.remaining)} left,"
        f" waited for data {progress.waited:.1%} of the time"
    )
