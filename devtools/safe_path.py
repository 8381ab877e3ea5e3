"""Run `-m MODULE ARGS` or `-c CODE ARGS` without the current folder on the module path.

Python 3.11 has PYTHONSAFEPATH for it. Without it the checkout's own folder `nodes` would hide the host's module `nodes`
whenever somebody stands in the checkout.
"""

from __future__ import annotations

import runpy
import sys


def main() -> None:
    kind, what = sys.argv[1:3]
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file, which Python 3.10 puts there
    sys.argv = [what if kind == "-m" else "-c", *sys.argv[3:]]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
