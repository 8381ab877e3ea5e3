"""Training Data, alone and on a real server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.training_data import PUPPETS, EnsembleTrainingData
from comfyui_ensemble.training.data import TrainingData
from devtools.server import ComfyServer


def write_manifest(folder: Path, rows: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(rows):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        subject = {"reference": f"{number}.png", "name": "rex", "description": "a dog", "category": "animal"}
        lines.append(json.dumps({"target": f"{number}.png", "caption": "a dog", "subjects": [subject]}))
    path = folder / "dogs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Iterator[Path]:
    """An input folder of its own."""
    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_input_directory(before)


def run(
    manifest: str, resolution: int = 64, reference_resolution: int = 48, seed: int = 0, **others: Any
) -> TrainingData:
    return EnsembleTrainingData.execute(manifest, resolution, reference_resolution, seed, **others).args[0]


def options() -> list[str]:
    schema = EnsembleTrainingData.define_schema()
    return list(next(one for one in schema.inputs if one.id == "manifest").options)  # pyright: ignore


def test_manifests_of_the_input_folder_are_offered_after_the_puppets(inputs: Path):
    write_manifest(inputs)
    write_manifest(inputs / "set one")
    (inputs / "notes.json").write_text("{}")
    assert options() == [*PUPPETS, "dogs.jsonl", "set one/dogs.jsonl"]


def test_a_manifest_becomes_data(inputs: Path):
    write_manifest(inputs / "set")
    data = run("set/dogs.jsonl", seed=5)
    assert len(data) == 3 and data.seed == 5
    sample = data.load(data.batch(0, 2)[0])
    assert sample.target.shape == (48, 80, 3) and sample.subjects[0].reference.shape == (32, 48, 3)


@pytest.mark.parametrize("choice, categories", [("puppets: people", {"person"}), ("puppets: items", {"face"})])
def test_the_puppets_are_data_too(choice: str, categories: set[str]):
    data = run(choice, seed=2**64 - 1, most_people=1)
    samples = [data.load(draw) for draw in data.batch(0, 4)]
    assert all(sample.target.shape == (64, 64, 3) for sample in samples)
    assert categories <= {one.category for sample in samples for one in sample.subjects}
    assert all(one.reference.shape == (48, 48, 3) for sample in samples for one in sample.subjects)
    again, other = run(choice, seed=2**64 - 1, most_people=1), run(choice, seed=1, most_people=1)
    assert data.identity == again.identity != other.identity
    assert torch.equal(again.load(again.batch(0, 4)[3]).target, samples[3].target)


def test_most_people_is_what_it_says():
    def most(people: int) -> int:
        data = run("puppets: people", most_people=people)
        return max(len(data.load(draw).subjects) for draw in data.batch(0, 16))

    assert most(1) == 1 and 2 < most(4) <= 4


def test_fewest_people_is_what_it_says():
    data = run("puppets: people", most_people=3, fewest_people=2)
    assert {len(data.load(draw).subjects) for draw in data.batch(0, 16)} == {2, 3}
    with pytest.raises(InputError) as caught:
        run("puppets: people", most_people=2, fewest_people=3)
    assert str(caught.value) == "Training Data, fewest_people: it is 3, more than most_people, which is 2; lower it."


def test_without_looks_captions_do_not_say_what_anybody_wears():
    told, silent = (run("puppets: people", most_people=1, looks=looks) for looks in (True, False))
    for draw in told.batch(0, 8):
        (one,), (other,) = told.load(draw).subjects, silent.load(draw).subjects
        assert " in a" in one.description and other.description.split()[1:] in (["girl"], ["boy"], ["woman"], ["man"])
        assert torch.equal(one.reference, other.reference)


@pytest.mark.parametrize("name", ["none.jsonl", "../dogs.jsonl", "/etc/passwd", "notes.json", "set", ""])
def test_a_manifest_that_is_not_there_is_a_sentence(inputs: Path, name: str):
    write_manifest(inputs)
    write_manifest(inputs.parent)
    (inputs / "notes.json").write_text("{}")
    (inputs / "set").mkdir()
    sentence = EnsembleTrainingData.validate_inputs(manifest=name)
    assert isinstance(sentence, str)
    assert sentence.startswith(f"Training Data, manifest: there is no manifest '{name}' in ComfyUI's input folder;")
    assert sentence.endswith("choose one of: puppets: people, puppets: items, dogs.jsonl.")
    with pytest.raises(InputError) as caught:
        run(name)
    assert str(caught.value) == sentence


def test_validation_lets_good_choices_pass(inputs: Path):
    write_manifest(inputs)
    assert all(EnsembleTrainingData.validate_inputs(manifest=name) is True for name in ("dogs.jsonl", *PUPPETS))
    assert EnsembleTrainingData.validate_inputs() is True


def test_bad_rows_are_one_sentence(inputs: Path):
    write_manifest(inputs)
    (inputs / "1.png").write_bytes(b"")
    (inputs / "2.png").unlink()
    with pytest.raises(InputError) as caught:
        run("dogs.jsonl")
    text = str(caught.value)
    assert text.startswith("Training Data, manifest: dogs.jsonl has 2 bad rows: line 2: target '1.png' is no picture")
    assert "line 3: target '2.png' is missing" in text and text.endswith("; mend or remove them.") and "\n" not in text


@pytest.mark.parametrize(
    "values, message",
    [
        ({"resolution": 8}, "Training Data, resolution: 8 pixels are too few; choose at least 16."),
        ({"reference_resolution": 0}, "Training Data, reference_resolution: 0 pixels are too few; choose at least 16."),
    ],
)
def test_sizes_that_come_by_a_link_are_checked(inputs: Path, values: dict[str, int], message: str):
    write_manifest(inputs)
    with pytest.raises(InputError) as caught:
        run("dogs.jsonl", **values)
    assert str(caught.value) == message


def test_too_many_people_by_a_link_are_a_sentence():
    with pytest.raises(
        InputError, match="Training Data, most_people: 1 to 9 puppets in a picture are asked for; choose"
    ):
        run("puppets: people", most_people=9)


def test_the_fingerprint_follows_the_manifests_files_only(inputs: Path):
    write_manifest(inputs)

    def fingerprint() -> object:
        return EnsembleTrainingData.fingerprint_inputs(manifest="dogs.jsonl", resolution=64)

    before = fingerprint()
    (inputs / "other.png").write_bytes(b"upload")
    assert fingerprint() == before
    os.utime(inputs / "1.png", ns=(1, 1))
    assert fingerprint() != before
    assert EnsembleTrainingData.fingerprint_inputs(manifest="puppets: people") is None
    assert EnsembleTrainingData.fingerprint_inputs() is None


def test_an_interrupt_ends_the_examination(inputs: Path):
    write_manifest(inputs)
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("dogs.jsonl")


def test_on_a_server(server: ComfyServer):
    def prompt(manifest: str) -> dict:
        inputs = {"manifest": manifest, "resolution": 64, "reference_resolution": 48, "seed": 0}
        return {
            "data": {"class_type": "EnsembleTrainingData", "inputs": inputs},
            "shown": {"class_type": "PreviewAny", "inputs": {"source": ["data", 0]}},
        }

    history = server.run(prompt("puppets: people"))
    assert "TrainingData" in history["outputs"]["shown"]["text"][0]
    status, answer = server.post("/prompt", {"prompt": prompt("../secret.jsonl")})
    assert status == 400
    assert "there is no manifest '../secret.jsonl' in ComfyUI's input folder" in json.dumps(answer)
