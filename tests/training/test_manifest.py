"""Manifests: what is read and written, and what is said of every bad row."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.training.manifest import SHOWN, manifest_version, read_manifest, write_manifest
from comfyui_ensemble.training.manifest_rows import ManifestRow, ManifestSubject, stays_inside
from comfyui_ensemble.training.pictures import DataError

Row = dict[str, Any]
BODY = [number for index in range(18) for number in (20.0 + index, 30.0 + index, 1.0)]


def save(path: Path, size: tuple[int, int], mode: str = "RGB", seed: int = 0, **options: Any) -> None:
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def save_mask(path: Path, size: tuple[int, int], brightness: int = 255) -> None:
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[size[1] // 2, size[0] // 2] = brightness  # one pixel is enough
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def good_row(number: int) -> Row:
    return {
        "target": f"pictures/{number}.png",
        "caption": "A woman in a red coat walks  a dog",
        "subjects": [
            {
                "reference": "references/anna.png",
                "name": "anna",
                "description": "a woman in a red coat",
                "category": "person",
                "mask": "references/anna_mask.png",
                "instance_mask": "pictures/mask.png",
                "box": [0, 1.5, 80, 60],
                "pose": {"pose_keypoints_2d": BODY},
            },
            {"reference": "references/rex.jpg", "name": "rex", "description": "walks a dog", "category": "animal"},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures for three rows."""
    for number in range(3):
        save(tmp_path / f"pictures/{number}.png", (80, 60), seed=number)
    save(tmp_path / "references/anna.png", (40, 50), seed=10)
    save(tmp_path / "references/rex.jpg", (64, 48), seed=11)
    save_mask(tmp_path / "references/anna_mask.png", (40, 50))
    save_mask(tmp_path / "pictures/mask.png", (80, 60))
    return tmp_path


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "manifest.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    text = str(caught.value)
    assert "\n" not in text and not text.endswith(".") and caught.value.input_name == "manifest"
    assert str(path.parent) not in text or "cannot be read" in text
    return text


def test_good_rows_are_read(folder: Path):
    manifest = read_manifest(written(folder, good_row(0), "", good_row(1), good_row(2)))
    assert len(manifest) == 3 and manifest.lines == (1, 3, 4)
    assert manifest.sizes == ((80, 60),) * 3 and len(set(manifest.keys)) == 3
    anna, rex = manifest[0].subjects
    assert anna.box == (0, 1.5, 80, 60) and anna.pose == {"pose_keypoints_2d": BODY}
    assert rex.mask is None and rex.box is None and rex.category == "animal"


def test_what_is_written_is_read_back(folder: Path):
    rows = read_manifest(written(folder, good_row(0), good_row(1))).rows
    again = folder / "again.jsonl"
    write_manifest(again, rows)
    assert read_manifest(again).rows == rows
    assert again.read_bytes().count(b"\n") == 2


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(folder: Path):
    path = folder / "windows.jsonl"
    text = "\r\n".join(json.dumps(good_row(number), ensure_ascii=False) for number in range(2))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    assert len(read_manifest(path)) == 2


def test_line_separators_inside_a_caption_are_no_ends_of_lines(folder: Path):
    row = good_row(0)
    row["caption"] += " \u2028 and more"
    assert len(read_manifest(written(folder, json.dumps(row, ensure_ascii=False), good_row(1)))) == 2


def change(**changes: Any) -> Callable[[Row], None]:
    return lambda row: row.update(changes)


def subject(**changes: Any) -> Callable[[Row], None]:
    return lambda row: row["subjects"][0].update(changes)


def without(key: str) -> Callable[[Row], None]:
    return lambda row: row.pop(key)


