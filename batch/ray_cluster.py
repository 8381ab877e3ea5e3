"""The same batch on a Ray cluster: on every GPU a ComfyUI of its own, as an actor.

ComfyUI's code and this pack travel with the job, as its working directory; a node unpacks them once. What a node must have is
the Python environment (PyTorch and the requirements of ComfyUI and the pack) and the models folder. To the batch an actor is
a server like any other, whose requests travel by Ray: what it is sent, what it makes and how it is missed is the same. Ray puts
a new actor in the place of one that is lost, on another node where it must; it knows nothing of its predecessor's jobs, which
is what a ComfyUI that was restarted looks like.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BatchError
from .queue_client import QueueClient, Send

PACK = Path(__file__).resolve().parent.parent
HOST, PACKAGE = "ComfyUI", "comfyui_ensemble"
REQUEST_SECONDS = 120
STORE_BYTES = 128 * 2**20  # of the object store of a cluster that is begun here
# What a ComfyUI folder holds besides its code, and a pack besides what it needs to run.
HOST_DATA = ("models", "input", "output", "temp", "user", "custom_nodes", "tests", "tests-unit")
PACK_EXTRAS = ("tests", "docs")


@dataclass(frozen=True)
class RayWish:
    """What somebody asks of Ray.

    Attributes:
        address: of the cluster; "auto" for the one this machine belongs to, "local" to begin one.
        workers: how many ComfyUIs; None for one on every GPU, or one in all where there is none.
        models: models folder, at the same path on every node; None for ComfyUI's own.
        comfyui: folder of the ComfyUI to ship; None to look for it.
        arguments: more for ComfyUI's main.py.
    """

    address: str
    workers: int | None
    models: Path | None
    comfyui: Path | None
    arguments: tuple[str, ...]


@contextmanager
def ray_clients(wish: RayWish, timeout: float, wait: float, say: Callable[[str], None]) -> Iterator[list[QueueClient]]:
    """A client for every worker, for as long as the block lasts.

    Args:
        timeout: seconds that one job may run.
        wait: seconds to wait for the workers.

    Raises:
        BatchError: Ray is not installed, no cluster answers, or no worker starts.
    """
    if importlib.util.find_spec("ray") is None:
        raise BatchError("Ray is not installed; run `pip install ray` here and on every node")
    ray: Any = importlib.import_module("ray")  # only now: it is no requirement of the pack
    comfyui = (wish.comfyui or _find_comfyui()).absolute()
    if not (comfyui / "main.py").is_file():
        raise BatchError(f"{comfyui} is no ComfyUI folder; give one with --ray-comfyui")
    _join(ray, wish, comfyui)
    workers: list[Any] = []
    try:
        workers = _start_workers(ray, wish, comfyui)
        ready = _await(ray, workers, wait, say)
        yield [
            QueueClient(f"ray-{number}", timeout, send=_send_by(ray, workers[number - 1])) for number in sorted(ready)
        ]
    finally:
        with suppress(Exception):  # what does not end by itself ends with Ray
            _stop(ray, workers)
        ray.shutdown()


def _find_comfyui() -> Path:
    """The ComfyUI that this process can import, or the one around the pack."""
    spec = importlib.util.find_spec("comfyui_version")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    return PACK.parent.parent


def _join(ray: Any, wish: RayWish, comfyui: Path) -> None:
    own = {"num_cpus": wish.workers, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    where = own if wish.address == "local" else {"address": wish.address}
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with tempfile.TemporaryDirectory() as folder:
            code = Path(folder) / "code.zip"
            code.write_bytes(pack_code(comfyui))
            ray.init(**where, **quiet, runtime_env={"working_dir": str(code)})
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise BatchError(f"no Ray cluster answers at '{wish.address}' ({first}); start one with `ray start`") from None


def _start_workers(ray: Any, wish: RayWish, comfyui: Path) -> list[Any]:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    models = str((wish.models or comfyui / "models").absolute())
    arguments = [*wish.arguments] if gpus else ["--cpu", *wish.arguments]
    kind = ray.remote(_worker_class()).options(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1)
    return [kind.remote(models, arguments) for _number in range(wish.workers or gpus or 1)]


def _await(ray: Any, workers: list[Any], wait: float, say: Callable[[str], None]) -> list[int]:
    """The numbers, from 1, of the workers that are ready."""
    say(f"Starting ComfyUI on {len(workers)} worker{'' if len(workers) == 1 else 's'}")
    asked = {worker.where.remote(): number for number, worker in enumerate(workers, start=1)}
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=wait)
    ready, reason = [], f"none did within {wait:.0f} seconds; does the cluster have the CPUs and GPUs?"
    for answer in done:
        try:
            say(f"ray-{asked[answer]} is {ray.get(answer)}")
            ready.append(asked[answer])
        except ray.exceptions.RayError as error:
            reason = _last_line(error)
            say(f"ray-{asked[answer]} does not start: {reason}")
    for answer in late:
        say(f"ray-{asked[answer]} did not start within {wait:.0f} seconds")
    if not ready:
        raise BatchError(f"no ComfyUI starts on the cluster: {reason}")
    return ready


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _send_by(ray: Any, worker: Any) -> Send:
    """Requests to a worker's ComfyUI; what is big goes through the object store."""

    def send(path: str, data: bytes | None, kind: str) -> tuple[int, bytes]:
        try:
            return ray.get(worker.request.remote(path, data, kind), timeout=REQUEST_SECONDS)
        except ray.exceptions.RayError as error:
            raise ConnectionError(type(error).__name__) from None

    return send


def _stop(ray: Any, workers: list[Any]) -> None:
    """Let every worker end its ComfyUI and remove its data."""
    ray.wait([worker.stop.remote() for worker in workers], num_returns=len(workers), timeout=10)


def pack_code(comfyui: Path) -> bytes:
    """The folder ComfyUI, this pack in its custom_nodes folder, as a zip file; the same bytes for the same code."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        _add(archive, comfyui.resolve(), Path(HOST), HOST_DATA)
        _add(archive, PACK, Path(HOST, "custom_nodes", PACKAGE), PACK_EXTRAS)
    return packed.getvalue()


def _add(archive: zipfile.ZipFile, folder: Path, place: Path, without: tuple[str, ...]) -> None:
    for path in sorted(folder.iterdir()):
        if path.name in without or path.name.startswith(".") or path.name == "__pycache__" or path.is_symlink():
            continue
        if path.is_dir() and not (path / "pyvenv.cfg").is_file():
            _add(archive, path, place / path.name, ())
        elif path.is_file():
            info = zipfile.ZipInfo((place / path.name).as_posix())
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())


def _worker_class() -> type:
    """The actor. A class of a function's own travels to the nodes whole, where nothing of this pack can be imported yet."""

    class ComfyWorker:
        def __init__(self, models: str, arguments: list[str]) -> None:
            import sys
            from pathlib import Path

            host = Path.cwd() / "ComfyUI"  # Ray has unpacked what was shipped and goes there
            sys.path.insert(0, str(host / "custom_nodes"))
            from comfyui_ensemble.batch.headless import HeadlessComfy

            self.comfy = HeadlessComfy(host, Path(models), "comfyui_ensemble", arguments)

        def where(self) -> str:
            import os
            import socket

            return f"process {os.getpid()} on {socket.gethostname()}"

        def request(self, path: str, data: bytes | None, kind: str) -> tuple[int, bytes]:
            import os

            if self.comfy.ended():
                os._exit(1)  # Ray puts a new worker in this one's place
            return self.comfy.request(path, data, kind)

        def stop(self) -> None:
            self.comfy.stop()

    return ComfyWorker
