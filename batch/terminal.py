"""A batch's progress at the terminal."""

from __future__ import annotations

from .live_line import LiveLine, duration
from .runner import Progress

BAR = 24  # letters


class TerminalReport:
    """Shows a batch's `Progress`."""

    def __init__(self, line: LiveLine) -> None:
        self._line = line

    def __call__(self, progress: Progress) -> None:
        finished = progress.saved + progress.given_up == progress.total
        self._line.show(progress_line(progress), keep=finished)


def progress_line(progress: Progress) -> str:
    """Where a batch is, in one line."""
    done = progress.saved + progress.given_up
    filled = BAR * done // max(1, progress.total)
    parts = [f"[{'#' * filled}{'-' * (BAR - filled)}] {done}/{progress.total}"]
    if progress.given_up:
        parts.append(f"{progress.given_up} failed")
    if progress.remaining is not None and done < progress.total:
        parts.append(f"{duration(progress.remaining)} left")
    parts.append(f"{progress.servers} server{'' if progress.servers == 1 else 's'}")
    return ", ".join(parts)
