"""Which samples a training sees, in which order, at which size."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.nodes.training_data import PUPPETS
from comfyui_ensemble.training.buckets import nearest_bucket
from comfyui_ensemble.training.data import DEALS_A_WINDOW, ONE_FOR_ALL, DataError, Draw, TrainingData
from comfyui_ensemble.training.manifest_source import ManifestSource
from comfyui_ensemble.training.puppets import KeptSamples, PuppetSource
from comfyui_ensemble.training.sample import TrainingSample

SHAPES = [(90, 60)] * 13 + [(60, 90)] * 7 + [(70, 70)] * 5 + [(120, 50)] * 2
ITEMS = ("face", "upper garment", "lower garment", "bag", "hat")
BODY = [number for index in range(18) for number in (10.0 + index, 20.0 + index, 1.0)]


def write_rows(folder: Path, shapes: list[tuple[int, int]], subjects: int = 2) -> Path:
    """A manifest of noise pictures; row i shows items i, i + 1, ..."""
    random = np.random.default_rng(0)
    (folder / "p").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (width, height) in enumerate(shapes):
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"p/{number}.png")
        Image.fromarray(random.integers(0, 256, (40, 30, 4), dtype=np.uint8)).save(folder / f"p/{number}_reference.png")
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 255
        Image.fromarray(mask).save(folder / f"p/{number}_mask.png")
        listed = [
            {
                "reference": f"p/{number}_reference.png",
                "name": f"item {place}",
                "description": f"item {place}",
                "category": ITEMS[(number + place) % len(ITEMS)],
                "instance_mask": f"p/{number}_mask.png",
                "box": [width // 4, height // 4, width // 2, height // 2],
                "pose": {"pose_keypoints_2d": BODY},
            }
            for place in range(subjects)
        ]
        caption = " and ".join(one["description"] for one in listed) + f" in picture {number}"
        lines.append(json.dumps({"target": f"p/{number}.png", "caption": caption, "subjects": listed}))
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ManifestSource:
    return ManifestSource(write_rows(tmp_path_factory.mktemp("rows"), SHAPES))


class Plain:
    """A source of one size that only counts; what it counts is all a training may know of it."""

    identity = "plain"

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int) -> TrainingSample:
        return TrainingSample(str(index), torch.full((64, 64, 3), index / self.length), "", ())


def same(left: Any, right: Any) -> bool:
    """Samples of equal content."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if hasattr(left, "__dict__"):
        return all(same(value, vars(right)[name]) for name, value in vars(left).items())
    return left == right


# Samples of a manifest


def test_a_sample_is_what_the_files_say(source: ManifestSource):
    folder, sample = source.manifest.path.parent, source.sample(3)
    target = np.asarray(Image.open(folder / "p/3.png"))
    reference = np.asarray(Image.open(folder / "p/3_reference.png"))
    mask = np.asarray(Image.open(folder / "p/3_mask.png"))
    assert sample.caption == "item 0 and item 1 in picture 3"
    assert np.array_equal(sample.target.numpy(), target.astype(np.float32) / 255)
    one = sample.subjects[1]
    assert one.mask is not None
    assert np.array_equal(one.reference.numpy(), reference[..., :3].astype(np.float32) / 255)
    assert np.array_equal(one.reference_mask.numpy(), reference[..., 3].astype(np.float32) / 255)
    assert np.array_equal(one.mask.numpy(), mask / np.float32(255))
    assert one.category == "hat" and one.box == (22, 15, 45, 30)
    assert one.person is not None and one.person["pose_keypoints_2d"] == pytest.approx(BODY)
    assert source.target_size(3) == (90, 60) and source.categories(3) == ["bag", "hat"]
    assert source.row_name(3) == "line 4 of manifest.jsonl"


