"""A real ComfyUI server with the pack, as a child process on a free port, with data folders of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devtools.console import Problem
from devtools.workspace import PACKAGE, Workspace, write_search_paths

START_SECONDS = 300
POLL_SECONDS = 0.2
PICTURES = Path(__file__).resolve().parent.parent / "workflows" / "input"


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def port_is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server can listen on this port."""
    with socket.socket() as listener:
        if os.name != "nt":
            # As servers do, so that a port whose last connections are still closing counts as free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError:
            return False
        return True


def host_of_this_process() -> Path:
    """The folder of the ComfyUI that this Python process imports."""
    spec = importlib.util.find_spec("comfyui_version")
    if spec is None or spec.origin is None:
        raise Problem("ComfyUI is not on the Python path; run this through dev.py.")
    return Path(spec.origin).parent


def copy_pictures(folder: Path) -> None:
    """Put the pictures that the bundled workflows load into a host's input folder."""
    for picture in PICTURES.glob("*"):
        copy = folder / picture.name
        if not copy.exists() or copy.stat().st_mtime < picture.stat().st_mtime:
            shutil.copy(picture, copy)


@dataclass
class ComfyServer:
    """`with ComfyServer(data=folder, models=folder) as server:` starts one, waits until it answers, and stops it.

    Attributes:
        data: folder for input, output, temp and user; made when missing.
        models: the models folder, for example `Workspace.of_this_process().models` with the embedded weights.
        host: folder of ComfyUI, by default the one this process imports.
        custom_nodes: folder that holds the pack, by default the one this process imports it from. None when the host
            already has the pack in its own custom_nodes folder.
        pack: the pack's folder name; no other custom node is loaded.
        python: the Python to run it with, by default this one.
        arguments: more arguments for main.py, such as --cpu.
    """

    data: Path
    models: Path
    host: Path = field(default_factory=host_of_this_process)
    custom_nodes: Path | None = field(default_factory=lambda: Workspace.of_this_process().custom_nodes)
    pack: str = PACKAGE
    python: Path = field(default_factory=lambda: Path(sys.executable))
    arguments: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """Everything the server printed."""
        return self.data / "server.log"

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def command(self) -> list[str]:
        """The command line of the server; it makes the folders that the host expects to be there."""
        folders = {name: self.data / name for name in ("input", "output", "temp", "user")}
        for folder in (*folders.values(), self.models):
            folder.mkdir(parents=True, exist_ok=True)
        copy_pictures(folders["input"])
        paths = write_search_paths(self.data / "search_paths.yaml", self.custom_nodes, self.models)
        command = [str(self.python), str(self.host / "main.py"), "--port", str(self.port)]
        command += ["--models-directory", str(self.models), "--extra-model-paths-config", str(paths)]
        for name, folder in folders.items():
            command += [f"--{name}-directory", str(folder)]
        # Otherwise every server of this host would want to lock the same database file.
        command += ["--database-url", "sqlite:///:memory:"]
        command += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", self.pack]
        return [*command, "--disable-api-nodes", "--disable-auto-launch", *self.arguments]

    def start(self) -> None:
        """Start the server and wait until it answers; a Problem with its last lines when it does not."""
        command = self.command()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=self.data
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process is not None
            if self.process.poll() is not None:
                raise Problem(f"ComfyUI ended with status {self.process.returncode} at its start:\n{self.last_lines()}")
            if time.monotonic() > deadline:
                raise Problem(f"ComfyUI did not answer within {START_SECONDS} s:\n{self.last_lines()}")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the server; it gets ten seconds to do it by itself."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    @property
    def log_text(self) -> str:
        """The log as it is now."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def last_lines(self, count: int = 15) -> str:
        """The end of the server's log."""
        return "\n".join(self.log_text.splitlines()[-count:])

    def get(self, path: str) -> Any:
        """The JSON answer to a GET request."""
        with _local_opener.open(f"{self.url}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON answer of a POST request; an error status is an answer too."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        try:
            with _local_opener.open(request, timeout=60) as answer:
                return answer.status, _json_or_none(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _json_or_none(error.read())

    def run(self, prompt: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Queue a workflow in API form, wait for its end, return its history: `outputs`, `status`.

        Raises:
            Problem: the server refused it, a node failed (with the node's own message), or the time ran out.
        """
        prompt_id = accepted(*self.post("/prompt", {"prompt": prompt}))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if history:
                return finished(history[prompt_id])
            time.sleep(POLL_SECONDS)
        raise Problem(f"The workflow did not end within {timeout:.0f} s:\n{self.last_lines()}")


# A proxy set for the internet must not get requests to this machine.
_local_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _json_or_none(body: bytes) -> Any:
    return json.loads(body) if body.strip() else None


def accepted(status: int, answer: dict[str, Any]) -> str:
    """The id of a queued workflow; a Problem with the server's own words when it did not take all of it.

    The server takes a workflow when one of its outputs is valid and drops the others, which nobody here wants.
    """
    if status == 200 and not answer.get("node_errors"):
        return answer["prompt_id"]
    raise Problem(f"ComfyUI refused the workflow: {refusal(answer)}")


def refusal(answer: dict[str, Any]) -> str:
    """What the server says about a workflow that it did not take."""
    messages = [answer["error"]["message"]] if "error" in answer else []
    for node in (answer.get("node_errors") or {}).values():
        messages += [f"{node['class_type']}: {error['message']} ({error['details']})" for error in node["errors"]]
    return "; ".join(messages)


def finished(history: dict[str, Any]) -> dict[str, Any]:
    """The history of a workflow that ran to its end; a Problem with the node's message for one that did not."""
    for kind, details in history["status"]["messages"]:
        if kind == "execution_error":
            raise Problem(f"{details['node_type']} failed: {details['exception_message'].strip()}")
    return history
