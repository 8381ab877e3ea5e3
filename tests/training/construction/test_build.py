"""A construction from pictures to manifests: what comes out, and that a kill at any moment loses and repeats nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from comfyui_ensemble.batch.journal import JournalError, open_journal
from comfyui_ensemble.models_info.registry import TINY_VISION
from comfyui_ensemble.training.construction import references
from comfyui_ensemble.training.construction.boxes import box_of_mask
from comfyui_ensemble.training.construction.build import Built, build, summary_lines
from comfyui_ensemble.training.construction.captioners import FileCaptioner
from comfyui_ensemble.training.construction.command import main
from comfyui_ensemble.training.construction.models import Models, PoseFinder, Vision
from comfyui_ensemble.training.construction.settings import BuildConfig, read_build_config
from comfyui_ensemble.training.construction.steps import Report
from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.manifest import read_manifest
from comfyui_ensemble.training.manifest_source import ManifestSource

from ...nodes.test_pose_factory import SIZE as STANDING
from ...nodes.test_pose_factory import Painted, standing
from .drawn import CELL, SIDE, draw, draw_world, pattern

STRICT = BuildConfig(poses=False, pair_similarity=0.9999, categories=("person", "animal"), min_side=SIDE)
PICTURES = 6
CORNERS = 4  # pixels of a square that SAM's enlarging of its masks rounds off


@pytest.fixture(scope="module")
def models(bright_sam, vision) -> Models:
    return Models(FileCaptioner(), bright_sam, Vision(vision))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "pictures"
    draw_world(folder, PICTURES)
    return folder


@pytest.fixture(scope="module")
def built(models: Models, world: Path) -> tuple[Path, Built]:
    with torch.inference_mode():
        return world.parent / "built", build(world, world.parent / "built", models, STRICT)


def rows(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def mask_at(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("1"))


def journals(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.parent.name.split("-")[0]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(out.glob("steps/*/journal.jsonl"))
    }


def files(folder: Path) -> dict[str, bytes]:
    """All files but for locks, and journals without the order of their lines."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            data = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = (
                b"\n".join(sorted(data.splitlines())) if path.name == "journal.jsonl" else data
            )
    return found


# What comes out


def test_subjects_with_masks_where_they_are(built):
    out, result = built
    made = rows(result.manifest)
    assert len(made) == PICTURES
    for number, row in enumerate(made):
        shift = number % 2
        assert row["caption"] == "A woman with a dog and a bag."
        woman, dog = row["subjects"]
        assert (woman["name"], woman["description"], woman["category"]) == ("woman", "A woman", "person")
        assert (dog["name"], dog["description"], dog["category"]) == ("dog", "a dog", "animal")
        assert woman["box"] == [CELL * (1 + shift), CELL * 2, CELL * (6 + shift), CELL * 14]
        mask = np.zeros((SIDE, SIDE), bool)
        mask[CELL * 2 : CELL * 14, CELL * (1 + shift) : CELL * (6 + shift)] = True
        seen = mask_at(out / woman["instance_mask"])
        assert (seen != mask).sum() <= CORNERS
        np.testing.assert_array_equal(
            np.asarray(Image.open(out / woman["reference"]))[mask_at(out / woman["mask"])],
            np.asarray(Image.open(out / row["target"]))[seen],
        )


