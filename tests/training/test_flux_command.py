"""The trainings of FLUX from the command line, on puppets and with the tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from comfyui_ensemble.attention_patches.dam_file import load_dam
from comfyui_ensemble.attention_patches.dsm_file import load_dsm
from comfyui_ensemble.models_info.registry import TINY_FLUX, TINY_VAE, TINY_VISION
from comfyui_ensemble.training.command import main

BRIEF = {"steps": 1, "batch_size": 2, "workers": 1}
RANK = {**BRIEF, "lora_rank": 4}


@pytest.mark.parametrize(
    ("trainer", "settings", "files"),
    [
        ("astra", {**RANK, "dsm_width": 16, "dsm_heads": 2}, ["ensemble_dsm/brief_dsm", "loras/brief_lora"]),
        ("one-for-all", {**RANK, "dam_width": 8}, ["ensemble_dam/brief_dam", "loras/brief_lora"]),
        ("flux-base", {**BRIEF, "references": True}, ["diffusion_models/brief"]),
    ],
)
def test_the_command_trains(trainer, settings, files, tiny_models: Path, tmp_path: Path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**settings, "run": "brief"}), encoding="utf-8")
    paths = {
        name: str(tiny_models / entry.folder / entry.name)
        for name, entry in (("model", TINY_FLUX), ("vae", TINY_VAE), ("clip-vision", TINY_VISION))
    }
    if trainer != "astra":
        del paths["clip-vision"]
    arguments = [trainer, "--config", str(config), "--out", str(tmp_path / "run"), "--clip", "minilm"]
    arguments += [word for name, path in paths.items() for word in (f"--{name}", path)]
    arguments += ["--data", "puppets", "--resolution", "64", "--reference-resolution", "32"]
    arguments += ["--puppets-kind", "items" if trainer == "one-for-all" else "people", "--puppets-people", "1", "1"]
    arguments += ["--encodings", str(tmp_path / "encodings")]
    assert main(arguments) == 0
    weights = tmp_path / "run" / "weights"
    assert sorted(str(path.relative_to(weights)) for path in weights.rglob("*.safetensors")) == [
        f"{name}.safetensors" for name in files
    ]
    for path in weights.rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())
    for path in weights.rglob("*_dsm.safetensors"):
        load_dsm(path)
    for path in weights.rglob("*_dam.safetensors"):
        load_dam(path)
    assert list((tmp_path / "encodings").rglob("*.safetensors"))
