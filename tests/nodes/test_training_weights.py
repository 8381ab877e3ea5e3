"""Trained weights as files in the models folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from comfyui_ensemble.attention_patches.anystory_file import load_anystory, read_anystory
from comfyui_ensemble.models_info.registry import ANYSTORY_NETWORKS, DSM_ADAPTERS, TINY_ANYSTORY
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.training_weights import EnsembleSaveWeights
from comfyui_ensemble.training.task import WeightFile, Weights
from comfyui_ensemble.training.weights import save_weights


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("loras", DSM_ADAPTERS, ANYSTORY_NETWORKS):
        entry = ([str(tmp_path / name)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, entry)
    return tmp_path


def weights(value: float = 1.0) -> Weights:
    lora = WeightFile("loras", "_lora", {"up": torch.full((2, 3), value).T}, {})
    return Weights((lora, WeightFile(DSM_ADAPTERS, "_dsm", {"w": torch.full((2,), value)}, {"dsm": "{}"})))


def saved(*arguments: Any) -> list[Path]:
    """The files that the node says it made."""
    result = EnsembleSaveWeights.execute(*arguments).result
    assert result is not None
    return [Path(line) for line in result[0].splitlines()]


def test_every_file_goes_where_its_loader_looks(folders: Path) -> None:
    lora, dsm = saved(weights(), "anna")
    assert (lora, dsm) == (folders / "loras/anna_lora.safetensors", folders / DSM_ADAPTERS / "anna_dsm.safetensors")
    assert torch.equal(load_file(lora)["up"], torch.ones(3, 2))
    with safe_open(dsm, framework="pt") as file:
        assert file.metadata() == {"dsm": "{}"}
    assert "anna_lora.safetensors" in folder_paths.get_filename_list("loras")


def test_a_taken_name_gets_one_number_for_all_files(folders: Path) -> None:
    EnsembleSaveWeights.execute(weights(), "anna")
    (folders / "loras" / "anna_lora.safetensors").unlink()  # one of both is enough
    assert [path.name for path in saved(weights(2.0), "anna")] == [
        "anna_00002_lora.safetensors",
        "anna_00002_dsm.safetensors",
    ]
    assert load_file(folders / DSM_ADAPTERS / "anna_dsm.safetensors")["w"][0] == 1


def test_overwriting_replaces(folders: Path) -> None:
    EnsembleSaveWeights.execute(weights(), "anna.safetensors")
    EnsembleSaveWeights.execute(weights(2.0), "anna", overwrite=True)
    assert [path.name for path in (folders / "loras").iterdir()] == ["anna_lora.safetensors"]
    assert load_file(folders / "loras" / "anna_lora.safetensors")["up"][0, 0] == 2


def test_all_files_or_none(folders: Path) -> None:
    """The second one cannot be written."""
    (folders / DSM_ADAPTERS).write_text("a file where the folder should be")
    with pytest.raises(InputError, match="Save Weights, name: 'anna' cannot be written to"):
        EnsembleSaveWeights.execute(weights(), "anna")
    assert not list((folders / "loras").iterdir())


@pytest.mark.parametrize("name", ["", "  ", "../anna", "a/b", "a\\b", "/anna", "con", "a:b", ".anna", "anna."])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(InputError) as raised:
        EnsembleSaveWeights.execute(weights(), name)
    assert str(raised.value).startswith("Save Weights, name: ")
    assert EnsembleSaveWeights.validate_inputs(name) == str(raised.value)


def test_names_that_will_do() -> None:
    assert EnsembleSaveWeights.validate_inputs(None) is True
    assert EnsembleSaveWeights.validate_inputs("Anna und Jörg 2") is True


def test_an_anystory_is_saved_as_it_was_loaded(tiny_models: Path, folders: Path) -> None:
    source = tiny_models / TINY_ANYSTORY.folder / TINY_ANYSTORY.name
    (path,) = saved(load_anystory(source), "story")
    assert path == folders / ANYSTORY_NETWORKS / "story.safetensors"
    (written, config), (read, sizes) = read_anystory(path), read_anystory(source)
    assert config == sizes and set(written) == set(read)
    assert all(torch.equal(value, read[name]) and value.dtype == read[name].dtype for name, value in written.items())


def test_a_file_is_the_same_whenever_it_is_written(tmp_path: Path) -> None:
    one, other = (save_weights(weights(), "a", place=(tmp_path / run).joinpath) for run in "xy")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
