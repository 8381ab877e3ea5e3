"""Models and data as a command gets them: by the paths of files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import comfy.model_base
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from safetensors.torch import save_file

from comfyui_ensemble.models_info.registry import TINY_FLUX, TINY_SDXL, TINY_SDXL_VAE, TINY_VAE, TINY_VISION, ModelFile
from comfyui_ensemble.training.arguments import (
    add_data_arguments,
    add_keep_argument,
    add_model_arguments,
    load_data,
    load_keep,
)
from comfyui_ensemble.training.config import TrainingConfig
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.models import MINILM, load_clip, load_flux, load_sdxl, load_vae, load_vision


def path(folder: Path, entry: ModelFile) -> Path:
    return folder / entry.folder / entry.name


def test_the_tiny_models_are_known(tiny_models: Path, flux: ModelPatcher, sdxl: ModelPatcher, vision: Any) -> None:
    for load, entry, other, kind in (
        (load_flux, TINY_FLUX, flux, comfy.model_base.Flux),
        (load_sdxl, TINY_SDXL, sdxl, comfy.model_base.SDXL),
    ):
        model = load(path(tiny_models, entry))
        assert isinstance(model.model, kind)
        own, its = model.model.diffusion_model.state_dict(), other.model.diffusion_model.state_dict()
        assert all(torch.equal(own[name], value) for name, value in its.items())
    for entry, channels in ((TINY_VAE, 16), (TINY_SDXL_VAE, 4)):
        assert load_vae(path(tiny_models, entry)).latent_channels == channels
    pixels = torch.rand(1, 32, 32, 3)
    seen: Any = load_vision(path(tiny_models, TINY_VISION)).encode_image(pixels)
    assert torch.equal(seen.image_embeds, vision.encode_image(pixels).image_embeds)


def test_minilm_by_its_name(clip: Any) -> None:
    own = load_clip([MINILM], flux=True)
    text: Any = own.encode_from_tokens(own.tokenize("a red coat"))
    assert torch.equal(text, clip.encode_from_tokens(clip.tokenize("a red coat")))


@pytest.mark.parametrize(
    "load", [load_flux, load_sdxl, load_vae, load_vision, lambda file: load_clip([str(file)], True)]
)
def test_files_that_will_not_do(tmp_path: Path, load: Any) -> None:
    with pytest.raises(TrainingError, match=r"there is no file .*nowhere.safetensors; give the path"):
        load(tmp_path / "nowhere.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(TrainingError, match="no whole safetensors file; download or copy it again"):
        load(tmp_path / "cut.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(TrainingError, match=r"ComfyUI does not know what .*other.safetensors is; choose another file"):
        load(tmp_path / "other.safetensors")


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, "model", "clip", "clip_vision")
    add_keep_argument(parser)
    add_data_arguments(parser, 128, 64)
    models = ("--model", "m.safetensors", "--clip", "a", "b", "--clip-vision", "v.safetensors")
    return parser.parse_args([*models, *arguments])


def test_models_are_given_as_paths() -> None:
    chosen = parsed("--data", "puppets")
    assert (chosen.model, chosen.clip, chosen.clip_vision) == (Path("m.safetensors"), ["a", "b"], Path("v.safetensors"))


def test_puppets_as_data() -> None:
    plain = load_data(parsed("--data", "puppets"), TrainingConfig(augment_references=False))
    chosen = ("--data", "puppets", "--puppets-kind", "items", "--puppets-people", "1", "1", "--puppets-count", "5")
    items = load_data(parsed(*chosen), TrainingConfig(seed=3, augment_references=False))
    assert len(items) == 5 and items.seed == 3
    assert items.load(items.batch(0, 1)[0]).target.shape == (128, 128, 3)
    augmented = load_data(parsed("--data", "puppets"), TrainingConfig(augment_references=True))
    silent = load_data(parsed("--data", "puppets", "--puppets-without-looks"), TrainingConfig(augment_references=False))
    assert len({each.identity for each in (plain, items, augmented, silent)}) == 4


def test_a_manifest_as_data(tmp_path: Path) -> None:
    rows = []
    for number in range(2):
        Image.new("RGB", (128, 128), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
        subject = {"reference": f"{number}.png", "name": "a", "description": "a coat", "category": "person"}
        rows.append({"target": f"{number}.png", "caption": "a coat hangs", "subjects": [subject]})
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    data = load_data(parsed("--data", str(manifest)), TrainingConfig())
    assert data.load(data.batch(0, 1)[0]).caption == "a coat hangs"


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"--data: there is no file .*; give a manifest, or the word puppets"):
        load_data(parsed("--data", str(tmp_path / "none.jsonl")), TrainingConfig())


def test_encodings_are_kept_in_a_folder(tmp_path: Path) -> None:
    assert load_keep(parsed("--data", "puppets")) is None
    keep = load_keep(parsed("--data", "puppets", "--encodings", str(tmp_path / "new" / "kept")))
    assert keep is not None
    keep("a", lambda: {"x": torch.zeros(2)})
    assert len(list((tmp_path / "new" / "kept").rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_encodings_that_cannot_be_kept(tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(TrainingError) as raised:
        load_keep(parsed("--data", "puppets", "--encodings", str(tmp_path / place)))
    said = str(raised.value)
    assert (
        said.startswith(f"--encodings {tmp_path / place}: there can be no such folder (") and "give another one" in said
    )