BAD_ROWS: list[tuple[Callable[[Row], None], str]] = [
    (without("target"), "target is missing"),
    (change(target="pictures/none.png"), "target 'pictures/none.png' is missing"),
    (change(target="pictures"), "target 'pictures' is no file"),
    (change(target="../secret.png"), "target '../secret.png' leads out of the manifest's folder"),
    (change(target="/etc/passwd"), "target '/etc/passwd' leads out of the manifest's folder"),
    (change(target="C:\\pictures\\0.png"), "leads out of the manifest's folder"),
    (change(target="..\\0.png"), "leads out of the manifest's folder"),
    (change(target="a\0b.png"), "leads out of the manifest's folder"),
    (change(target=7), "target is no text or an empty one"),
    (change(caption="  "), "caption is no text or an empty one"),
    (change(subjects=[]), "subjects is no list of at least one subject"),
    (change(subjects={"reference": "a"}), "subjects is no list of at least one subject"),
    (change(subjects=[3]), "subject 1: it is no JSON object"),
    (change(captoin="a"), "'captoin' is no key of a manifest; known are target, caption, subjects"),
    (change(caption="a man walks a dog"), "subject 'anna': the caption does not say 'a woman in a red coat'"),
    (subject(reference="no.png"), "subject 'anna': reference 'no.png' is missing"),
    (subject(name=""), "subject 1: name is no text or an empty one"),
    (subject(name="rex"), "two subjects have the name 'rex'"),
    (subject(description=None), "subject 'anna': description is missing"),
    (subject(description="woman in a red coa"), "the caption does not say 'woman in a red coa'"),
    (subject(category="hairdo"), "category 'hairdo' is unknown; choose one of person, face, upper garment"),
    (subject(mask="pictures/mask.png"), "mask 'pictures/mask.png' is 80 x 60, but the reference is 40 x 50"),
    (subject(mask="black.png"), "mask 'black.png' is empty; paint the subject white"),
    (subject(mask="grey.png"), "mask 'grey.png' is empty"),
    (subject(mask="hidden.png"), "mask 'hidden.png' is empty"),
    (
        subject(instance_mask="references/anna_mask.png"),
        "instance_mask 'references/anna_mask.png' is 40 x 50, but the target is",
    ),
    (subject(reference="clear.png", mask=None), "reference 'clear.png' is all transparent"),
    (subject(box=[0, 0, 81, 60]), "box [0.0, 0.0, 81.0, 60.0] reaches out of the target, which is 80 x 60"),
    (subject(box=[-1, 0, 8, 60]), "reaches out of the target"),
    (subject(box=[10, 0, 10, 60]), "has no area"),
    (subject(box=[0, 0, 8]), "box is not four numbers"),
    (subject(box=[0, 0, 8, True]), "box is not four numbers"),
    (subject(box=[0, 0, 8, "9"]), "box is not four numbers"),
    (subject(box="0 0 8 9"), "box is not four numbers"),
    (subject(box=[0, 0, 8, 10**400]), "box"),
    (subject(pose={"people": []}), "pose is no person of an OpenPose frame"),
    (subject(pose=BODY), "pose is no person of an OpenPose frame"),
    (subject(pose={"pose_keypoints_2d": BODY[:-1]}), "pose: person 1: pose_keypoints_2d has 53 numbers"),
    (subject(pose={"pose_keypoints_2d": BODY[:-3]}), "pose: person 1 has 17 body keypoints, expected 18"),
    (subject(pose={"pose_keypoints_2d": [0.0] * 54}), "pose: it shows no keypoint"),
    (subject(pose={"pose_keypoints_2d": ["x"] * 54}), "pose: person 1"),
    (subject(pose={"pose_keypoints_2d": 7}), "pose: person 1"),
    (subject(pose={"pose_keypoints_2d": [9000.0, 1, 1] * 18}), "far outside the 80 x 60 canvas"),
    (subject(target="a.png"), "subject 'anna': 'target' is no key of a manifest"),
    (change(target="cut.png"), "target 'cut.png' is damaged"),
    (change(target="cut.jpg"), "target 'cut.jpg' is damaged"),
    (change(target="text.png"), "target 'text.png' is no picture that can be read"),
    (change(target="empty.png"), "target 'empty.png' is no picture that can be read"),
    (subject(reference="cut.jpg"), "subject 'anna': reference 'cut.jpg' is damaged"),
    (subject(mask="cut.png"), "subject 'anna': mask 'cut.png' is damaged"),
]


@pytest.fixture
def bad_files(folder: Path) -> Path:
    for name in ("cut.png", "cut.jpg"):
        save(folder / name, (400, 300))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 2 // 3])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    save_mask(folder / "black.png", (40, 50), 0)
    save_mask(folder / "grey.png", (40, 50), 100)
    pixels = np.full((50, 40, 4), 255, dtype=np.uint8)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(folder / "clear.png")
    Image.fromarray(pixels).save(folder / "hidden.png")
    return folder