def test_kinds_of_picture_files(tmp_path: Path):
    path = write_rows(tmp_path, [(64, 48)] * 2, subjects=1)
    grey = np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16)
    small = np.random.default_rng(1).integers(0, 256, (48, 64), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    sideways = np.zeros((64, 48, 3), dtype=np.uint8)
    sideways[:32, 24:] = 255  # the upper right quarter of the file is the lower right one of the picture
    kinds: dict[str, tuple[Image.Image, dict[str, Any], np.ndarray]] = {
        "sixteen.png": (Image.fromarray(grey), {}, np.repeat((grey // 257)[..., None], 3, -1)),
        "grey.png": (Image.fromarray(small), {}, np.repeat(small[..., None], 3, -1)),
        "palette.png": (Image.fromarray(small).convert("P"), {}, np.repeat(small[..., None], 3, -1)),
        "lossless.webp": (
            Image.fromarray(small).convert("RGB"),
            {"lossless": True},
            np.repeat(small[..., None], 3, -1),
        ),
        "turned.png": (Image.fromarray(sideways), {"exif": turned}, np.rot90(sideways, -1)),
        "bits.png": (Image.fromarray(small > 127), {}, np.repeat(((small > 127) * 255)[..., None], 3, -1)),
        "cmyk.jpg": (Image.new("CMYK", (64, 48), (0, 255, 255, 0)), {}, np.full((48, 64, 3), (255, 0, 0))),
    }
    good = path.read_text().splitlines()
    for name, (image, options, expected) in kinds.items():
        image.save(tmp_path / name, **options)
        row = json.loads(good[0]) | {"target": name}
        path.write_text(f"{json.dumps(row)}\n{good[1]}")
        found = ManifestSource(path).sample(0).target.numpy() * 255
        assert np.abs(found - expected).max() <= (0.001 if name != "cmyk.jpg" else 3), name


def test_a_reference_without_mask_or_transparency_is_all_subject(tmp_path: Path):
    path = write_rows(tmp_path, [(64, 48)] * 2, subjects=1)
    Image.fromarray(np.zeros((40, 30, 3), dtype=np.uint8)).save(tmp_path / "p/0_reference.png")
    assert torch.equal(ManifestSource(path).sample(0).subjects[0].reference_mask, torch.ones(40, 30))


def test_a_mask_goes_before_transparency(tmp_path: Path):
    path = write_rows(tmp_path, [(64, 48)] * 2, subjects=1)
    mask = np.zeros((40, 30, 4), dtype=np.uint8)
    mask[5:9, 5:9] = 255
    mask[20:, :, :3] = 255  # white, but transparent
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["subjects"][0]["mask"] = "mask.png"
    path.write_text("\n".join(map(json.dumps, rows)))
    expected = torch.zeros(40, 30)
    expected[5:9, 5:9] = 1
    assert torch.equal(ManifestSource(path).sample(0).subjects[0].reference_mask, expected)


def test_a_file_that_changes_during_a_run_is_noticed(tmp_path: Path):
    path = write_rows(tmp_path, [(64, 48)] * 3)
    source = ManifestSource(path)
    (tmp_path / "p/1.png").write_bytes((tmp_path / "p/0.png").read_bytes())
    (tmp_path / "p/2_mask.png").unlink()
    source.sample(0)
    with pytest.raises(DataError, match=r"'p/1.png' has changed since the manifest was read"):
        source.sample(1)
    with pytest.raises(DataError, match=r"'p/2_mask.png' cannot be read any more \(No such file"):
        source.sample(2)


def test_identity_and_keys_follow_the_content(tmp_path: Path):
    path = write_rows(tmp_path / "a", SHAPES[:4])
    first = ManifestSource(path)
    moved = ManifestSource(write_rows(tmp_path / "b", SHAPES[:4]))
    assert first.identity == moved.identity and first.sample(1).key == moved.sample(1).key
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].replace("picture 3", "picture three")]))
    changed = ManifestSource(path)
    assert changed.identity != first.identity
    assert changed.sample(3).key != first.sample(3).key and changed.sample(2).key == first.sample(2).key
    path.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    assert ManifestSource(path).identity != first.identity  # the order decides about the draws


