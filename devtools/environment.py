"""The default environment: a virtual environment in the cache, one for each set of pinned requirements.

An environment is built in a folder of its own that nobody reads yet; a small JSON file, written last, names it.
A run that is killed leaves a folder without a name, which the next run removes. pip's own cache keeps the downloads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devtools.console import LiveLine, Problem, bar, run_logged, say
from devtools.locks import exclusive, read_json, write_json

ATTEMPTS = 3
PAUSE_SECONDS = 5
UNUSED_DAYS = 30
ACCELERATOR_CHECK = """
try:
    import torch
    print(torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available())
except Exception:
    print(False)
"""


@dataclass(frozen=True)
class Environment:
    """A Python that can run the pack, and whether its torch sees an accelerator."""

    python: Path
    accelerator: bool


def environment_key(requirements: Path, host_pin: str) -> str:
    """Twelve hex digits that change with the pins, the Python, the platform or the host."""
    parts = [
        requirements.read_bytes().replace(b"\r\n", b"\n"),
        f"{sys.implementation.name}-{'.'.join(map(str, sys.version_info[:3]))}".encode(),
        f"{sys.platform}-{platform.machine()}".encode(),
        os.path.realpath(sys.executable).encode(),
        host_pin.encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def interpreter(folder: Path) -> Path:
    """Where a virtual environment keeps its Python."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def prepare_environment(cache: Path, requirements: Path, host_pin: str, verbose: bool = False) -> Environment:
    """The environment for these pins: the finished one, or a new one."""
    key = environment_key(requirements, host_pin)
    found = _finished(cache, key)
    if found:
        return found
    lock = cache / "locks" / f"environment-{key}.lock"
    with exclusive(lock, lambda: say("Another set-up of this environment is running; waiting for it.")):
        return _finished(cache, key) or _build(cache, key, requirements, verbose)


def _finished(cache: Path, key: str) -> Environment | None:
    """The environment that the marker of `key` names, if it is there."""
    marker = cache / "environments" / f"{key}.json"
    record = read_json(marker)
    if not record:
        return None
    python = interpreter(cache / "environments" / record["folder"])
    if not python.exists():
        return None
    with suppress(OSError):  # a cache that this user may only read
        os.utime(marker)
    return Environment(python, record["accelerator"])


def _build(cache: Path, key: str, requirements: Path, verbose: bool) -> Environment:
    """Build the environment in a new folder, then name it in its marker."""
    environments = cache / "environments"
    started = time.monotonic()
    _require_venv()
    remove_leftovers(environments, key)
    folder = environments / f"{key}-{secrets.token_hex(4)}"
    log = cache / "logs" / f"environment-{key}.log"
    say(f"Setting up the environment in {folder} (once; about 5 GB).")
    say("Step 1 of 4: creating a virtual environment.")
    _create(folder, log)
    python = interpreter(folder)
    pinned_pip = re.search(r"^pip==\S+", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    if pinned_pip:
        say(f"Step 2 of 4: installing {pinned_pip.group()}.")
        install(python, [pinned_pip.group()], log, verbose)
    say(f"Step 3 of 4: installing the packages of {requirements.name}.")
    # A progress line needs a pip that has just been brought up to date.
    options = ["--progress-bar", "raw"] if pinned_pip else []
    install(python, [*options, "--requirement", str(requirements)], log, verbose)
    say("Step 4 of 4: looking for a graphics card.")
    accelerator = has_accelerator(python)
    write_json(environments / f"{key}.json", {"folder": folder.name, "accelerator": accelerator})
    # The pip of a killed set-up may have gone on writing until now.
    remove_leftovers(environments, key, keep=folder)
    say(f"The environment is ready after {time.monotonic() - started:.0f} s.")
    return Environment(python, accelerator)


def _require_venv() -> None:
    """Debian and its relatives ship Python without what virtual environments need."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Problem(
            f"{sys.executable} cannot make virtual environments; install its venv package "
            f"(Debian, Ubuntu: apt install python3-venv) and run this again."
        )


def _create(folder: Path, log: Path) -> None:
    """An empty virtual environment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    status, tail = run_logged([sys.executable, "-m", "venv", folder], log, lambda line: None)
    if status:
        raise Problem(f"{sys.executable} could not make a virtual environment: {_reason(tail)} (all of it: {log}).")


def remove_leftovers(environments: Path, key: str, keep: Path | None = None) -> None:
    """Remove what an interrupted set-up left, and environments that were not used for a month.

    Only called under the lock of `key`; `keep` is the folder its marker names.
    """
    for folder in environments.glob(f"{key}-*"):
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
    for marker in environments.glob("*.json"):
        if time.time() - marker.stat().st_mtime > UNUSED_DAYS * 86400:
            folder = environments / read_json(marker).get("folder", marker.stem)
            marker.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def install(python: Path, arguments: Sequence[str], log: Path, verbose: bool) -> None:
    """pip install, tried again with a growing pause: the network may come back, and what was downloaded is kept."""
    run_pip(python, ["install", *arguments], log, verbose)


def run_pip(python: Path, arguments: Sequence[str], log: Path, verbose: bool) -> None:
    """Run pip up to three times; raise one sentence with its reason when it never succeeds."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "5", *arguments]
    for attempt in range(1, ATTEMPTS + 1):
        progress = PipProgress(verbose)
        status, tail = run_logged(command, log, progress.line)
        progress.live.clear()
        if status == 0:
            return
        if attempt < ATTEMPTS:
            say(f"pip failed ({_reason(tail)}); trying again in {PAUSE_SECONDS * attempt} s.")
            time.sleep(PAUSE_SECONDS * attempt)
    raise Problem(f"pip did not succeed in {ATTEMPTS} attempts: {_reason(tail)} (all of it: {log}).")


def _reason(tail: Sequence[str]) -> str:
    """The line of pip's output that says what went wrong."""
    errors = [line for line in tail if line.startswith("ERROR:")]
    return (errors or list(tail) or ["no output"])[-1].removeprefix("ERROR:").strip().rstrip(".")


class PipProgress:
    """pip's output as one live line: what it is doing, and how far the download is."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.live = LiveLine(quiet_seconds=10.0)
        self.doing = ""

    def line(self, text: str) -> None:
        """Take one line of pip's output."""
        download = re.fullmatch(r"Progress (\d+) of (\d+)", text)
        if download:
            self._show(f"  {self.doing} {bar(int(download.group(1)), int(download.group(2)))}")
        elif self.verbose:
            say(f"  {text}")
        elif text.strip().startswith(("Collecting", "Downloading", "Using cached", "Building")):
            self.doing = text.strip().partition(" (from")[0]
            self._show(f"  {self.doing}")
        elif text.startswith("Installing collected packages"):
            count = text.count(",") + 1
            self.live.clear()
            say(f"  Unpacking {count} package{'s' if count > 1 else ''}, which takes a while.")

    def _show(self, text: str) -> None:
        if not self.verbose:
            self.live.show(text)


def has_accelerator(python: Path) -> bool:
    """Whether the torch of this Python sees a graphics card."""
    done = subprocess.run([python, "-c", ACCELERATOR_CHECK], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout.strip() == "True"
