"""Puppets as files."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.manifest_source import ManifestSource
from comfyui_ensemble.training.puppets import PuppetSource
from comfyui_ensemble.training.puppets.__main__ import main
from comfyui_ensemble.training.puppets.export import export


@pytest.mark.parametrize("kind", ["people", "items"])
def test_files_read_back_as_the_same_samples(kind: str, tmp_path: Path) -> None:
    source = PuppetSource(2, people=(1, 3), kind=kind)
    read = ManifestSource(export(source, tmp_path, 5))
    assert len(read) == 5
    for index in range(5):
        made, found = source.sample(index), read.sample(index)
        assert torch.equal(made.target, found.target)
        assert made.caption == found.caption
        for one, other in zip(made.subjects, found.subjects, strict=True):
            assert (one.name, one.description, one.category) == (other.name, other.description, other.category)
            assert one.box == other.box
            assert torch.equal(one.reference, other.reference)
            assert torch.equal(one.reference_mask, other.reference_mask)
            assert one.mask is not None and other.mask is not None and torch.equal(one.mask, other.mask)
            assert one.person is not None and other.person is not None
            for name, values in one.person.items():
                assert other.person[name] == pytest.approx(values, abs=0.01)


def test_the_command_writes_a_manifest_and_a_sheet(tmp_path: Path) -> None:
    sheet, data = tmp_path / "sheet.png", tmp_path / "data"
    options = ["--count", "4", "--size", "96x64", "--seed", "3", "--kind", "items"]
    assert main([*options, "--out", str(data), "--sheet", str(sheet)]) == 0
    assert len(ManifestSource(data / "manifest.jsonl")) == 4
    target = cv2.imread(str(data / "pictures" / "000000.png"))
    assert target is not None and target.shape == (64, 96, 3)
    assert cv2.imread(str(sheet)) is not None
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    for arguments in (
        ["--count", "1"],
        ["--out", str(tmp_path), "--size", "8x8"],
        ["--out", str(tmp_path), "--people", "3", "9"],
        ["--out", str(tmp_path / "file"), "--count", "1"],
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert ";" in message


def test_without_all_pictures_there_is_no_manifest(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(PuppetSource(1), tmp_path, 4, stop)
    assert not (tmp_path / "manifest.jsonl").exists()
    (tmp_path / "pictures").rename(tmp_path / "moved")
    (tmp_path / "pictures").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        export(PuppetSource(1), tmp_path, 1)
