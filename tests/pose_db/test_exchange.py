"""Poses from and to COCO and OpenPose files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.pose_db.database import PoseEntry, load_database
from comfyui_ensemble.pose_db.exchange import (
    COCO_KEYPOINTS,
    ExchangeError,
    export_coco,
    export_openpose,
    from_coco_person,
    import_coco,
    import_openpose,
    read_openpose_file,
    to_coco_person,
)
from comfyui_ensemble.pose_db.factory_cli import main
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, KEYPOINTS

# OpenPose's own list of BODY-25 (doc/02_output.md), to find every keypoint by its name.
BODY_25 = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye", "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel"),
    *("right_big_toe", "right_small_toe", "right_heel"),
)


def coco_numbers(seed: int = 0) -> list[float]:
    """A person of COCO with every visibility."""
    source = np.random.default_rng(seed)
    values = np.concatenate([source.integers(1, 400, (17, 2)), source.integers(0, 3, (17, 1))], 1)
    values[values[:, 2] == 0] = 0
    values[5:7, 2] = 2, 1  # shoulders
    values[5:7, :2] = (100, 60), (50, 64)
    return values.reshape(-1).astype(float).tolist()


def coco_file(**changes) -> dict:
    data = {
        "images": [
            {"id": 7, "width": 640, "height": 480, "file_name": "7.jpg"},
            {"id": 9, "width": 300, "height": 500, "file_name": "9.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 1, "iscrowd": 0, "keypoints": coco_numbers(1)},
            {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "keypoints": coco_numbers(2)},
            {"id": 3, "image_id": 7, "category_id": 1, "iscrowd": 0, "keypoints": coco_numbers(3)},
            {"id": 4, "image_id": 7, "category_id": 1, "iscrowd": 1, "keypoints": coco_numbers(4)},
            {"id": 5, "image_id": 7, "category_id": 1, "iscrowd": 0, "keypoints": [0] * 51},
        ],
    }
    return data | changes


CAPTIONS = {
    "annotations": [
        {"image_id": 7, "caption": "Two men talk. "},
        {"image_id": 7, "caption": "another caption"},
        {"image_id": 9, "caption": "a boy jumps"},
    ]
}


def write(path: Path, data) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_coco_person_by_name():
    numbers = coco_numbers()
    person = from_coco_person(numbers)
    for position, name in enumerate(COCO_KEYPOINTS):
        x, y, visibility = numbers[3 * position : 3 * position + 3]
        expected = [x, y, {2: 1.0, 1: 0.5}[int(visibility)]] if visibility else [0, 0, 0]
        assert person[KEYPOINT_INDEX[name]].tolist() == expected
    assert person[KEYPOINT_INDEX["neck"]].tolist() == [75, 62, 0.5]
    assert to_coco_person(person) == numbers


def test_a_neck_needs_both_shoulders():
    numbers = coco_numbers()
    numbers[15:18] = 0, 0, 0
    assert from_coco_person(numbers)[KEYPOINT_INDEX["neck"]].tolist() == [0, 0, 0]


def test_coco_import_and_round_trip(tmp_path):
    source = write(tmp_path / "person_keypoints.json", coco_file())
    entries = import_coco(source, write(tmp_path / "captions.json", CAPTIONS))
    found = {entry.prompt: entry for entry in entries}
    assert set(found) == {"Two men talk.", "a boy jumps"}
    assert found["Two men talk."].people.shape == (2, 18, 3) and found["Two men talk."].canvas == (640, 480)
    assert found["Two men talk."].tags == {"people": 2, "source": "7.jpg"}
    np.testing.assert_array_equal(found["a boy jumps"].people[0], from_coco_person(coco_numbers(1)))

    export_coco(entries, tmp_path / "again.json")
    again = import_coco(tmp_path / "again.json")
    for one, other in zip(entries, again, strict=True):
        assert (one.prompt, one.canvas, one.tags) == (other.prompt, other.canvas, other.tags)
        np.testing.assert_array_equal(one.people, other.people)
    exported = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert exported["categories"][0]["keypoints"] == list(COCO_KEYPOINTS)
    annotation = exported["annotations"][0]
    shown = np.array(annotation["keypoints"]).reshape(17, 3)
    assert annotation["num_keypoints"] == int((shown[:, 2] > 0).sum())


@pytest.mark.parametrize(
    "data, problem",
    [
        ("{cut off", "cannot be read as JSON"),
        ([], "is JSON of another kind"),
        ({"images": []}, "has no list 'annotations'"),
        ({"annotations": []}, "has no list 'images'"),
        (coco_file(images=[{"id": 7, "width": 3}]), "number 1 of 'images' lacks height"),
        (coco_file(annotations=[{"image_id": 7}]), "number 1 of 'annotations' lacks keypoints"),
        (coco_file(annotations=[{"image_id": 8, "keypoints": []}]), "annotation 1 belongs to the unknown image 8"),
        (coco_file(annotations=[{"image_id": 7, "keypoints": [1, 2]}]), "annotation 1 has not 51 finite numbers"),
        (coco_file(annotations=[{"image_id": 7, "keypoints": ["x"] * 51}]), "annotation 1 has not 51 finite numbers"),
        (coco_file(annotations=[{"image_id": 7, "keypoints": [float("nan")] * 51}]), "has not 51 finite numbers"),
        (coco_file(), "has poses but no captions"),
    ],
)
def test_bad_coco_files_are_one_sentence_and_write_nothing(tmp_path, capsys, data, problem):
    source, out = write(tmp_path / "coco.json", data), tmp_path / "out.safetensors"
    with pytest.raises(ExchangeError, match=r"coco\.json") as caught:
        import_coco(source)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert main(["import-coco", str(source), "--out", str(out)]) == 2
    assert problem in capsys.readouterr().out and not out.exists()


def openpose_entries() -> list[PoseEntry]:
    source = np.random.default_rng(5)
    people = np.concatenate([source.uniform(0, 200, (3, 18, 2)).round(2), source.uniform(0.1, 1, (3, 18, 1))], 2)
    people[1, 4] = 0
    return [
        PoseEntry("two people", people[:2], (256, 200), {}),
        PoseEntry("ein Mann läuft", people[2:], (300, 220), {}),
    ]


def test_openpose_round_trip(tmp_path):
    entries = openpose_entries()
    export_openpose(entries, tmp_path / "poses")
    again = import_openpose(tmp_path / "poses")
    for one, other in zip(entries, again, strict=True):
        assert (one.prompt, one.canvas) == (other.prompt, other.canvas)
        np.testing.assert_allclose(one.people, other.people, atol=1e-9)
    assert again[1].tags == {"people": 1, "source": "000002_keypoints.json"}


def test_openpose_s_own_files_take_the_canvas_from_the_picture(tmp_path):
    values = {name: [10.0 * row, 5.0 * row, 0.9] for row, name in enumerate(BODY_25)}
    body = [number for name in BODY_25 for number in values[name]]
    write(tmp_path / "a_keypoints.json", {"version": 1.3, "people": [{"pose_keypoints_2d": body, "hand_left": [1]}]})
    with pytest.raises(ExchangeError, match="has no canvas size and no picture beside it"):
        read_openpose_file(tmp_path / "a_keypoints.json")
    assert read_openpose_file(tmp_path / "a_keypoints.json", (50, 60))[0]["canvas_height"] == 60
    Image.new("RGB", (320, 240)).save(tmp_path / "a.png")
    (frame,) = read_openpose_file(tmp_path / "a_keypoints.json")
    assert (frame["canvas_width"], frame["canvas_height"]) == (320, 240)
    found = np.array(frame["people"][0]["pose_keypoints_2d"]).reshape(18, 3)
    for name in KEYPOINTS:
        assert found[KEYPOINT_INDEX[name]].tolist() == values[name]


@pytest.mark.parametrize(
    "data, problem",
    [
        ("[1, 2", "cannot be read as JSON"),
        ({"people": 3}, "has no list of people"),
        ({"people": [{}], "canvas_width": 5, "canvas_height": 5}, "a person without body keypoints"),
        ({"people": [{"pose_keypoints_2d": [1, 2]}], "canvas_width": 5, "canvas_height": 5}, "not a list of x, y"),
        ({"people": [{"pose_keypoints_2d": [1] * 51}], "canvas_width": 5, "canvas_height": 5}, "17 body keypoints"),
        ({"people": [], "canvas_width": 0, "canvas_height": 5}, "smaller than one pixel"),
        ({"people": [], "canvas_width": "wide", "canvas_height": 5}, "its canvas size is not a number"),
        ({"people": [], "canvas_width": 5, "canvas_height": 5}, "has no text"),
    ],
)
def test_bad_openpose_files(tmp_path, capsys, data, problem):
    folder = tmp_path / "poses"
    folder.mkdir()
    write(folder / "a_keypoints.json", data)
    if problem != "has no text":
        write(folder / "a.txt", "a man")
    with pytest.raises(ExchangeError) as caught:
        import_openpose(folder)
    assert problem in str(caught.value) and str(caught.value).startswith("a_keypoints.json")
    assert main(["import-openpose", str(folder), "--out", str(tmp_path / "out.safetensors")]) == 2
    assert not (tmp_path / "out.safetensors").exists()


def test_an_empty_folder(tmp_path):
    with pytest.raises(ExchangeError, match="holds no OpenPose JSON file"):
        import_openpose(tmp_path)


def test_commands_import_extend_and_export(tmp_path, capsys):
    export_openpose(openpose_entries(), tmp_path / "poses")
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert main(["import-openpose", str(tmp_path / "poses"), "--out", str(first)]) == 0
    assert main(["import-openpose", str(tmp_path / "poses"), "--out", str(first)]) == 2  # nothing is overwritten
    assert "is there already" in capsys.readouterr().out
    assert main(["import-openpose", str(tmp_path / "poses"), "--base", str(first), "--out", str(second)]) == 0
    database = load_database(second)
    assert database.prompts == ["two people", "ein Mann läuft"] * 2
    np.testing.assert_allclose(database.people(0), openpose_entries()[0].people, atol=1 / 16)
    np.testing.assert_allclose(database.embeddings[0], database.embeddings[2], atol=1e-3)
    assert main(["export-coco", str(second), str(tmp_path / "coco.json")]) == 0
    assert [entry.prompt for entry in import_coco(tmp_path / "coco.json")] == database.prompts
    assert main(["export-openpose", str(second), str(tmp_path / "again")]) == 0
    assert [entry.canvas for entry in import_openpose(tmp_path / "again")] == [(256, 200), (300, 220)] * 2


def test_check_leaves_poor_poses_out(tmp_path, capsys):
    export_openpose(openpose_entries(), tmp_path / "poses")  # random keypoints, no bodies
    out = tmp_path / "out.safetensors"
    assert main(["import-openpose", str(tmp_path / "poses"), "--out", str(out), "--check"]) == 0
    assert "0 of 2 poses taken" in capsys.readouterr().out and not out.exists()
