"""Model folders and files."""

from __future__ import annotations

import folder_paths
import numpy as np
import pytest
from safetensors.numpy import save_file

from comfyui_ensemble.models_info import registry
from comfyui_ensemble.models_info.files import whole_file
from comfyui_ensemble.models_info.registry import (
    BUNDLED_POSES,
    MODEL_FILES,
    POSE_DATABASES,
    TINY_FLUX,
    TINY_VAE,
    TRAINED,
    comes_trained,
    find_file,
    list_files,
    register_folders,
)
from comfyui_ensemble.training.tiny import write_tiny_models


def test_the_bundled_database_is_listed_and_found():
    assert BUNDLED_POSES.name in list_files(POSE_DATABASES)
    path = find_file(POSE_DATABASES, BUNDLED_POSES.name)
    assert path is not None and path.is_file()


@pytest.mark.parametrize("name", ["../README.md", "/etc/hostname", "no such file.safetensors", "..\\x", ""])
def test_names_that_lead_elsewhere_are_never_found(name):
    assert find_file(POSE_DATABASES, name) is None


def test_registering_twice_changes_nothing():
    before = folder_paths.get_folder_paths(POSE_DATABASES)
    register_folders()
    assert folder_paths.get_folder_paths(POSE_DATABASES) == before


def test_trained_models_are_found_after_the_users_own(tmp_path, monkeypatch):
    trained = tmp_path / TINY_VAE.folder / TINY_VAE.name
    with whole_file(trained) as temporary:
        save_file({"a": np.zeros(1)}, temporary)
    paths, endings = folder_paths.folder_names_and_paths[TINY_VAE.folder]
    paths = [path for path in paths if path != str(TRAINED / TINY_VAE.folder)]  # a pack of other weights
    monkeypatch.setattr(registry, "TRAINED", tmp_path)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, TINY_VAE.folder, ([*paths], endings))
    assert comes_trained(TINY_VAE) and not comes_trained(TINY_FLUX)
    register_folders()
    assert folder_paths.get_folder_paths(TINY_VAE.folder) == [*paths, str(trained.parent)]
    assert find_file(TINY_VAE.folder, TINY_VAE.name) == trained

    written = write_tiny_models(tmp_path / "models", only_untrained=True)
    assert TINY_VAE.name not in [path.name for path in written]
    assert TINY_FLUX.name in [path.name for path in written]


def test_every_missing_model_sentence_names_file_folder_and_source():
    for entry in MODEL_FILES:
        sentence = entry.missing()
        assert entry.name in sentence and f"models/{entry.folder}" in sentence and entry.source in sentence
        assert "\n" not in sentence


def test_folders_are_ones_the_host_knows():
    for entry in MODEL_FILES:
        assert entry.folder in folder_paths.folder_names_and_paths


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "deep" / "file.bin"
    with pytest.raises(RuntimeError), whole_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with whole_file(target) as temporary:
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole" and list(target.parent.iterdir()) == [target]


def test_a_saved_file_has_the_usual_permissions(tmp_path):
    plain, saved = tmp_path / "plain", tmp_path / "saved"
    plain.touch()
    with whole_file(saved) as temporary:
        save_file({"a": np.zeros(1)}, temporary)
    assert saved.stat().st_mode == plain.stat().st_mode
