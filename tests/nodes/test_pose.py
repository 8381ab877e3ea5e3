"""The pose nodes on the bundled database, with the real sentence model and index."""

from __future__ import annotations

import folder_paths
import numpy as np
import pytest
import torch

from comfyui_ensemble.models_info.registry import BUNDLED_POSES, PACK_FOLDER, POSE_DATABASES
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.pose import EnsemblePoseDatabaseLoader, EnsemblePoseRender, EnsemblePoseRetriever
from comfyui_ensemble.pose_db.database import load_database, save_database
from comfyui_ensemble.pose_db.keypoints import frame_from_people
from comfyui_ensemble.pose_db.scale import build_collection, shards_of
from comfyui_ensemble.pose_db.scale_sources import Databases, part_of


@pytest.fixture(scope="module")
def pose_db():
    return EnsemblePoseDatabaseLoader.execute(BUNDLED_POSES.name).args[0]


def retrieve(pose_db, prompt, threshold=-1.0, rank=1):
    return EnsemblePoseRetriever.execute(pose_db, prompt, threshold, rank).args


def test_the_best_match_is_the_largest_inner_product(pose_db):
    prompt = "two people shaking hands"
    query = pose_db._encoder.encode([prompt])[0].astype(np.float64)
    cosines = pose_db.database.embeddings.astype(np.float64) @ query
    order = np.argsort(-cosines, kind="stable")
    for rank in (1, 2, 7, 100):
        _, matched, score, found = retrieve(pose_db, prompt, rank=rank)
        assert score == pytest.approx(cosines[order[rank - 1]], abs=1e-5) and found
        if rank == 1:
            assert matched == pose_db.database.prompts[order[0]]


def test_a_prompt_of_the_database_finds_itself(pose_db):
    for entry in range(0, len(pose_db.database), len(pose_db.database) // 20):
        pose, matched, score, _ = retrieve(pose_db, pose_db.database.prompts[entry])
        assert matched == pose_db.database.prompts[entry] and score > 0.999
        assert pose == [pose_db.database.frame(entry)]


def test_below_the_threshold_the_frame_is_empty(pose_db):
    pose, matched, score, found = retrieve(pose_db, "a bowl of tomato soup on a table", threshold=0.99)
    assert not found and pose[0]["people"] == [] and pose[0]["canvas_width"] > 0
    assert matched in pose_db.database.prompts and score < 0.99
    assert retrieve(pose_db, "a bowl of tomato soup on a table", threshold=score)[3]  # the threshold itself is enough


def test_two_people_give_two_skeletons(pose_db):
    pose, *_ = retrieve(pose_db, "two people shaking hands")
    assert len(pose[0]["people"]) == 2
    image, mask = EnsemblePoseRender.execute(pose, 256, 256, 2).args
    assert image.shape == (1, 256, 256, 3) and mask.shape == (1, 256, 256)
    assert torch.equal(mask > 0, image.amax(-1) > 0) and mask.any()


def test_bad_prompts_and_ranks(pose_db):
    assert "Retrieve Pose, prompt: it is empty" in str(EnsemblePoseRetriever.validate_inputs(prompt=" \n"))
    assert EnsemblePoseRetriever.validate_inputs() is True
    with pytest.raises(InputError, match="it is empty; write what the people do"):
        retrieve(pose_db, "")
    with pytest.raises(InputError, match=r"rank: the database has only \d+ entries; lower it"):
        retrieve(pose_db, "a duel", rank=len(pose_db.database) + 1)


def test_an_unknown_database():
    message = EnsemblePoseDatabaseLoader.validate_inputs(database="../../etc/passwd")
    assert "there is no '../../etc/passwd' in models/pose_databases; choose one of: ensemble_poses.safetensors" in str(
        message
    )
    with pytest.raises(InputError, match="there is no 'nothing'"):
        EnsemblePoseDatabaseLoader.execute("nothing")


def test_a_database_cut_in_half(tmp_path, monkeypatch):
    folders, endings = folder_paths.folder_names_and_paths[POSE_DATABASES]
    source = next(folder for folder in folders if folder.endswith("data"))
    whole = (tmp_path.__class__(source) / BUNDLED_POSES.name).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setitem(folder_paths.folder_names_and_paths, POSE_DATABASES, ([*folders, str(tmp_path)], endings))
    with pytest.raises(
        InputError, match=r"Load Pose Database, database: the pose database half\.safetensors cannot be read"
    ):
        EnsemblePoseDatabaseLoader.execute("half.safetensors")


@pytest.mark.parametrize(
    "pose, message",
    [
        ("a string", "it is not a list of OpenPose frames"),
        ([], "it is not a list of OpenPose frames"),
        ([{"people": []}], "a frame lacks people, canvas_width or canvas_height"),
        ([{"people": [{}], "canvas_width": 8, "canvas_height": 8}], "person 1 has 0 body keypoints"),
        ([{"people": [{"pose_keypoints_2d": [1.0] * 53}], "canvas_width": 8, "canvas_height": 8}], "53 numbers"),
        (
            [{"people": [{"pose_keypoints_2d": [float("nan")] * 54}], "canvas_width": 8, "canvas_height": 8}],
            "a number that is not finite",
        ),
        ([frame_from_people(np.zeros((1, 18, 3)), 0, 8)], "canvas is smaller than one pixel"),
    ],
)
def test_bad_poses(pose, message):
    with pytest.raises(InputError, match=message) as caught:
        EnsemblePoseRender.execute(pose, 64, 64, 4)
    assert str(caught.value).startswith("Render Pose, pose: ")


def test_nobody_is_a_black_picture_and_every_frame_one_picture():
    empty = frame_from_people(np.zeros((0, 18, 3)), 100, 50)
    image, mask = EnsemblePoseRender.execute([empty, empty], 64, 48, 4).args
    assert image.shape == (2, 48, 64, 3) and not image.any() and not mask.any()


def test_a_collection_is_a_database_too(tmp_path, monkeypatch):
    """Load Pose Database and Retrieve Pose on a collection of some of the bundled entries."""
    database = tmp_path / "some.safetensors"
    save_database(part_of(load_database(PACK_FOLDER / "pose_db" / "data" / BUNDLED_POSES.name), 0, 300), database)
    path, source = tmp_path / "poses" / "collection.safetensors", Databases((database,), 100)
    path.parent.mkdir()
    build_collection(path, source.digest(), shards_of(source, 1, str), 1, str, 1000)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, POSE_DATABASES, ([str(path.parent)], {".safetensors"}))
    collection = EnsemblePoseDatabaseLoader.execute(path.name).args[0]
    prompt = load_database(database).prompts[17]
    pose, matched, score, found = retrieve(collection, prompt)
    assert matched == prompt and found and score > 0.999
    assert pose == [load_database(database).frame(17)]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"^Load Pose Database, database: "):
        EnsemblePoseDatabaseLoader.execute(path.name)
