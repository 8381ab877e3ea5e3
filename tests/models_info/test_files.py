"""Names that every system can have, and files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_ensemble.models_info.files import is_file_name, whole_file

GOOD = ("alice", "my cast-2", "名前", "ünï.v2", "👩 and 👨", "con1", "x" * 200, "é" * 100)
BAD = (
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "a\\b",
    "../x",
    "/x",
    "C:x",
    "a?",
    "a\0b",
    "a\nb",
    "end.",
    "end ",
    "CON",
    "nul.txt",
    "x" * 201,
    "é" * 101,
)
HALF_SIGNS = ("\ud800", "a\udfffb")  # what JSON's \\ud800 becomes


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str, tmp_path: Path):
    assert is_file_name(name)
    with whole_file(tmp_path / name) as file:
        file.write_bytes(b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", [*BAD, *HALF_SIGNS], ids=ascii)
def test_bad_names(name: str):
    assert not is_file_name(name)


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path):
    with pytest.raises(ValueError, match="no room"), whole_file(tmp_path / "weights.safetensors") as file:
        file.write_bytes(b"1")
        raise ValueError("no room")
    assert not list(tmp_path.iterdir())