# Draws


@pytest.mark.parametrize("size", [1, 3, 4, 16])
def test_batches_are_of_one_bucket_and_rows_come_once_an_epoch(source: ManifestSource, size: int):
    data = TrainingData(source, 64, 48, seed=4)
    epochs = 12
    buckets = [nearest_bucket(shape, 64) for shape in SHAPES]
    counts = Counter(buckets)
    steps = sum(epochs * count // size for count in counts.values())
    seen: Counter[int] = Counter()
    for step in range(steps):
        batch = data.batch(step, size)
        assert [draw.position for draw in batch] == list(range(step * size, (step + 1) * size))
        assert len({buckets[draw.index] for draw in batch}) == 1
        assert all(draw.subject is None and draw.category is None for draw in batch)
        seen.update(draw.index for draw in batch)
    for row, bucket in enumerate(buckets):
        assert epochs - math.ceil(size / counts[bucket]) <= seen[row] <= epochs


def test_draws_are_a_function_of_seed_and_step(source: ManifestSource):
    data, again, other = (TrainingData(source, 64, 48, seed=seed) for seed in (1, 1, 2))
    forward = [data.batch(step, 4) for step in range(40)]
    assert [again.batch(step, 4) for step in reversed(range(40))] == forward[::-1]
    assert [other.batch(step, 4) for step in range(40)] != forward


def test_an_endless_source_is_drawn_from_all_over():
    data = TrainingData(Plain(10**12), 64, 48)
    seen = [draw.index for step in range(50) for draw in data.batch(step, 4)]
    assert len(set(seen)) == 200 and min(seen) < 10**11 and max(seen) > 9 * 10**11


def test_four_pictures_come_in_turn():
    data = TrainingData(Plain(4), 64, 48)
    seen = [draw.index for step in range(20) for draw in data.batch(step, 2)]
    assert all(sorted(seen[start : start + 4]) == [0, 1, 2, 3] for start in range(0, 40, 4))


def test_identity_knows_everything_that_decides(source: ManifestSource):
    ratios = {"face": 1, "bag": 2}
    variants = [
        TrainingData(source, 64, 48),
        TrainingData(source, 80, 48),
        TrainingData(source, 64, 64),
        TrainingData(source, 64, 48, seed=1),
        TrainingData(source, 64, 48).with_augmentation(),
        TrainingData(source, 64, 48).balanced(),
        TrainingData(source, 64, 48).balanced(ratios),
        TrainingData(source, 64, 48).balanced(ratios).with_augmentation(),
        TrainingData(Plain(4), 64, 48),
    ]
    assert len({data.identity for data in variants}) == len(variants)
    assert TrainingData(source, 64, 48).identity == variants[0].identity
    assert variants[0].with_augmentation().balanced(ratios).identity == variants[7].identity


@pytest.mark.parametrize("name, sizes", [("resolution", (8, 48)), ("reference_resolution", (64, 0))])
def test_sizes_that_are_too_small_are_refused(name: str, sizes: tuple[int, int]):
    with pytest.raises(DataError, match="pixels are too few; choose at least 16") as caught:
        TrainingData(Plain(4), *sizes)
    assert caught.value.input_name == name


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="the data holds no sample"):
        TrainingData(Plain(0), 64, 48)


# One-for-All's draws


def categories(source: ManifestSource, draws: list[Draw]) -> Counter:
    return Counter(source.categories(draw.index)[draw.subject or 0] for draw in draws)


