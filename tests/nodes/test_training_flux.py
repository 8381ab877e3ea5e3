"""Train ASTRA and Train One-for-All as nodes, and once on a real server from data to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch

from comfyui_ensemble.attention_patches.dam_file import load_dam
from comfyui_ensemble.attention_patches.dsm_file import load_dsm
from comfyui_ensemble.models_info.registry import DAM_ADAPTERS, DSM_ADAPTERS, TINY_FLUX, TINY_VAE
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.training_flux import EnsembleTrainASTRA, EnsembleTrainOneForAll
from comfyui_ensemble.nodes.training_run import RUNS
from comfyui_ensemble.training.data import TrainingData
from devtools.block_scenes import BlockScenes
from devtools.server import ComfyServer

BRIEF = {"steps": 2, "batch_size": 2, "lora_rank": 4, "workers": 1, "picture_steps": 2}
ASTRA = {**BRIEF, "run": "brief_astra", "dsm_width": 16, "dsm_heads": 2, "dsm_subjects": 2, "picture_every": 2}
ONE_FOR_ALL = {**BRIEF, "run": "brief_one_for_all", "dam_width": 8, "categories": {"face": 1, "bag": 1}}


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty output folder."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def data(*categories: str) -> TrainingData:
    return TrainingData(BlockScenes(size=(48, 48), categories=categories), 48, 32)


def test_astra(flux, vae, clip, vision, output: Path):
    """In inference mode, as the host runs its nodes; the model given stays as it is."""
    before = {name: value.clone() for name, value in flux.model.diffusion_model.state_dict().items()}
    weights, plot = EnsembleTrainASTRA.execute(flux, vae, clip, vision, data("person"), json.dumps(ASTRA)).args
    assert [(file.folder, file.suffix) for file in weights.files] == [("loras", "_lora"), (DSM_ADAPTERS, "_dsm")]
    assert all(value.isfinite().all() for file in weights.files for value in file.tensors.values())
    assert any(value.any() for name, value in weights.files[0].tensors.items() if name.endswith("lora_up.weight"))
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[3] == 3
    assert all(torch.equal(value, before[name]) for name, value in flux.model.diffusion_model.state_dict().items())
    run = output / RUNS / "brief_astra"
    assert list(run.rglob("*.safetensors")) and list(run.rglob("*.png"))  # a checkpoint and a sample picture


def test_one_for_all(flux, vae, clip, output: Path):
    settings = json.dumps(ONE_FOR_ALL)
    weights, plot = EnsembleTrainOneForAll.execute(flux, vae, clip, data("face", "bag"), settings).args
    assert [(file.folder, file.suffix) for file in weights.files] == [("loras", "_lora"), (DAM_ADAPTERS, "_dam")]
    assert any(value.any() for name, value in weights.files[1].tensors.items() if name.endswith("mlp_out.weight"))
    assert plot.shape[0] == 1


def test_settings_are_checked_before_anything_runs():
    for node, name in ((EnsembleTrainASTRA, "Train ASTRA"), (EnsembleTrainOneForAll, "Train One-for-All")):
        assert node.validate_inputs("") is True and node.validate_inputs(None) is True
        for settings, sentence in (
            ('{"learning_rate": NaN}', f"{name}, config: learning_rate is nan"),
            ('{"lora_rnak": 8}', f"{name}, config: there is no setting 'lora_rnak'; 'lora_rank' is probably meant."),
            ("rank 8", f"{name}, config: it is not JSON"),
        ):
            assert str(node.validate_inputs(settings)).startswith(sentence)


def test_what_does_not_fit_is_said_at_its_input(flux, sdxl, sdxl_vae, vae, clip, vision, output: Path):
    settings = json.dumps(ASTRA)
    with pytest.raises(InputError, match="Train ASTRA, model: it is a SDXL model; connect a FLUX model"):
        EnsembleTrainASTRA.execute(sdxl, vae, clip, vision, data("person"), settings)
    with pytest.raises(InputError, match="Train ASTRA, vae: it makes latents of 4 channels, the model reads 16"):
        EnsembleTrainASTRA.execute(flux, sdxl_vae, clip, vision, data("person"), settings)
    with pytest.raises(InputError, match="Train One-for-All, data: no subject is of the category 'bag'"):
        EnsembleTrainOneForAll.execute(flux, vae, clip, data("face"), json.dumps(ONE_FOR_ALL))


def prompt(trainer: str, source: str, settings: dict[str, Any], name: str) -> dict[str, Any]:
    encoders = {"model": ["1", 0], "vae": ["2", 0], "clip": ["3", 0]}
    if trainer == "EnsembleTrainASTRA":
        encoders["clip_vision"] = ["4", 0]
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": TINY_FLUX.name, "weight_dtype": "default"}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": TINY_VAE.name}},
        "3": {"class_type": "EnsembleMiniLMTextEncoder", "inputs": {}},
        "4": {"class_type": "EnsembleTinyCLIPVision", "inputs": {}},
        "5": {
            "class_type": "EnsembleTrainingData",
            "inputs": {"manifest": source, "resolution": 64, "reference_resolution": 32, "seed": 0},
        },
        "6": {"class_type": trainer, "inputs": {**encoders, "data": ["5", 0], "config": json.dumps(settings)}},
        "7": {"class_type": "EnsembleSaveWeights", "inputs": {"weights": ["6", 0], "name": name}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["6", 1], "filename_prefix": name}},
    }


@pytest.mark.parametrize(
    ("trainer", "source", "settings", "folder", "suffix", "load"),
    [
        ("EnsembleTrainASTRA", "puppets: people", ASTRA, DSM_ADAPTERS, "_dsm", load_dsm),
        ("EnsembleTrainOneForAll", "puppets: items", ONE_FOR_ALL, DAM_ADAPTERS, "_dam", load_dam),
    ],
)
def test_on_a_server(server: ComfyServer, trainer, source, settings, folder, suffix, load):
    name = settings["run"]
    history = server.run(prompt(trainer, source, settings, name))
    assert history["status"]["status_str"] == "success"
    assert (server.models / "loras" / f"{name}_lora.safetensors").is_file()
    assert load(server.models / folder / f"{name}{suffix}.safetensors").model.config is not None
    assert list((server.data / "output").glob(f"{name}*.png"))
