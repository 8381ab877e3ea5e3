"""The embedded default weights."""

from __future__ import annotations

import comfy.model_base
import torch
from safetensors.torch import load_file

from comfyui_ensemble.training.tiny import FLUX_CONFIG, main, write_tiny_models


def test_the_same_seed_gives_the_same_bytes(tmp_path, tiny_models):
    for path in write_tiny_models(tmp_path / "again", seed=0):
        assert path.read_bytes() == (tiny_models / path.relative_to(tmp_path / "again")).read_bytes()
    for path in write_tiny_models(tmp_path / "other", seed=1):
        assert path.read_bytes() != (tiny_models / path.relative_to(tmp_path / "other")).read_bytes()


def test_the_host_detects_flux_of_the_right_size(flux):
    assert isinstance(flux.model, comfy.model_base.Flux)
    found = flux.model.model_config.unet_config
    assert {key: found[key] for key in FLUX_CONFIG} == FLUX_CONFIG
    assert sum(value.numel() for value in flux.model.diffusion_model.parameters()) == 11_342_400


def test_the_host_detects_taef1(vae):
    latent = vae.encode(torch.rand(1, 64, 48, 3))
    assert latent.shape == (1, 16, 8, 6)
    assert vae.decode(latent).shape == (1, 64, 48, 3)


def test_the_files_are_small(tiny_models):
    size = sum(path.stat().st_size for path in tiny_models.rglob("*.safetensors"))
    assert size < 65e6
    for path in tiny_models.rglob("*.safetensors"):
        assert all(torch.isfinite(value.float()).all() for value in load_file(path).values())


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    assert main(["--models-dir", str(tmp_path / "taken"), "--all"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith(f"--models-dir {tmp_path / 'taken'}: it cannot be written to (")


def test_the_command_writes_what_does_not_come_trained(tmp_path, tiny_models, capsys):
    assert main(["--models-dir", str(tmp_path)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written and sorted(written) == sorted(str(path) for path in tmp_path.rglob("*.safetensors"))
