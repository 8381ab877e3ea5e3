"""A server whose every folder, the system's temporary one included, lies in one folder that can be listed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from devtools.console import Problem
from devtools.server import POLL_SECONDS, ComfyServer

# Names that climb out of the output folder still end inside the sandbox, where they are found.
DEPTH = ("a", "b", "c", "d")
MIB = 2**20


@dataclass
class SandboxServer(ComfyServer):
    """A server in a sandbox.

    Attributes:
        root: the sandbox; `data` lies deep inside it.
    """

    root: Path = field(default_factory=Path)

    def __enter__(self) -> SandboxServer:
        self.start()
        return self

    @property
    def scratch(self) -> Path:
        """What this server takes for the system's folder for temporary files."""
        return self.root / "scratch"

    def start(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        folder = str(self.scratch)
        with changed_environment(TMPDIR=folder, TEMP=folder, TMP=folder):
            super().start()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def usage(self) -> Usage:
        """What the process holds at the moment."""
        assert self.process is not None
        process = psutil.Process(self.process.pid)
        handles = process.num_handles() if os.name == "nt" else process.num_fds()
        return Usage(process.memory_info().rss / MIB, handles, process.num_threads())

    def worker_trace(self) -> str:
        """The traceback of the error that ended the host's thread of workflows; empty where it lives.

        The host answers on after that, and never runs anything again.
        """
        _, found, end = self.log_text.rpartition("Exception in thread")
        return end if found and "(prompt_worker)" in end.partition("\n")[0] else ""

    def ends_within(self, seconds: float) -> bool:
        """Whether the process has ended after so many seconds at most."""
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end_trace(self) -> str:
        """The traceback that is the last the server said, and so what ended it; empty where it said something else."""
        _, found, end = self.log_text.rpartition("Traceback (most recent call last):\n")
        is_last = all(line[:1].isspace() for line in end.rstrip().splitlines()[:-1])
        return end if found and is_last else ""

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What became of a workflow; None while it waits or runs."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def forget(self, *prompt_ids: str) -> None:
        """Take workflows out of the server's memory, as a client does that has fetched their results."""
        self.post("/history", {"delete": list(prompt_ids)})

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing waits and nothing runs; whether that came in time."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            queue = self.get("/queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return True
            time.sleep(POLL_SECONDS / 4)
        return False

    def files(self) -> set[str]:
        """Every file in the sandbox, by its path in it; without what the host itself keeps there."""
        found = (Path(folder) / name for folder, _, names in os.walk(self.root) for name in names)
        own = {self.log, self.data / "search_paths.yaml"}
        paths = {path.relative_to(self.root).as_posix() for path in found if path not in own}
        return {path for path in paths if not path.startswith(self._inside("user/"))}

    def _inside(self, path: str) -> str:
        return f"{self.data.relative_to(self.root).as_posix()}/{path}"

    def outside(self, before: set[str], after: set[str], *allowed: str) -> list[str]:
        """New files that are in none of the allowed folders (seen from the data folder, with a slash at the end)."""
        folders = tuple(map(self._inside, allowed))
        return sorted(path for path in after - before if not path.startswith(folders))


@dataclass(frozen=True)
class Usage:
    """What a process holds: resident memory in MiB, open files (handles on Windows), threads."""

    memory: float
    handles: int
    threads: int


def sandbox_server(root: Path, models: Path, *arguments: str) -> SandboxServer:
    """A server that is not started yet; it gets a copy of the models, because workflows may save some."""
    data = root.joinpath(*DEPTH)
    if data.exists():
        raise Problem(f"{root} is in use; give a folder that is not there yet.")
    data.mkdir(parents=True)
    own_models = Path(shutil.copytree(models, data / "models"))
    return SandboxServer(data, own_models, root=root, arguments=arguments)


@contextmanager
def changed_environment(**variables: str) -> Iterator[None]:
    """Environment variables for the children that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
