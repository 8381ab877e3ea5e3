"""Checkpoints on the disk: whole or not there, rotated, and passed over where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from comfyui_ensemble.training.checkpoint import (
    HEADER,
    Checkpoint,
    newest_checkpoint,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.loop import train
from comfyui_ensemble.training.progress import Progress
from devtools.toy_training import ToyConfig, ToyTask, toy_data


def checkpoint(step: int) -> Checkpoint:
    tensors = {"weight/a": torch.full((3, 2), float(step)), "step/a": torch.tensor(float(step))}
    return Checkpoint(step, tensors, {"config": {"seed": 1}, "data": "d"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(7), keep=1)
    read = read_checkpoint(path)
    assert read.step == 7 and read.state["config"] == {"seed": 1}
    assert all(torch.equal(value, read.tensors[name]) for name, value in checkpoint(7).tensors.items())
    with safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == [HEADER]
    assert write_checkpoint(tmp_path / "again", checkpoint(7), keep=1).read_bytes() == path.read_bytes()


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 100):
        write_checkpoint(tmp_path, checkpoint(step), keep=2)
        assert len(names(tmp_path)) <= 2
    assert names(tmp_path) == ["step-00000010.safetensors", "step-00000100.safetensors"]


def test_the_old_one_goes_only_when_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at the moment the file gets its name: the old one is still there, and nobody sees the new one half written."""
    write_checkpoint(tmp_path, checkpoint(1), keep=1)
    seen: list[list[str]] = []
    rename = Path.chmod

    def watched(path: Path, mode: int) -> None:
        rename(path, mode)
        read_checkpoint(path)  # complete under its temporary name
        seen.append(names(tmp_path))

    monkeypatch.setattr(Path, "chmod", watched)
    write_checkpoint(tmp_path, checkpoint(2), keep=1)
    assert len(seen) == 1 and "step-00000001.safetensors" in seen[0] and "step-00000002.safetensors" not in seen[0]
    assert names(tmp_path) == ["step-00000002.safetensors"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def garble(path: Path) -> None:
    path.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"not json at all!" + path.read_bytes())


@pytest.mark.parametrize("damage", [truncate, empty, flip, garble])
def test_a_damaged_one_is_passed_over_and_said_so(tmp_path: Path, damage) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    damage(write_checkpoint(tmp_path, checkpoint(2), keep=3))
    told: list[str] = []
    found = newest_checkpoint(tmp_path, told.append)
    assert found is not None and found.step == 1
    assert told == ["the checkpoint step-00000002.safetensors is damaged and is passed over"]


def test_another_version_is_passed_over_and_said_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Checkpoint(2, {}, {"version": "0"}), keep=3)
    told: list[str] = []
    with pytest.raises(TrainingError, match="none of the checkpoints"):
        newest_checkpoint(tmp_path, told.append)
    assert told == ["the checkpoint step-00000002.safetensors is of another version and is passed over"]


def test_where_none_is_whole_nothing_is_begun_over_it(tmp_path: Path) -> None:
    flip(write_checkpoint(tmp_path, checkpoint(2), keep=3))
    with pytest.raises(TrainingError, match="begin afresh, or give the run another name"):
        newest_checkpoint(tmp_path, lambda _: None)
    assert names(tmp_path) == ["step-00000002.safetensors"]


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere", lambda _: None) is None


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(2), keep=3)
    (tmp_path / f".{path.name}.123.partial").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=3)
    (tmp_path / "step-00000002.safetensors").mkdir()  # the name is taken by something else
    with pytest.raises(TrainingError) as raised:
        write_checkpoint(tmp_path, checkpoint(2), keep=3)
    assert "the checkpoint of step 2 could not be written" in str(raised.value)
    assert read_checkpoint(tmp_path / "step-00000001.safetensors").step == 1


def test_a_run_goes_back_to_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    config = ToyConfig(steps=20, save_every=5, workers=0)
    through = train(ToyTask(), toy_data(), config, tmp_path / "through")
    train(ToyTask(), toy_data(), config, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step-00000020.safetensors")
    notes: list[str] = []

    def report(progress: Progress) -> None:
        if progress.note:
            notes.append(progress.note)

    again = train(ToyTask(), toy_data(), config, tmp_path / "run", report)
    assert notes == [
        "the checkpoint step-00000020.safetensors is damaged and is passed over",
        "the run 'training' continues after step 15",
    ]
    for name, value in through.weights.files[0].tensors.items():
        assert torch.equal(again.weights.files[0].tensors[name], value)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000020.safetensors").step == 20
