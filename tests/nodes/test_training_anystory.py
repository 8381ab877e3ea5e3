"""Train AnyStory Encoder and Train AnyStory Router as nodes, and once on a real server from data to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sample
import folder_paths
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_file import load_anystory
from comfyui_ensemble.models_info.registry import ANYSTORY_NETWORKS, TINY_SDXL_VAE
from comfyui_ensemble.nodes.anystory import EnsembleAnyStory
from comfyui_ensemble.nodes.anystory_encode import EnsembleAnyStoryEncode
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.training_anystory import EnsembleTrainAnyStoryEncoder, EnsembleTrainAnyStoryRouter
from comfyui_ensemble.nodes.training_run import RUNS
from comfyui_ensemble.nodes.training_weights import EnsembleSaveWeights
from devtools.coloured_scenes import NETWORK, coloured_data
from devtools.server import ComfyServer

BRIEF = {"steps": 2, "batch_size": 2, "workers": 1}
ENCODER = {**BRIEF, **NETWORK, "run": "brief_encoder", "regions": "masks", "picture_every": 2}
ROUTER = {**BRIEF, "run": "brief_router", "save_every": 0}


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty output folder, and an empty one for AnyStory networks."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    networks = ([str(tmp_path / ANYSTORY_NETWORKS)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, ANYSTORY_NETWORKS, networks)
    folder_paths.filename_list_cache.clear()
    return tmp_path


def test_both_stages_one_after_the_other(sdxl, sdxl_vae, clip, vision, output: Path):
    """In inference mode, as the host runs its nodes. What comes out goes into the inference nodes, and into a file."""
    models = (sdxl, sdxl_vae, clip, vision)
    before = {name: value.clone() for name, value in sdxl.model.diffusion_model.state_dict().items()}
    first, plot = EnsembleTrainAnyStoryEncoder.execute(*models, coloured_data(), json.dumps(ENCODER)).args
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[3] == 3
    assert list((output / RUNS / "brief_encoder").rglob("*.png"))
    start = {name: value.clone() for name, value in first.injecting.model.state_dict().items()}
    second, _ = EnsembleTrainAnyStoryRouter.execute(*models, coloured_data(), json.dumps(ROUTER), first).args
    assert all(torch.equal(value, before[name]) for name, value in sdxl.model.diffusion_model.state_dict().items())
    changed = {
        name.partition(".")[0]
        for name, value in second.injecting.model.state_dict().items()
        if not torch.equal(value, start[name])
    }
    assert changed == {"routers"}
    assert all(torch.equal(value, start[name]) for name, value in first.injecting.model.state_dict().items())
    path = Path(EnsembleSaveWeights.execute(second, "mine").args[0])
    loaded = load_anystory(path)
    for half, other in ((loaded.encoding, second.encoding), (loaded.injecting, second.injecting)):
        assert all(
            torch.equal(value, other.model.state_dict()[name]) for name, value in half.model.state_dict().items()
        )
    assert torch.equal(drawn(second, *models), drawn(loaded, *models))


def drawn(anystory, sdxl, sdxl_vae, clip, vision) -> torch.Tensor:
    """Two steps of a picture with a subject, through the inference nodes."""
    subject = Subject(
        torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0)), torch.ones(1, 32, 32), "a", "a", "other"
    )
    features = EnsembleAnyStoryEncode.execute(anystory, Cast((subject,)), vision, sdxl_vae).args[0]
    model, _ = EnsembleAnyStory.execute(sdxl, features, 1.0, 0.0, 0.0, 1.0).args
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("a colour"))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return comfy.sample.sample(
        model, noise, 2, 3.0, "euler", "normal", prompt, prompt, torch.zeros_like(noise), disable_pbar=True
    )


def test_settings_are_checked_before_anything_runs():
    for node, name, misspelt, meant in (
        (EnsembleTrainAnyStoryEncoder, "Train AnyStory Encoder", "querys", "queries"),
        (EnsembleTrainAnyStoryRouter, "Train AnyStory Router", "temprature", "temperature"),
    ):
        assert node.validate_inputs("") is True and node.validate_inputs(None) is True
        for settings, sentence in (
            ('{"learning_rate": NaN}', f"{name}, config: learning_rate is nan"),
            (f'{{"{misspelt}": 8}}', f"{name}, config: there is no setting '{misspelt}'; '{meant}' is probably meant."),
        ):
            assert str(node.validate_inputs(settings)).startswith(sentence)


def test_what_does_not_fit_is_said_at_its_input(flux, sdxl, sdxl_vae, vae, clip, vision, anystory, output: Path):
    encoder, router = json.dumps(ENCODER), json.dumps(ROUTER)
    with pytest.raises(InputError, match="Train AnyStory Encoder, model: it is no SDXL; connect an SDXL model"):
        EnsembleTrainAnyStoryEncoder.execute(flux, sdxl_vae, clip, vision, coloured_data(), encoder)
    with pytest.raises(InputError, match="Train AnyStory Router, vae: it makes latents of 16 channels"):
        EnsembleTrainAnyStoryRouter.execute(sdxl, vae, clip, vision, coloured_data(), router, anystory)
    with pytest.raises(InputError, match=r"Train AnyStory Router, data: .*'colour 1' has no mask in the target"):
        EnsembleTrainAnyStoryRouter.execute(sdxl, sdxl_vae, clip, vision, coloured_data(masks=False), router, anystory)


def prompt() -> dict[str, Any]:
    encoders = {"model": ["1", 0], "vae": ["2", 0], "clip": ["3", 0], "clip_vision": ["4", 0], "data": ["5", 0]}
    return {
        "1": {"class_type": "EnsembleTinySDXL", "inputs": {}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": TINY_SDXL_VAE.name}},
        "3": {"class_type": "EnsembleMiniLMTextEncoder", "inputs": {}},
        "4": {"class_type": "EnsembleTinyCLIPVision", "inputs": {}},
        "5": {
            "class_type": "EnsembleTrainingData",
            "inputs": {"manifest": "puppets: people", "resolution": 64, "reference_resolution": 32, "seed": 0},
        },
        "6": {"class_type": "EnsembleTrainAnyStoryEncoder", "inputs": {**encoders, "config": json.dumps(ENCODER)}},
        "7": {
            "class_type": "EnsembleTrainAnyStoryRouter",
            "inputs": {**encoders, "config": json.dumps(ROUTER), "anystory": ["6", 0]},
        },
        "8": {"class_type": "EnsembleSaveWeights", "inputs": {"weights": ["7", 0], "name": "brief_anystory"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["7", 1], "filename_prefix": "brief_anystory"}},
    }


def test_on_a_server(server: ComfyServer):
    history = server.run(prompt())
    assert history["status"]["status_str"] == "success"
    saved = load_anystory(server.models / ANYSTORY_NETWORKS / "brief_anystory.safetensors")
    assert saved.config.queries == NETWORK["queries"]
    assert list((server.data / "output").glob("brief_anystory*.png"))
