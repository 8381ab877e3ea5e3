"""Speaking to the person at the terminal: one-sentence problems, steps, and one live line for long work."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Problem(Exception):
    """Something the user can put right; its text is one sentence and is all that is shown."""


def say(text: str) -> None:
    """Print one line at once. Progress goes to stderr, so that the output of a command stays clean."""
    print(text, file=sys.stderr, flush=True)


class LiveLine:
    """One line that is overwritten on a terminal, and plain lines, at most one every few seconds, elsewhere."""

    def __init__(self, quiet_seconds: float = 5.0) -> None:
        self.terminal = sys.stderr.isatty()
        self.quiet_seconds = quiet_seconds
        self.last = 0.0

    def show(self, text: str) -> None:
        """Show the newest state."""
        now = time.monotonic()
        if now - self.last < (0.05 if self.terminal else self.quiet_seconds):
            return
        self.last = now
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[2K" + text[:width])
            sys.stderr.flush()
        else:
            say(text)

    def clear(self) -> None:
        """Leave an empty line for what comes next."""
        if self.terminal:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def bar(done: float, total: float, width: int = 30) -> str:
    """A progress bar as text."""
    share = min(max(done / total, 0.0), 1.0) if total else 0.0
    filled = round(share * width)
    return f"[{'#' * filled}{'.' * (width - filled)}] {share:4.0%}"


def run_logged(
    command: Sequence[str | Path],
    log: Path,
    on_line: Callable[[str], None],
    environ: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run a command, keep its whole output in `log`, hand every line to `on_line`; its status and last 20 lines."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: list[str] = []
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if environ is None else dict(environ),
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                on_line(line.rstrip())
                tail = [*tail[-19:], line.rstrip()]
        except BaseException:
            process.kill()
            raise
    return process.returncode, tail