def test_of_seven_draws_of_one_bucket_two_two_two_and_one(tmp_path: Path):
    source = ManifestSource(write_rows(tmp_path, [(64, 64)] * 10))
    data = TrainingData(source, 64, 48).balanced()
    for size in (1, 3, 16):
        draws = [draw for step in range(70) for draw in data.batch(step, size)]
        assert [draw.position for draw in draws] == list(range(70 * size))
        assert all(draw.subject in (0, 1) for draw in draws)
        for start in range(0, len(draws), 7):
            assert categories(source, draws[start : start + 7]) == Counter(ONE_FOR_ALL)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_of_several_buckets_the_ratio_holds_for_every_window(source: ManifestSource, size: int):
    data = TrainingData(source, 64, 48, seed=2).balanced()
    buckets = [nearest_bucket(shape, 64) for shape in SHAPES]
    steps = 7 * DEALS_A_WINDOW
    for window in range(2):
        batches = [data.batch(step, size) for step in range(window * steps, (window + 1) * steps)]
        found = categories(source, [draw for batch in batches for draw in batch])
        assert found == Counter({name: share * DEALS_A_WINDOW * size for name, share in ONE_FOR_ALL.items()})
        mixed = sum(len({buckets[draw.index] for draw in batch}) > 1 for batch in batches)
        assert mixed < len(set(buckets))
    assert data.batch(5, size) == TrainingData(source, 64, 48, seed=2).balanced().batch(5, size)


def test_all_subjects_of_a_category_come_equally_often(source: ManifestSource):
    data = TrainingData(source, 64, 48).balanced({"bag": 1, "hat": 2})
    steps = 3 * DEALS_A_WINDOW
    seen = Counter((draw.index, draw.subject) for step in range(3 * steps) for draw in data.batch(step, 2))
    for category in ("bag", "hat"):
        counts = [
            seen[row, place]
            for row in range(len(source))
            for place, its in enumerate(source.categories(row))
            if its == category
        ]
        assert max(counts) - min(counts) <= 1


def test_a_balanced_draw_shows_its_subject_alone(source: ManifestSource):
    data = TrainingData(source, 64, 48).balanced()
    for draw in data.batch(0, 8):
        sample = data.load(draw)
        assert draw.subject is not None and len(sample.subjects) == 1
        assert sample.subjects[0].name == f"item {draw.subject}"


def test_a_category_that_is_missing_is_a_sentence(source: ManifestSource):
    with pytest.raises(
        DataError,
        match=r"no subject is of the category 'shoes', but the training draws 1 face, 1 shoes in turn; add subjects of it to the"
        r" manifest, .*, or leave it out of the setting categories",
    ):
        TrainingData(source, 64, 48).balanced({"face": 1, "shoes": 1})
    assert TrainingData(source, 64, 48).balanced({"face": 1, "shoes": 0}).ratios == {"face": 1}


def test_endless_puppets_are_balanced_too():
    puppets = TrainingData(PuppetSource(size=(64, 64), kind="items"), 64, 32, seed=1)
    data = puppets.balanced()
    draws = [draw for step in range(7) for draw in data.batch(step, 2)]
    for start in (0, 7):
        shown = [data.load(draw).subjects for draw in draws[start : start + 7]]
        assert Counter(one.category for (one,) in shown) == Counter(ONE_FOR_ALL)
    assert len({data.load(draw).key for draw in draws}) == 14
    assert same(data.load(draws[3]), puppets.balanced().load(draws[3]))
    with pytest.raises(DataError, match="no subject is of the category 'animal'"):
        puppets.balanced({"animal": 1})


@pytest.mark.parametrize("count", [None, 3])
def test_puppets_as_people_say_how_they_show_things(count: int | None):
    source = PuppetSource(size=(64, 64), count=count)
    people = TrainingData(KeptSamples(source, range(count)) if count else source, 64, 32)
    with pytest.raises(DataError) as caught:
        people.balanced()
    said = str(caught.value)
    (option,) = [name for name, kind in PUPPETS.items() if kind == "items"]
    assert "no subject is of the category 'face'" in said and "--puppets-kind items" in said and option in said
    assert TrainingData(PuppetSource(size=(64, 64), kind="items"), 64, 32).balanced().ratios == ONE_FOR_ALL


# Loaded samples


