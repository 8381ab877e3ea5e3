"""The trained tiny models that come with the pack: what their card says, and what they draw."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from comfyui_ensemble.models_info.registry import BUNDLED_POSES, MODEL_FILES, TRAINED, find_file
from comfyui_ensemble.pose_db.database import load_database
from comfyui_ensemble.training.puppets import Puppet, PuppetMeasures, background, draw_scene, measure, people_in
from comfyui_ensemble.training.puppets.identity import COLOURS
from comfyui_ensemble.training.tiny import write_tiny_models
from devtools.demo import pictures, texts
from devtools.sample_images import ALICE, BRUNO
from devtools.server import ComfyServer
from devtools.workflow_sources import WORKFLOWS

CARD = (TRAINED / "README.md").read_text(encoding="utf-8")
FILES = sorted(TRAINED.rglob("*.safetensors"))
SEEDS = range(1, 5)


def test_they_are_small():
    assert 0 < sum(path.stat().st_size for path in FILES) < 60_000_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_card_knows_every_file(path: Path):
    row = re.search(rf"^\| `{path.parent.name}/{path.name}` \|.*$", CARD, re.MULTILINE)
    assert row and hashlib.sha256(path.read_bytes()).hexdigest()[:16] in row[0]


def test_the_card_knows_no_other_file():
    assert len(re.findall(r"^\| `\w+/\w+\.safetensors` \|", CARD, re.MULTILINE)) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_in_them_is_random_or_broken(path: Path):
    with safe_open(path, framework="pt") as file:
        assert "ensemble_seed" not in (file.metadata() or {})  # of random weights
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118


def test_every_one_is_in_the_list_of_files():
    assert {path.name for path in FILES} <= {entry.name for entry in MODEL_FILES}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server as `dev.py demo` starts it: the pack's trained models, and random ones where it has none."""
    folder = tmp_path_factory.mktemp("stranger")
    write_tiny_models(folder / "models", only_untrained=True)
    arguments = [] if torch.accelerator.is_available() else ["--cpu"]
    with ComfyServer(folder, folder / "models", arguments=arguments) as running:
        yield running
    shutil.rmtree(folder)


def measures(picture: np.ndarray, people: np.ndarray, *puppets: Puppet) -> list[PuppetMeasures]:
    """Of each person of a picture, against puppets in a pose."""
    height, width = picture.shape[:2]
    return measure(picture, draw_scene(puppets, people, background(0, width, height)[0]))


def test_the_demo_shows_the_cast_in_the_pose(stranger: ComfyServer):
    """Alice on the left and Bruno on the right look like themselves rather than like one another, and stand as the pose says."""
    prompt = json.loads((WORKFLOWS / "api" / "astra_pose_and_identity.json").read_text(encoding="utf-8"))
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    path = find_file(BUNDLED_POSES.folder, BUNDLED_POSES.name)
    assert path is not None
    database = load_database(path)
    own, swapped, upside_down = [], [], []
    for seed in SEEDS:
        sampler["inputs"]["seed"] = seed
        history = stranger.run(prompt)
        (file,) = pictures(history, stranger.data / "output")
        picture = np.asarray(Image.open(file))
        (matched,) = [text for _, text in texts(history) if text in database.prompts]
        people = people_in(database.frame(database.prompts.index(matched)), picture.shape[1], picture.shape[0])
        people = people[people[:, :, 0].mean(axis=1).argsort()]  # from left to right
        own += measures(picture, people, ALICE, BRUNO)
        swapped += measures(picture, people, BRUNO, ALICE)
        upside_down += measures(picture[::-1], people, ALICE, BRUNO)
    assert mean(own, "identity") > 2 * mean(swapped, "identity")
    assert mean(own, "recognised") > 0.8  # 0.5 by chance
    assert mean(own, "pose_error") < 0.8 * mean(upside_down, "pose_error")


def mean(found: list[PuppetMeasures], name: str) -> float:
    return float(np.mean([getattr(each, name) for each in found]))


def test_anystory_brings_its_casts_colours(stranger: ComfyServer):
    """From a prompt that says nothing of them: Alice's red shirt and Bruno's green one, which the SDXL alone draws less of."""
    prompt = json.loads((WORKFLOWS / "api" / "anystory_two_subjects.json").read_text(encoding="utf-8"))
    words = next(node for node in prompt.values() if node["_meta"]["title"] == "Prompt")
    words["inputs"]["text"] = "a woman and a man waving on a beach"
    sampler = next(node for node in prompt.values() if node["class_type"] == "KSampler")
    routed = sampler["inputs"]["model"]
    alone = prompt[routed[0]]["inputs"]["model"]
    shares = []
    for model in (routed, alone):
        sampler["inputs"]["model"] = model
        for seed in SEEDS:
            sampler["inputs"]["seed"] = seed
            (file,) = pictures(stranger.run(prompt), stranger.data / "output")
            picture = np.asarray(Image.open(file).convert("RGB")).astype(float)
            shares.append([near(picture, COLOURS[each.upper.colour]) for each in (ALICE, BRUNO)])
    with_them, without = np.reshape(shares, (2, len(SEEDS), 2)).mean(axis=1)
    assert (with_them > without).all() and with_them.sum() > 1.5 * without.sum()


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """The share of a picture's pixels that have about this colour."""
    return float((np.linalg.norm(picture - colour, axis=-1) < 80).mean())
