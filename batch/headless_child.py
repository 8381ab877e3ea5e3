"""Runs ComfyUI's main.py until the process that started this one is gone: ``headless_child.py MAIN ARGUMENTS``.

A file of its own, run by its path, because the process it runs in belongs to ComfyUI.
"""

import os
import runpy
import sys
import threading


def _end_with_parent() -> None:
    """The parent holds the other end of the input and never writes to it."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120 (pathlib would be imported before ComfyUI sets its environment)
    runpy.run_path(sys.argv[0], run_name="__main__")
