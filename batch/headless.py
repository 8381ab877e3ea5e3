"""A ComfyUI without a page, as a child of this process: for machines where nobody has started one.

The child ends with this process, however that ends, because it notices that nobody holds the other end of its input any more
(`headless_child`).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .queue_client import http_send

START_SECONDS = 600
POLL_SECONDS = 0.2
CHILD = Path(__file__).resolve().parent / "headless_child.py"
# Begins the name of a data folder; the number of the process that it belongs to follows.
DATA = f"comfyui-ensemble-{socket.gethostname()}-"


class HeadlessComfy:
    """A running ComfyUI on a free port of this machine, which nobody else can reach.

    Args:
        host: folder of ComfyUI, the pack in its custom_nodes folder.
        models: its models folder.
        pack: the only custom nodes it loads.
        arguments: more for its main.py.

    Raises:
        RuntimeError: it did not start; says what it said last.
    """

    def __init__(self, host: Path, models: Path, pack: str, arguments: Sequence[str]) -> None:
        if not models.is_dir():
            raise RuntimeError(f"{socket.gethostname()} has no models folder {models}; share it with this machine")
        _sweep()
        self.data = Path(tempfile.mkdtemp(prefix=f"{DATA}{os.getpid()}-"))
        port = _free_port()
        self._send = http_send(f"http://127.0.0.1:{port}")
        command = [sys.executable, str(CHILD), str(host / "main.py"), "--port", str(port), *self._folders(models)]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", pack, "--disable-auto-launch"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        with (self.data / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data,
                env={**environment, "PYTHONPATH": str(host)},
            )
        self._wait()

    def request(self, path: str, data: bytes | None, kind: str) -> tuple[int, bytes]:
        """As `queue_client.Send`."""
        return self._send(path, data, kind)

    def ended(self) -> bool:
        """Whether ComfyUI is no longer there."""
        return self.process.poll() is not None

    def stop(self) -> None:
        """End it and remove its data."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.data, ignore_errors=True)

    def _folders(self, models: Path) -> list[str]:
        arguments = ["--models-directory", str(models), "--database-url", "sqlite:///:memory:"]
        for name in ("input", "output", "temp", "user"):
            (self.data / name).mkdir()
            arguments += [f"--{name}-directory", str(self.data / name)]
        return arguments

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.ended() or time.monotonic() > deadline:
                said = (self.data / "log").read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
                self.stop()
                raise RuntimeError(f"ComfyUI did not start on {socket.gethostname()}: {' / '.join(said)}")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            return self.request("/system_stats", None, "application/json")[0] == 200
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _sweep() -> None:
    """Remove the data of processes of this machine that were killed."""
    import psutil  # comes with ComfyUI

    for folder in Path(tempfile.gettempdir()).glob(f"{DATA}*-*"):
        if not psutil.pid_exists(int(folder.name.removeprefix(DATA).split("-")[0])):
            shutil.rmtree(folder, ignore_errors=True)