def test_pairs_are_the_same_subject_in_two_pictures(built):
    out, result = built
    made = rows(result.pairs)
    assert result.summary["pairs"] == {"person": PICTURES // 2, "bag": PICTURES // 2}
    assert len(made) == 2 * PICTURES
    for row in made:
        (subject,) = row["subjects"]
        number = int(
            Path(next(p for p in (out.parent / "pictures").glob("*.png") if same(p, out / row["target"]))).stem[-1]
        )
        offset = 0 if subject["category"] == "person" else 200
        height, width = (CELL * 12, CELL * 5) if subject["category"] == "person" else (CELL * 4, CELL * 4)
        reference = np.asarray(Image.open(out / subject["reference"]))
        box = box_of_mask(mask_at(out / subject["mask"]))
        assert box is not None
        left, top, right, bottom = map(int, box)
        cut = reference[top:bottom, left:right]
        np.testing.assert_array_equal(cut, pattern(offset + number // 2, height, width))
        # The reference comes from the other picture: what is around the subject there is not what is around it here.
        target = np.asarray(Image.open(out / row["target"]))
        left, top, _, _ = (int(side) for side in subject["box"])
        assert not np.array_equal(target[top - 3, left : left + width], reference[2, 3 : 3 + width])


def same(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


def test_a_training_reads_it(built):
    _, result = built
    data = TrainingData(ManifestSource(read_manifest(result.manifest)), 128, 64)
    sample = data.load(data.batch(0, 1)[0])
    assert sample.subjects[0].mask is not None and len(sample.subjects) == 2
    pairs = TrainingData(ManifestSource(read_manifest(result.pairs)), 128, 64).balanced({"person": 2, "bag": 1})
    categories = [pairs.load(draw).subjects[0].category for step in range(4) for draw in pairs.batch(step, 3)]
    assert Counter(categories) == {"person": 8, "bag": 4}


def test_a_second_run_does_nothing_and_says_the_same(built, models, world):
    out, result = built
    before = files(out)
    again = build(world, out, models, STRICT)
    assert files(out) == before and again.summary == result.summary


def test_only_what_a_setting_decides_about_is_done_again(models, world, tmp_path):
    calls: list[tuple[str, int]] = []
    report = Report(progress=lambda step, done, total: calls.append((step, total)))
    build(world, tmp_path / "out", models, STRICT, report)
    first = {path.name for path in (tmp_path / "out" / "steps").iterdir()}
    build(world, tmp_path / "out", models, replace(STRICT, margin=0.2, pair_similarity=0.5), report)
    new = {path.name.split("-")[0] for path in (tmp_path / "out" / "steps").iterdir()} - set()
    added = {path.name.split("-")[0] for path in (tmp_path / "out" / "steps").iterdir() if path.name not in first}
    assert added == {"crops", "looks"} and "captions" in new


def test_new_and_changed_and_vanished_pictures(models, tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    draw_world(folder, 3)
    build(folder, out, models, STRICT)
    draw_world(folder, 4)  # writes the first three again as they were
    (folder / "picture 0.json").write_text('{"caption": "A dog", "phrases": [["A dog", [128, 160, 192, 224]]]}')
    shutil.copy(folder / "picture 1.png", folder / "twin.png")
    shutil.copy(folder / "picture 1.json", folder / "twin.json")
    (folder / "picture 2.png").unlink()
    (folder / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (90, 400)).save(folder / "narrow.png")
    result = build(folder, out, models, STRICT)
    assert [row["caption"] for row in rows(result.manifest)] == ["A dog", *["A woman with a dog and a bag."] * 2]
    refused = result.summary["left out"]
    assert refused["twin.png"] == ["is the same picture as picture 1.png"]
    assert "no picture that can be read" in refused["broken.png"][0]
    assert refused["narrow.png"] == [f"is only 90 x 400; the shorter side needs {SIDE} pixels"]
    keys = [event["key"] for event in journals(out)["masks"][1:]]
    assert len(keys) == len(set(keys)) == 5  # the three, the new one, and the one that is described anew


def test_subjects_in_front_of_others(models, tmp_path):
    squares = [("a woman", (1, 1, 12, 15), 1), ("a dog", (3, 3, 7, 7), 2), ("a cat", (4, 4, 6, 6), 3)]
    for name in ("one", "two"):
        draw(tmp_path / "in", name, "a woman, a dog and a cat", squares, len(name) + ord(name[0]))
    config = BuildConfig(poses=False, min_side=32)
    (row, _) = rows(build(tmp_path / "in", tmp_path / "out", models, config).manifest)
    masks = [mask_at(tmp_path / "out" / subject["instance_mask"]) for subject in row["subjects"]]
    assert [subject["name"] for subject in row["subjects"]] == ["woman", "dog", "cat"]
    assert np.stack(masks).sum(axis=0).max() == 1
    cells = [round(float(mask.sum()) / CELL**2) for mask in masks]
    assert cells == [11 * 14 - 16, 16 - 4, 4]
    hidden = BuildConfig(poses=False, min_side=32, min_visible=0.8)
    result = build(tmp_path / "in", tmp_path / "out", models, hidden)
    assert [subject["name"] for subject in rows(result.manifest)[0]["subjects"]] == ["woman", "cat"]
    assert result.summary["left out"]["one.png"] == ["'a dog' is hidden behind others"]


def test_words_that_stand_inside_others_and_masks_that_are_empty(models, tmp_path):
    for seed, name in enumerate(("one", "two")):
        squares = [("a dog in a hat", (1, 1, 6, 6), 1), ("a hat", (9, 9, 13, 13), 2)]
        path = draw(tmp_path / "in", name, "a dog in a hat and a cat", squares, seed)
        described = json.loads(path.with_suffix(".json").read_text())
        described["phrases"].append(["a cat", [200, 8, 250, 60]])
        path.with_suffix(".json").write_text(json.dumps(described))
    config = BuildConfig(poses=False, min_side=32, categories=("animal", "hat"))
    result = build(tmp_path / "in", tmp_path / "out", models, config)
    assert [[subject["name"] for subject in row["subjects"]] for row in rows(result.manifest)] == [["dog"], ["dog"]]
    assert sorted(result.summary["left out"]["one.png"]) == [
        "'a cat' was not found in its box",
        "'a hat' stands inside another subject's words",
    ]
    assert result.pairs is not None  # the hats alone are described well enough


def test_the_summary_in_words(built):
    text = summary_lines(built[1].summary)
    assert f"{PICTURES} pictures, {PICTURES} with subjects" in text
    assert f"manifest.jsonl: {PICTURES} rows ({PICTURES} person, {PICTURES} animal)" in text
    assert f"pairs.jsonl: {PICTURES} pairs ({PICTURES // 2} person, {PICTURES // 2} bag)" in text
    many = {**built[1].summary, "left out": {f"{number}.png": ["is dark"] for number in range(30)}}
    assert "left out (30):" in summary_lines(many) and "and 20 more; see report.json" in summary_lines(many)


# Poses


def two_people() -> np.ndarray:
    """Upright people with large heads, in shares of the picture: OpenPose's maps are coarse."""
    people = standing(2) / [STANDING, STANDING, 1]
    people[:, [0, 14, 15, 16, 17], :2] = people[:, [1], :2] + np.array(
        [[0, -0.1], [-0.04, -0.14], [0.04, -0.14], [-0.09, -0.1], [0.09, -0.1]]
    )
    people[..., 1] = 0.05 + people[..., 1] * 0.9
    return people


def test_poses_go_to_their_people_and_give_them_faces(models, tmp_path):
    """OpenPose's library on the maps that a perfect network would paint; its published weights are not for everyone."""
    pytest.importorskip("controlnet_aux")
    squares = [("a woman", (9, 1, 15, 15), 2), ("a man", (1, 1, 7, 15), 1)]
    for seed, name in enumerate(("one", "two")):
        draw(tmp_path / "in", name, "a woman and a man", squares, seed)
    people = two_people()
    (tmp_path / "network").write_bytes(b"stands for the painted one")
    finder = PoseFinder(tmp_path / "network")
    finder.__dict__["_network"] = Painted(people, 0.8, 512, 512)
    with_poses = Models(models.captioner, models.sam, models.vision, finder)
    config = BuildConfig(min_side=32, pair_similarity=-1.0, colours=0.0, duplicates=1.0, neighbours=9)
    result = build(tmp_path / "in", tmp_path / "out", with_poses, config)
    woman, man = rows(result.manifest)[0]["subjects"]
    for subject, truth in ((man, people[0]), (woman, people[1])):
        found = np.reshape(subject["pose"]["pose_keypoints_2d"], (18, 3))
        np.testing.assert_allclose(found[:, :2], truth[:, :2] * SIDE, atol=3)
    faces = [row["subjects"][0] for row in rows(result.pairs) if row["subjects"][0]["category"] == "face"]
    assert {face["description"] for face in faces} == {"a man", "a woman"}
    left, top, right, bottom = next(face["box"] for face in faces if face["description"] == "a man")
    nose = people[0, 0, :2] * SIDE
    assert left < nose[0] < right and top < nose[1] < bottom and right < SIDE / 2 and bottom - top < SIDE / 2
    assert all(read_manifest(path) for path in (result.manifest, result.pairs) if path)


def test_pose_weights_are_openposes(tmp_path):
    pytest.importorskip("controlnet_aux")
    from controlnet_aux.open_pose.model import bodypose_model  # pyright: ignore[reportMissingImports]

    fresh = {name.split(".", 1)[1]: value.contiguous() for name, value in bodypose_model().state_dict().items()}
    save_file(fresh, tmp_path / "body.safetensors")
    assert PoseFinder(tmp_path / "body.safetensors").people(torch.rand(64, 64, 3)).shape == (0, 18, 3)
    save_file({"x": torch.zeros(1)}, tmp_path / "hand.safetensors")
    with pytest.raises(TrainingError, match=r"hand.safetensors will not do: the file holds another network"):
        PoseFinder(tmp_path / "hand.safetensors").people(torch.rand(64, 64, 3))
    assert PoseFinder(tmp_path / "body.safetensors").identity != PoseFinder(tmp_path / "hand.safetensors").identity


# Killed


def command(world: Path, out: Path, bright_sam, tiny_models: Path, *more: str) -> list[str]:
    config = out.parent / f"{out.name}.json"
    settings = {"poses": False, "pair_similarity": 0.9999, "categories": ["person", "animal"], "min_side": SIDE}
    config.write_text(json.dumps(settings))
    sam = bright_sam.cached_patcher_init[1][0]
    vision = tiny_models / TINY_VISION.folder / TINY_VISION.name
    arguments = [world, "--out", out, "--captioner", "files", "--sam", sam, "--clip-vision", vision, "--config", config]
    return [str(argument) for argument in (*arguments, *more)]


def test_killed_and_resumed(world, built, bright_sam, tiny_models, tmp_path, capsys):
    out = tmp_path / "built"
    arguments = command(world, out, bright_sam, tiny_models)
    for events in (9, 26):  # within an early and a late step
        _kill_after(arguments, out, events)
        step = max((path for path in out.glob("steps/*/journal.jsonl")), key=lambda path: path.stat().st_mtime_ns)
        with step.open("ab") as journal:
            journal.write(b'{"event":"done","key":"ab')  # as a kill within a write leaves it
        (step.parent / ".half.png.4711.partial").write_bytes(b"half")
    before = journals_whole(out)
    assert main(arguments) == 0
    assert "12 rows" not in (said := capsys.readouterr().out) and f"{PICTURES} rows" in said
    after = journals(out)
    for name, events in before.items():
        assert after[name][: len(events)] == events
    for name, events in after.items():
        keys = [event.get("key") for event in events]
        assert len(keys) == len(set(keys)), name  # nothing was done twice
    theirs = files(built[0])
    assert files(out) == theirs  # as if nobody had killed it
    assert main(arguments) == 0 and files(out) == theirs


def journals_whole(out: Path) -> dict[str, list[dict[str, Any]]]:
    """As `journals`, without a line that was cut off."""
    found = {}
    for path in sorted(out.glob("steps/*/journal.jsonl")):
        lines = path.read_bytes().split(b"\n")[:-1]
        found[path.parent.name.split("-")[0]] = [json.loads(line) for line in lines]
    return found


def _kill_after(arguments: list[str], out: Path, events: int) -> None:
    """Start the command and kill it as soon as the journals hold so many lines."""
    code = "comfyui_ensemble.training.construction"
    process = subprocess.Popen(
        [sys.executable, "-m", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        lines = sum(path.read_bytes().count(b"\n") for path in out.glob("steps/*/journal.jsonl"))
        if lines >= events:
            break
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.jsonl").exists()


def test_stopped_at_any_item_and_resumed(world, built, models, tmp_path):
    """Forty stops, one after another, each a little later: what is there in the end is what one run makes."""
    out = tmp_path / "built"

    class Stopped(Exception):
        pass

    for stop in range(40):
        left = [stop % 7 + 1 if stop < 39 else 10_000]

        def check(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped

        try:
            build(world, out, models, STRICT, Report(check=check))
        except Stopped:
            continue
    assert files(out) == files(built[0])


def test_only_one_run_in_a_folder(world, models, tmp_path):
    build(world, tmp_path / "out", models, STRICT)
    step = next((tmp_path / "out" / "steps").glob("masks-*"))
    start = json.loads((step / "journal.jsonl").read_text().splitlines()[0])
    with (
        open_journal(step, start["plan"], start["format"]),
        pytest.raises(JournalError, match="another run works in"),
    ):
        build(world, tmp_path / "out", models, STRICT)
    (step / "journal.jsonl").write_text("what is this\n")
    with pytest.raises(JournalError, match="line 1 of the journal"):
        build(world, tmp_path / "out", models, STRICT)


# Bad input


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"minimum": 3}', "there is no setting 'minimum'"),
        ('{"min_side": 0}', "min_side is 0; it must be at least 1"),
        ('{"clip_i": NaN}', "clip_i is nan; it must lie between -1 and 1"),
        ('{"colours": 1.5}', "colours is 1.5; it must lie between 0 and 1"),
        ('{"order": "left"}', "order is 'left'; choose one of: area, depth"),
        ('{"categories": ["people"]}', "categories holds 'people'; there are: person, face"),
        ('{"neighbours": "many"}', 'neighbours is "many"; it must be a whole number'),
        ("{", "it is not JSON"),
    ],
)
def test_settings_that_will_not_do(text, said):
    with pytest.raises(TrainingError) as caught:
        read_build_config(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_settings_are_read():
    assert read_build_config("") == BuildConfig()
    assert read_build_config('{"categories": ["face"], "margin": 0, "poses": false}') == BuildConfig(
        categories=("face",), margin=0.0, poses=False
    )


def test_folders_that_will_not_do(models, tmp_path):
    for folder, said in ((tmp_path / "none", "there is no folder"), (tmp_path, "holds no picture")):
        with pytest.raises(TrainingError, match=said):
            build(folder, tmp_path / "out", models, STRICT)
    draw(tmp_path / "in", "a", "a dog", [], 0)
    with pytest.raises(TrainingError, match="give another folder for the data"):
        build(tmp_path / "in", tmp_path / "in", models, STRICT)
    with pytest.raises(TrainingError, match=r"no subject was found in .*report.json in .* says why"):
        build(tmp_path / "in", tmp_path / "out", models, STRICT)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_the_command_says_what_is_wrong(world, bright_sam, tiny_models, tmp_path, capsys):
    good = command(world, tmp_path / "out", bright_sam, tiny_models)

    def said(*changes: str) -> str:
        assert main([*good, *changes]) == 2
        text = capsys.readouterr().out
        assert text.count("\n") == 1 and text.endswith(".\n"), text
        return text

    assert "there is no captioner 'x'" in said("--captioner", "x")
    assert "there is no 'x.pth'" in said("--sam", "x.pth")
    assert "sam_vit_b_01ec64.pth is missing: it is needed for" in said("--sam", "sam_vit_b_01ec64.pth")
    vision = good[good.index("--clip-vision") + 1]
    assert "will not do" in said("--sam", vision)
    assert "is no whole safetensors file" in said("--clip-vision", good[good.index("--sam") + 1])
    (tmp_path / "bad.json").write_text("{}")
    assert "the workflow is not in API form" in said("--workflow", str(tmp_path / "bad.json"))
    (tmp_path / "bad.json").write_text('{"poses": 3}')
    assert "poses is 3; it must be true or false" in said("--config", str(tmp_path / "bad.json"))
    missing = str(tmp_path / "nowhere.json")
    assert said("--config", missing).startswith(f"--config {missing}: it cannot be read (")
    for option in ("--workflow", "--judge"):
        assert re.search(r"cannot be read \(.+\); save one with Workflow > Export", said(option, missing))
    (tmp_path / "bad.json").write_text('{"min_side": 32}', encoding="utf-16")
    assert "bad.json: it is not in UTF-8; save it again" in said("--config", str(tmp_path / "bad.json"))
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json: it is not JSON" in said("--config", str(tmp_path / "bad.json"))
    (tmp_path / "bad.json").write_text('{"min_side": 32}', encoding="utf-8-sig")
    assert "body_pose_model.pth is missing" in said("--config", str(tmp_path / "bad.json"))


def test_a_full_disk(world, models, tmp_path, monkeypatch, capsys, bright_sam, tiny_models):
    """The disk is full at the second crop; with room again the same command goes on."""
    real, calls = references.write_picture, []

    def write(path: Path, picture: torch.Tensor) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(path))
        real(path, picture)

    monkeypatch.setattr(references, "write_picture", write)
    arguments = command(world, tmp_path / "out", bright_sam, tiny_models)
    assert main(arguments) == 2
    assert capsys.readouterr().out == "The disk is full; free some space, then the same command continues.\n"
    assert main(arguments) == 0
