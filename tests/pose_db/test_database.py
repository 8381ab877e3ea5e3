"""The pose database's file: what goes in comes out, and damage is noticed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from comfyui_ensemble.pose_db.database import HEADER, PoseDatabase, PoseDatabaseError, load_database, save_database


def make_database(entries: int = 7, seed: int = 0) -> PoseDatabase:
    random = np.random.default_rng(seed)
    people = random.integers(0, 4, entries)
    offsets = np.concatenate([[0], np.cumsum(people)])
    positions = random.integers(0, 16 * 512, (offsets[-1], 18, 2)) / 16
    confidences = random.integers(0, 256, (offsets[-1], 18, 1)) / 255
    vectors = random.normal(size=(entries, 384)).astype(np.float32)
    return PoseDatabase(
        name="mine",
        prompts=[f"prompt {number} — 跳舞" for number in range(entries)],
        tags=[{"action": f"a{number}", "people": int(count)} for number, count in enumerate(people)],
        canvases=random.integers(512, 1024, (entries, 2)),
        person_offsets=offsets,
        keypoints=np.concatenate([positions, confidences], -1).astype(np.float32),
        embeddings=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        info={"seed": "0"},
    )


def test_round_trip(tmp_path):
    path = tmp_path / "mine.safetensors"
    database = make_database()
    save_database(database, path)
    loaded = load_database(path)
    assert (loaded.name, loaded.prompts, loaded.tags, loaded.info) == (
        "mine",
        database.prompts,
        database.tags,
        {"seed": "0"},
    )
    np.testing.assert_array_equal(loaded.canvases, database.canvases)
    np.testing.assert_allclose(loaded.keypoints, database.keypoints, atol=1e-6)
    np.testing.assert_allclose(loaded.embeddings, database.embeddings, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(loaded.embeddings, axis=1), 1, atol=1e-6)
    frame = loaded.frame(3)
    assert len(frame["people"]) == database.tags[3]["people"]
    assert (frame["canvas_width"], frame["canvas_height"]) == tuple(database.canvases[3])


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_database(make_database(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_a_file_cut_off_is_refused(tmp_path, keep):
    path = tmp_path / "mine.safetensors"
    save_database(make_database(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(PoseDatabaseError, match=r"mine\.safetensors cannot be read .*; get the file again"):
        load_database(path)


def rewrite(path, change):
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    change(tensors, header)
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})


def flip(name):
    def change(tensors, header):
        tensors[name].reshape(-1)[0] += 1

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (flip("positions"), "is damaged"),
        (flip("confidences"), "is damaged"),
        (flip("canvases"), "is damaged"),
        (flip("embeddings"), "was made for other entries; build it again"),
        (lambda tensors, header: header.update(format="lora"), "is not a pose database"),
        (lambda tensors, header: header.clear(), "is not a pose database"),
        (lambda tensors, header: header.update(version="2"), "has format version 2, this pack reads 1"),
    ],
)
def test_damage_is_noticed(tmp_path, change, message):
    path = tmp_path / "mine.safetensors"
    save_database(make_database(), path)
    rewrite(path, change)
    with pytest.raises(PoseDatabaseError, match=message):
        load_database(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompts": ["one"]}, "tags have shape 7, expected 1"),
        ({"embeddings": np.zeros((7, 100))}, r"embeddings have shape \(7, 100\)"),
        ({"keypoints": np.full((1, 18, 3), np.nan), "person_offsets": np.array([0] * 7 + [1])}, "not a finite number"),
        ({"keypoints": np.full((1, 18, 3), -1.0), "person_offsets": np.array([0] * 7 + [1])}, "outside its canvas"),
        ({"canvases": np.full((7, 2), 9000)}, "larger than 4095"),
    ],
)
def test_parts_that_do_not_belong_together_are_not_saved(tmp_path, changes, message):
    path = tmp_path / "mine.safetensors"
    save_database(make_database(), path)
    before = path.read_bytes()
    with pytest.raises(PoseDatabaseError, match=message):
        save_database(replace(make_database(), **changes), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
