"""The pack's trainings from the command line, on puppets and with the tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from comfyui_ensemble.attention_patches.anystory_file import load_anystory
from comfyui_ensemble.attention_patches.dam_file import load_dam
from comfyui_ensemble.attention_patches.dsm_file import load_dsm
from comfyui_ensemble.training.command import main
from devtools.tiny_trainings import tiny_arguments, write_config


@pytest.mark.parametrize(
    ("trainer", "files"),
    [
        ("astra", ["ensemble_dsm/brief_dsm", "loras/brief_lora"]),
        ("one-for-all", ["ensemble_dam/brief_dam", "loras/brief_lora"]),
        ("flux-base", ["diffusion_models/brief"]),
        ("anystory-encoder", ["ensemble_anystory/brief"]),
        ("anystory-router", ["ensemble_anystory/brief"]),
        ("sdxl-base", ["diffusion_models/brief"]),
    ],
)
def test_the_command_trains(trainer: str, files: list[str], tiny_models: Path, tmp_path: Path):
    config = write_config(tmp_path / "config.json", trainer, run="brief")
    arguments = [
        trainer,
        "--config",
        str(config),
        "--out",
        str(tmp_path / "run"),
        *tiny_arguments(trainer, tiny_models),
    ]
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
    for path in weights.rglob("ensemble_anystory/*.safetensors"):
        load_anystory(path)
    assert list((tmp_path / "encodings").rglob("*.safetensors"))