def test_samples_are_loaded_at_the_trainings_sizes(source: ManifestSource):
    data = TrainingData(source, 64, 48)
    for index, shape in enumerate(SHAPES):
        sample = data.load(Draw(0, index))
        bucket = nearest_bucket(shape, 64)
        assert sample.target.shape == (bucket[1], bucket[0], 3) and sample.target.dtype == torch.float32
        for one in sample.subjects:
            assert one.reference.shape == (48, 32, 3) and one.reference_mask.shape == (48, 32)
            assert one.mask is not None and one.mask.shape == (bucket[1], bucket[0])
            assert one.box is not None and one.person is not None
            left, top, right, bottom = one.box
            assert abs(float(one.mask.sum()) - (right - left) * (bottom - top)) < 0.03 * (right - left) * (bottom - top)


def test_stored_bytes_and_floats_give_the_same_sample(source: ManifestSource):
    class Floats(Plain):
        def sample(self, index: int) -> TrainingSample:
            return source.sample(index)

    stored, floats = TrainingData(source, 64, 48), TrainingData(Floats(len(source)), 64, 48)
    for index in (0, 15, 22, 26):
        one, other = stored.load(Draw(0, index)), floats.load(Draw(0, index))
        # Bytes are cut off at 0 and 255 between the two passes of the resampling, and this is noise.
        for left, right in ((one.target, other.target), (one.subjects[0].reference, other.subjects[0].reference)):
            assert (left - right).abs().mean() < 1 / 255 and (left - right).abs().max() < 0.1
        assert one.subjects[0].box == other.subjects[0].box and one.caption == other.caption


def test_keys_tell_loaded_samples_apart(source: ManifestSource):
    plain = TrainingData(source, 64, 48)
    keys = {
        plain.load(Draw(0, 0)).key,
        plain.load(Draw(0, 1)).key,
        plain.load(Draw(0, 0, 1)).key,
        TrainingData(source, 80, 48).load(Draw(0, 0)).key,
        TrainingData(source, 64, 32).load(Draw(0, 0)).key,
        plain.with_augmentation().load(Draw(0, 0)).key,
        plain.with_augmentation().load(Draw(1, 0)).key,
        TrainingData(source, 64, 48, seed=1).with_augmentation().load(Draw(0, 0)).key,
    }
    assert len(keys) == 8
    assert plain.load(Draw(9, 0)).key == plain.load(Draw(0, 0)).key  # the position alone changes nothing


def test_augmentation_goes_by_the_position_and_touches_references_only(source: ManifestSource):
    plain = TrainingData(source, 64, 48, seed=3)
    data = plain.with_augmentation()
    one, again, other = data.load(Draw(5, 2)), data.load(Draw(5, 2)), data.load(Draw(6, 2))
    assert same(one, again)
    assert not torch.equal(one.subjects[0].reference, other.subjects[0].reference)
    assert not torch.equal(one.subjects[0].reference, one.subjects[1].reference)  # one file, two draws
    bare = plain.load(Draw(5, 2))
    assert torch.equal(one.target, bare.target) and one.subjects[0].box == bare.subjects[0].box
    assert not plain.augment


def test_loading_in_threads_gives_what_loading_in_turn_does(source: ManifestSource):
    data = TrainingData(source, 64, 48).with_augmentation()
    draws = [draw for step in range(8) for draw in data.batch(step, 4)]
    expected = [data.load(draw) for draw in draws]
    found: dict[int, TrainingSample] = {}

    def load(start: int) -> None:
        for number in range(start, len(draws), 4):
            found[number] = data.load(draws[number])

    threads = [threading.Thread(target=load, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[number], sample) for number, sample in enumerate(expected))


def test_names_of_draws(source: ManifestSource):
    assert TrainingData(source, 64, 48).name(Draw(8, 2)) == "line 3 of manifest.jsonl"
    assert TrainingData(Plain(4), 64, 48).name(Draw(8, 2)) == "sample 2"
