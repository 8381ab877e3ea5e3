"""The pack's own trainings as small as they get, with the tiny models on a few puppets: what tests start on the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfyui_ensemble.models_info.registry import (
    TINY_ANYSTORY,
    TINY_FLUX,
    TINY_SDXL,
    TINY_SDXL_VAE,
    TINY_VAE,
    TINY_VISION,
    ModelFile,
)

_OF_FLUX = {"model": TINY_FLUX, "vae": TINY_VAE}
_OF_SDXL = {"model": TINY_SDXL, "vae": TINY_SDXL_VAE}
_SEEN = {"clip-vision": TINY_VISION}
MODELS: Mapping[str, Mapping[str, ModelFile]] = {
    "astra": {**_OF_FLUX, **_SEEN},
    "one-for-all": _OF_FLUX,
    "flux-base": _OF_FLUX,
    "anystory-encoder": {**_OF_SDXL, **_SEEN},
    "anystory-router": {**_OF_SDXL, **_SEEN, "anystory": TINY_ANYSTORY},
    "sdxl-base": _OF_SDXL,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "astra": {"lora_rank": 4, "dsm_width": 16, "dsm_heads": 2},
    "one-for-all": {"lora_rank": 4, "dam_width": 8},
    "flux-base": {"references": True},
    "anystory-encoder": {
        "queries": 4,
        "qformer_width": 16,
        "qformer_heads": 2,
        "router_width": 16,
        "reference_size": 32,
    },
    "anystory-router": {},
    "sdxl-base": {},
}
SYSTEMS = ("astra", "one-for-all", "anystory-encoder", "anystory-router")  # the papers'


def write_config(path: Path, trainer: str, **settings: Any) -> Path:
    """A configuration of batches of 2 and, unless the settings say more, a single step; returns `path`."""
    config = {"steps": 1, "batch_size": 2, "workers": 1, **SETTINGS[trainer], **settings}
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def tiny_arguments(trainer: str, models: Path) -> list[str]:
    """What the command needs beside ``--config`` and ``--out``; `models` is a models folder with the tiny models."""
    files = [
        word
        for name, entry in MODELS[trainer].items()
        for word in (f"--{name}", str(models / entry.folder / entry.name))
    ]
    kind = "items" if trainer == "one-for-all" else "people"
    puppets = ["--data", "puppets", "--puppets-kind", kind, "--puppets-people", "1", "1"]
    return [*files, "--clip", "minilm", *puppets, "--resolution", "64", "--reference-resolution", "32"]
