"""A line at the terminal that is written over until one is kept, or plain lines from time to time where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time

QUIET_SECONDS = 10.0  # between plain lines
LIVE_SECONDS = 0.1


def duration(seconds: float) -> str:
    """A time in words: 12 ms, 3.4 s, 2 min 05 s, 1 h 02 min."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


class LiveLine:
    """A line on the error stream."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._last = -QUIET_SECONDS
        self._lock = threading.Lock()

    def show(self, text: str, keep: bool) -> None:
        """Show a line if it is time for one.

        Args:
            keep: show it in any case, and leave it there.
        """
        with self._lock:
            now = time.monotonic()
            if keep or now - self._last >= (LIVE_SECONDS if self.live else QUIET_SECONDS):
                self._last = now
                self._put(text, keep or not self.live)

    def say(self, text: str) -> None:
        """A line besides, which stays."""
        with self._lock:
            self._put(text, keep=True)

    def _put(self, text: str, keep: bool) -> None:
        if self.live:
            text = "\r\x1b[2K" + (text if keep else text[: shutil.get_terminal_size().columns - 1])
        sys.stderr.write(text + ("\n" if keep else ""))
        sys.stderr.flush()