@pytest.mark.parametrize("spoil, message", BAD_ROWS)
def test_a_bad_row_is_named(bad_files: Path, spoil: Callable[[Row], None], message: str):
    row = good_row(1)
    spoil(row)
    text = complaint(written(bad_files, good_row(0), row, good_row(2)))
    assert text.startswith("manifest.jsonl has 1 bad row: line 2: ") and text.endswith("; mend or remove it")
    assert message in text
    assert "line 1" not in text and "line 3" not in text


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"target": "a"', "it is no valid JSON: Expecting ',' delimiter at column 15"),
        ("[1]", "it is no JSON object"),
        ("null", "it is no JSON object"),
        ('{"target": "a", "target": "b"}', "the key 'target' stands twice"),
        (json.dumps(good_row(0)).replace("1.5", "NaN"), "NaN is no number that JSON knows"),
        (json.dumps(good_row(0)).replace("1.5", "-Infinity"), "-Infinity is no number that JSON knows"),
        (json.dumps(good_row(0)).replace("1.5", "1e999"), "box is not four numbers"),
        ("[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_line_that_is_no_row_is_named(folder: Path, line: str, message: str):
    text = complaint(written(folder, good_row(0), line, good_row(2)))
    assert "line 2: " in text and message in text


def test_text_in_another_encoding_is_named(folder: Path):
    path = written(folder, good_row(0), good_row(1))
    path.write_bytes(path.read_bytes() + '{"caption": "Müller"}\n'.encode("latin-1"))
    assert "line 3: it is no UTF-8 text; save the manifest as UTF-8" in complaint(path)


def test_all_bad_rows_are_named_at_once(bad_files: Path):
    rows = [good_row(0)]
    for spoil, _ in BAD_ROWS[:4]:
        rows.append(good_row(1))
        spoil(rows[-1])
    both = good_row(2)
    both["caption"] = " "
    both["subjects"][0]["category"] = "hairdo"
    text = complaint(written(bad_files, *rows, both, "{"))
    assert text.startswith("manifest.jsonl has 6 bad rows: ") and text.endswith("; mend or remove them")
    assert [f"line {line}: " in text for line in range(1, 8)] == [False, *[True] * 6]
    assert "caption is no text or an empty one, and subject 'anna': category 'hairdo'" in text
    assert text.index("line 2") < text.index("line 5") < text.index("line 7")


def test_of_very_many_bad_rows_the_rest_is_counted_by_line(folder: Path):
    lines = ["{"] * (SHOWN + 5)
    lines[SHOWN + 3] = json.dumps(good_row(0))
    text = complaint(written(folder, *lines))
    assert f"has {SHOWN + 4} bad rows" in text
    assert f"; and lines {SHOWN + 1}-{SHOWN + 3}, {SHOWN + 5}; mend" in text


def test_the_same_row_twice_is_named_whatever_its_files_are_called(folder: Path):
    (folder / "copy.png").write_bytes((folder / "pictures/0.png").read_bytes())
    row = copy.deepcopy(good_row(0))
    row["target"] = "copy.png"
    assert "line 3: it is the same as line 1" in complaint(written(folder, good_row(0), good_row(1), row))


def test_one_difference_makes_another_row(folder: Path):
    one, box, words = good_row(0), good_row(0), good_row(0)
    box["subjects"][0]["box"] = [0, 0, 5, 5]
    words["caption"] += "!"
    assert len(read_manifest(written(folder, one, box, words))) == 3


def test_masks_change_places_without_being_mixed_up(folder: Path):
    save_mask(folder / "pictures/0_mask.png", (40, 50))
    rows = [good_row(0), good_row(0)]
    for row, key in zip(rows, ("mask", "instance_mask"), strict=True):
        one = row["subjects"][0]
        one["reference"] = "pictures/0.png"
        one["mask"] = one["instance_mask"] = None
        one[key] = "pictures/mask.png"
    assert len(set(read_manifest(written(folder, *rows)).keys)) == 2


@pytest.mark.parametrize("count, message", [(0, "holds no row"), (1, "holds only one row")])
def test_one_picture_is_too_few(folder: Path, count: int, message: str):
    text = complaint(written(folder, *[good_row(number) for number in range(count)]))
    assert message in text and "at least 2 pictures" in text


def test_a_missing_manifest_is_said(tmp_path: Path):
    assert "none.jsonl cannot be read (No such file or directory); give a manifest" in complaint(
        tmp_path / "none.jsonl"
    )
    (tmp_path / "folder.jsonl").mkdir()
    assert "cannot be read" in complaint(tmp_path / "folder.jsonl")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    outside = tmp_path_factory.mktemp("outside")
    save(outside / "secret.png", (80, 60))
    (folder / "pictures/1.png").unlink()
    (folder / "pictures/1.png").symlink_to(outside / "secret.png")
    text = complaint(written(folder, good_row(0), good_row(1)))
    assert "target 'pictures/1.png' is a link that leads out of the manifest's folder" in text
    (folder / "inside").symlink_to(folder / "pictures")
    row = good_row(1)
    row["target"] = "inside/2.png"
    assert len(read_manifest(written(folder, good_row(0), row))) == 2


def test_paths_stay_inside():
    assert all(map(stays_inside, ("a.png", "a/b.png", "a b/ä.png", "a..b.png", "...png", ".hidden/a.png")))
    assert not any(
        map(
            stays_inside, ("../a", "a/../../b", "/a", "\\a", "C:a", "C:/a", "\\\\host\\a", "a/..", "a\\..\\..\\b", "\0")
        )
    )


def test_a_turned_photo_counts_upright(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    save(folder / "phone.jpg", (60, 80), exif=exif)
    row = good_row(0)
    row["target"] = "phone.jpg"  # seen, it is 80 x 60, as its mask and box are
    assert read_manifest(written(folder, row, good_row(1))).sizes == ((80, 60), (80, 60))


def test_a_pose_in_shares_of_the_picture_is_read(folder: Path):
    row = good_row(0)
    row["subjects"][0]["pose"] = {"pose_keypoints_2d": [0.5, 0.25, 1.0] * 18}
    assert len(read_manifest(written(folder, row, good_row(1)))) == 2


def test_a_description_may_be_shared(folder: Path):
    row = good_row(0)
    row["subjects"][1]["description"] = "a woman in a red coat"
    assert len(read_manifest(written(folder, row, good_row(1)))) == 2


def test_progress_counts_files_and_may_stop(folder: Path):
    path = written(folder, *map(good_row, range(3)))
    seen: list[tuple[int, int]] = []
    read_manifest(path, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        read_manifest(path, stop)


def test_writing_is_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch):
    rows = read_manifest(written(folder, good_row(0), good_row(1))).rows
    path = folder / "out.jsonl"
    write_manifest(path, rows[:1])
    before = path.read_bytes()

    def full(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=r"out.jsonl cannot be written \(No space left on device\); free some space"):
        write_manifest(path, rows)
    assert path.read_bytes() == before
    assert not list(folder.glob(".*partial"))


def test_paths_that_lead_out_are_not_written(tmp_path: Path):
    row = ManifestRow("../0.png", "a dog", (ManifestSubject("a.png", "rex", "a dog", "animal"),))
    with pytest.raises(DataError, match=r"'../0.png' leads out of the folder of m.jsonl"):
        write_manifest(tmp_path / "m.jsonl", [row])
    assert not (tmp_path / "m.jsonl").exists()


def test_the_version_changes_with_every_file(folder: Path):
    path = written(folder, good_row(0), good_row(1))
    before = manifest_version(path)
    assert manifest_version(path) == before
    for file in (path, folder / "pictures/1.png", folder / "references/anna_mask.png"):
        os.utime(file, ns=(1, 1))
        assert manifest_version(path) != before
        before = manifest_version(path)
    (folder / "pictures/2.png").unlink()  # in no row
    assert manifest_version(path) == before
    (folder / "pictures/1.png").unlink()
    assert manifest_version(path) != before


def test_nothing_but_a_sentence_comes_out_of_noise(folder: Path):
    draw = random.Random(0)
    good = json.dumps(good_row(0)).encode()
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path = folder / "noise.jsonl"
        path.write_bytes(json.dumps(good_row(1)).encode() + b"\n" + bytes(data) + b"\n")
        try:
            read_manifest(path)
        except DataError as error:
            assert "line" in str(error) or "holds" in str(error)
