"""The tiny models that all rows begin with, each loaded when it is first needed."""

from __future__ import annotations

import hashlib
import tempfile
from functools import cached_property
from pathlib import Path

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from safetensors import safe_open

from ...models_info.registry import (
    TINY_FLUX,
    TINY_SDXL,
    TINY_SDXL_VAE,
    TINY_VAE,
    TINY_VISION,
    TRAINED,
    ModelFile,
    comes_trained,
    find_file,
    register_folders,
)
from ..errors import TrainingError
from ..models import MINILM, load_clip, load_flux, load_sdxl, load_vae, load_vision
from ..tiny import write_tiny_models

RANDOM = "ensemble_seed"  # metadata of weights that nobody trained
USED = {
    "flux": (TINY_FLUX, TINY_VAE, TINY_VISION),
    "sdxl": (TINY_SDXL, TINY_SDXL_VAE, TINY_VISION),
}


class Models:
    """The models of a folder that is laid out as ComfyUI's models folder is, or the pack's own.

    Raises:
        TrainingError: there is no such folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        register_folders()
        if folder is not None and not folder.is_dir():
            raise TrainingError(
                f"--models-dir: there is no folder {folder}; give one with the tiny models", "models_dir"
            )
        self.folder = folder

    def path(self, entry: ModelFile) -> Path:
        """The file of a model.

        Raises:
            TrainingError: it is not there.
        """
        if self.folder is not None:
            path = self.folder / entry.folder / entry.name
            found = path if path.is_file() else None
        elif comes_trained(entry):
            found = TRAINED / entry.folder / entry.name
        else:
            found = find_file(entry.folder, entry.name) or Path(self._untrained.name) / entry.folder / entry.name
        if found is None:
            raise TrainingError(
                f"{entry.folder}/{entry.name} is missing: --models-dir must be a folder with the tiny models; get them with"
                f" {entry.source} --models-dir FOLDER --all",
                "models_dir",
            )
        return found

    def identity(self, kind: str) -> str:
        """Changes whenever a weight of the "flux" or "sdxl" models does."""
        digest = hashlib.blake2b(digest_size=16)
        for entry in USED[kind]:
            digest.update(self.path(entry).read_bytes())
        return digest.hexdigest()

    def are_random(self, kind: str) -> bool:
        """Whether the diffusion model or its VAE is an untrained one of `training.tiny`."""
        return any(_metadata(self.path(entry)).get(RANDOM) is not None for entry in USED[kind][:2])

    @cached_property
    def _untrained(self) -> tempfile.TemporaryDirectory[str]:
        """Tiny models that do not come trained: their seed is always the same, and so are their weights."""
        folder = tempfile.TemporaryDirectory()
        write_tiny_models(Path(folder.name), only_untrained=True)
        return folder

    @cached_property
    def flux(self) -> ModelPatcher:
        return load_flux(self.path(TINY_FLUX))

    @cached_property
    def vae(self) -> VAE:
        return load_vae(self.path(TINY_VAE))

    @cached_property
    def sdxl(self) -> ModelPatcher:
        return load_sdxl(self.path(TINY_SDXL))

    @cached_property
    def sdxl_vae(self) -> VAE:
        return load_vae(self.path(TINY_SDXL_VAE))

    @cached_property
    def vision(self) -> ClipVisionModel:
        return load_vision(self.path(TINY_VISION))

    @cached_property
    def clip(self) -> CLIP:
        return load_clip([MINILM], flux=True)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
