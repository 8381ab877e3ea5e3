"""A folder in the cache for one checkout: the pack under its import name, and the data of its ComfyUI.

- custom_nodes/comfyui_ensemble: a link to the checkout; its folder is on the Python path and the host's search path
- tools/devtools: a link to this folder, importable without the rest of the checkout
- models, input, output, temp, user: the data folders of the default host
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devtools.console import Problem

PACKAGE = "comfyui_ensemble"
MODEL_FOLDERS = (
    "diffusion_models",
    "vae",
    "text_encoders",
    "clip_vision",
    "controlnet",
    "loras",
    "sams",
    "ensemble_anystory",
    "ensemble_dam",
    "ensemble_dsm",
    "pose_databases",
)
DATA_FOLDERS = ("models", "input", "output", "temp", "user")


@dataclass(frozen=True)
class Workspace:
    """The folders of one checkout."""

    root: Path

    @property
    def custom_nodes(self) -> Path:
        """The folder that holds the pack, and nothing else, under its import name."""
        return self.root / "custom_nodes"

    @property
    def tools(self) -> Path:
        """The folder that holds devtools."""
        return self.root / "tools"

    @property
    def models(self) -> Path:
        """The models folder of the default host, with the embedded weights."""
        return self.root / "models"

    @classmethod
    def of_this_process(cls) -> Workspace:
        """The workspace whose pack this process imports, for tests that start a server."""
        for entry in sys.path:
            if (Path(entry) / PACKAGE / "dev.py").is_file():
                return cls(Path(entry).parent)
        raise Problem("The pack is not on the Python path; run this through dev.py.")


def prepare_workspace(cache: Path, repository: Path) -> Workspace:
    """Make the folders and links for a checkout. It takes no time when they are there."""
    name = hashlib.sha256(str(repository).encode()).hexdigest()[:12]
    workspace = Workspace(cache / "links" / name)
    for folder in DATA_FOLDERS:
        (workspace.root / folder).mkdir(parents=True, exist_ok=True)
    link(workspace.custom_nodes / PACKAGE, repository)
    link(workspace.tools / "devtools", repository / "devtools")
    return workspace


def link(place: Path, target: Path) -> None:
    """Make `place` lead to the folder `target`; two processes may do it at once."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if _leads_to(place, target):
        return
    if os.path.lexists(place):
        # A link to a checkout that was moved away. A junction is removed like an empty folder, its target stays.
        place.unlink() if place.is_symlink() else os.rmdir(place)
    with suppress(OSError):
        os.symlink(target, place, target_is_directory=True)
    if not _leads_to(place, target) and os.name == "nt":
        # Windows lets only some users make symbolic links, but everyone make junctions.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(target)], capture_output=True, check=False)
    if not _leads_to(place, target):
        raise Problem(f"Could not make {place} a link to {target}; is the file system writable?")


def _leads_to(place: Path, target: Path) -> bool:
    """Whether `place` is there and is the same folder as `target`."""
    return place.exists() and os.path.samefile(place, target)


def write_search_paths(file: Path, custom_nodes: Path | None, models: Path) -> Path:
    """Write the extra search paths for the host. JSON is YAML, which saves quoting Windows paths by hand."""
    paths = {folder: str(models / folder) for folder in MODEL_FOLDERS}
    if custom_nodes is not None:
        paths["custom_nodes"] = str(custom_nodes)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps({PACKAGE: paths}, indent=1), encoding="utf-8")
    os.replace(temporary, file)
    return file
