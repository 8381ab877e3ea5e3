"""Load DAM and DAM as nodes, through the pack's own file and the host's sampler."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import comfy.sample
import folder_paths
import node_helpers
import pytest
import torch

from comfyui_ensemble.attention_patches.dam_file import load_dam, write_dam
from comfyui_ensemble.attention_patches.dam_generator import DAMConfig, fresh_dam
from comfyui_ensemble.models_info.registry import DAM_ADAPTERS, TINY_DAM
from comfyui_ensemble.nodes.dam import EnsembleDAM, EnsembleDAMLoader
from comfyui_ensemble.nodes.errors import InputError

CONFIG = DAMConfig(model_width=256, width=32, double_blocks=2, single_blocks=6)


def trained(config: DAMConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in fresh_dam(config, 0).items()
    }


@pytest.fixture(scope="module")
def dam(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("dam") / "a.safetensors"
    write_dam(path, trained(CONFIG), CONFIG)
    return load_dam(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/ensemble_dam."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, DAM_ADAPTERS, ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def cond(clip, text: str):
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    latents = [torch.randn(1, 16, 6, 4, generator=torch.Generator().manual_seed(1))]
    return node_helpers.conditioning_set_values(encoded, {"reference_latents": latents})


def apply(model, dam, strength=1.0) -> Any:
    executed: Any = EnsembleDAM.execute(model, dam, strength)
    return executed.result[0]


def run(model, positive, negative, size=(8, 11)) -> torch.Tensor:
    latent = torch.zeros(1, 16, *size)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(model, noise, 2, 2.0, "euler", "simple", positive, negative, latent, seed=3)


def test_it_reaches_the_picture_as_strongly_as_asked(flux, clip, dam):
    positive, negative = cond(clip, "alice and bob dance"), cond(clip, "")
    plain = run(flux, positive, negative)
    assert torch.equal(plain, run(apply(flux, dam, 0.0), positive, negative))
    pictures = [run(apply(flux, dam, strength), positive, negative) for strength in (0.01, 0.5, 1.0, 2.0)]
    distances = [float((picture - plain).norm()) for picture in pictures]
    assert 0 < distances[0] < distances[1] < distances[2] < distances[3] and torch.isfinite(pictures[3]).all()
    assert torch.equal(plain, run(flux, positive, negative))


def test_the_tiny_dam_is_bit_identical(flux, clip, tiny_models):
    path = tiny_models / TINY_DAM.folder / TINY_DAM.name
    positive, negative = cond(clip, "alice and bob dance"), cond(clip, "")
    assert torch.equal(run(flux, positive, negative), run(apply(flux, load_dam(path)), positive, negative))


def test_chained_the_last_strength_holds(flux, clip, dam):
    positive, negative = cond(clip, "a"), cond(clip, "")
    twice = apply(apply(flux, dam, 2.0), dam, 0.5)
    assert torch.equal(run(twice, positive, negative), run(apply(flux, dam, 0.5), positive, negative))


@pytest.mark.parametrize(
    "change, sizes",
    [
        ({"model_width": 3072}, "width 3072 and 2 + 6 blocks"),
        ({"double_blocks": 19, "single_blocks": 38}, "width 256 and 19 + 38 blocks"),
        ({"single_blocks": 5}, "width 256 and 2 + 5 blocks"),
    ],
)
def test_a_dam_for_another_model(flux, tmp_path, change, sizes):
    config = dataclasses.replace(CONFIG, **change)
    write_dam(tmp_path / "a.safetensors", fresh_dam(config, 0), config)
    for strength in (0.0, 1.0):
        with pytest.raises(InputError) as error:
            apply(flux, load_dam(tmp_path / "a.safetensors"), strength)
        assert str(error.value) == (
            f"DAM, dam: it was made for a model of {sizes}, this one has width 256 and 2 + 6 blocks; connect the DAM of"
            " this model."
        )


def test_other_models_and_second_dams(flux, sdxl, dam):
    with pytest.raises(InputError, match=r"DAM, model: it is a \w+ model; connect a FLUX model\."):
        apply(sdxl, dam)
    with pytest.raises(InputError, match=r"DAM, model: it already carries another DAM; use one for a model\."):
        apply(apply(flux, dam), load_dam(dam.cached_patcher_init[1][0]))


def test_the_loader_finds_what_is_in_its_folder(folder):
    write_dam(folder / "mine.safetensors", fresh_dam(CONFIG, 0), CONFIG)
    choices: Any = EnsembleDAMLoader.define_schema().inputs[0]
    assert choices.options == ["mine.safetensors"]
    assert EnsembleDAMLoader.validate_inputs("mine.safetensors") is True
    assert EnsembleDAMLoader.validate_inputs() is True  # linked
    loaded: Any = EnsembleDAMLoader.execute("mine.safetensors").result
    assert loaded[0].model.config == CONFIG
    before = EnsembleDAMLoader.fingerprint_inputs("mine.safetensors")
    os.utime(folder / "mine.safetensors", (1, 1))
    assert EnsembleDAMLoader.fingerprint_inputs("mine.safetensors") != before


@pytest.mark.parametrize("name", ["gone.safetensors", "../mine.safetensors", "/etc/passwd", ""])
def test_the_loader_refuses_what_is_not(folder, name):
    (folder.parent / "mine.safetensors").write_bytes(b"secret")
    sentence = (
        f"Load DAM, dam_name: there is no '{name}' in models/ensemble_dam; put the DAM's file there or choose one of:"
        " none is there."
    )
    assert EnsembleDAMLoader.validate_inputs(name) == sentence
    with pytest.raises(InputError, match=re.escape(sentence)):
        EnsembleDAMLoader.execute(name)


def test_the_loader_passes_on_what_is_wrong_with_a_file(folder):
    (folder / "cut.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError) as error:
        EnsembleDAMLoader.execute("cut.safetensors")
    assert str(error.value) == (
        "Load DAM, dam_name: 'cut.safetensors' will not do: it is no whole safetensors file; download or copy it again."
    )


def test_the_contract():
    loader, node = EnsembleDAMLoader.define_schema(), EnsembleDAM.define_schema()
    assert (loader.node_id, [i.id for i in loader.inputs]) == ("EnsembleDAMLoader", ["dam_name"])
    assert (node.node_id, [i.id for i in node.inputs]) == ("EnsembleDAM", ["model", "dam", "strength"])
    assert [output.display_name for output in (*loader.outputs, *node.outputs)] == ["dam", "model"]
    assert all(entry.tooltip for entry in [*loader.inputs, *node.inputs])
