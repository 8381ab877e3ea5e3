"""The papers' benchmarks, built from miniatures of their datasets."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.batch.addresses import Addresses
from comfyui_ensemble.batch.jobs import build_jobs
from comfyui_ensemble.batch.jobs_file import read_jobs
from comfyui_ensemble.evaluation.benchmarks.dreambench import read_dreambench
from comfyui_ensemble.evaluation.benchmarks.folder import read_benchmark, shuffled
from comfyui_ensemble.evaluation.benchmarks.humanbench import Item, draw_outfits
from comfyui_ensemble.evaluation.cases import Case
from comfyui_ensemble.evaluation.command import main
from comfyui_ensemble.evaluation.oks import frame_scores
from comfyui_ensemble.evaluation.paper_tables import benchmarks
from comfyui_ensemble.pose_db.exchange import COCO_KEYPOINTS
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX
from devtools.server import ComfyServer
from devtools.small_benchmarks import (
    draw_picture,
    write_small_coco,
    write_small_dreambench,
    write_small_humanbench,
    write_small_seal,
)

WRITERS = {
    "coco-pose": write_small_coco,
    "dreambench": write_small_dreambench,
    "dreambench-pairs": write_small_dreambench,
    "humanbench": write_small_humanbench,
    "seal": write_small_seal,
}
OPTIONS = {
    "coco-pose": ("--count", "6", "--min-side", "20"),
    "dreambench": ("--seeds", "2"),
    "dreambench-pairs": ("--pairs", "4", "--seeds", "1"),
    "humanbench": ("--pairs", "6", "--seeds", "2"),
    "seal": (),
}


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("datasets")
    return {name: writer(folder / name) for name, writer in WRITERS.items()}


def build(name: str, dataset: Path, out: Path, *more: str) -> list[Case]:
    assert main(["benchmark", name, str(dataset), "--out", str(out), *(more or OPTIONS[name])]) == 0
    return read_benchmark(out).cases


@pytest.fixture(scope="session")
def built(datasets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every benchmark, built once."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, dataset in datasets.items():
        build(name, dataset, folder / name)
    return {name: folder / name for name in datasets}


def rows_of(out: Path, queue: str) -> list[dict[str, Any]]:
    lines = (out / "queues" / queue / "jobs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# All of them


@pytest.mark.parametrize("name", WRITERS)
def test_every_column_and_value_fits_the_workflow_and_the_server(server: ComfyServer, built, name: str):
    """As `batch` checks them, against a real server's node definitions."""
    object_info = server.get("/object_info")
    benchmark = read_benchmark(built[name])
    keys = set()
    for queue, count in benchmark.queues.items():
        folder = built[name] / "queues" / queue
        workflow = json.loads((folder / "workflow.json").read_text(encoding="utf-8"))
        assert not any(node["class_type"].startswith("Preview") for node in workflow.values())
        jobs = build_jobs(
            read_jobs(folder / "jobs.jsonl"), [], Addresses(workflow, object_info), folder, lambda job, column: 0
        ).jobs
        assert len(jobs) == count
        for job in jobs:
            assert all(path.is_file() for path in job.pictures.values())
            keys.add(job.cells["#key"])
    assert keys == {case.key for case in benchmark.cases}
    assert benchmark.papers in benchmarks()


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_seed_builds_the_same_files_again(datasets, built, tmp_path, name: str):
    build(name, datasets[name], tmp_path / "again")
    assert contents(tmp_path / "again") == contents(built[name])


@pytest.mark.parametrize("name", WRITERS)
def test_everything_that_measuring_needs_is_there(built, name: str):
    for case in read_benchmark(built[name]).cases:
        assert case.prompt and case.part and case.subjects
        names = [name for subject in case.subjects for name in subject.references] + [case.structure] * bool(
            case.structure
        )
        for file in names:
            with Image.open(built[name] / file) as picture:
                assert picture.mode == "RGBA" and picture.format == "PNG"


def test_another_seed_takes_others(datasets, tmp_path):
    chosen = [
        {case.key for case in build("coco-pose", datasets["coco-pose"], tmp_path / seed, *options)}
        for seed, options in ((seed, ("--count", "2", "--min-side", "20", "--seed", seed)) for seed in "012")
    ]
    assert all(len(keys) == 2 for keys in chosen) and len(set(map(frozenset, chosen))) > 1


def test_shuffling_is_fair_and_stays_as_it_is():
    first = Counter(shuffled(range(5), seed, "x")[0] for seed in range(1000))
    assert set(first) == set(range(5)) and min(first.values()) > 150
    assert shuffled("abcde", 7, "x") == shuffled("edcba", 7, "x") != shuffled("abcde", 7, "y")
    assert [letter for letter in shuffled("abcdef", 7, "x") if letter != "f"] == shuffled("abcde", 7, "x")


def test_a_folder_with_other_settings_is_left_alone(datasets, tmp_path, capfd):
    build("seal", datasets["seal"], tmp_path)
    before = contents(tmp_path)
    assert main(["benchmark", "seal", str(datasets["seal"]), "--out", str(tmp_path), "--seed", "1"]) == 2
    assert "holds a benchmark of other settings; choose another --out." in capfd.readouterr().err
    assert contents(tmp_path) == before
    build("seal", datasets["seal"], tmp_path)


def test_says_what_to_do_next(datasets, tmp_path, capfd):
    build("humanbench", datasets["humanbench"], tmp_path / "bench mark")
    said = capfd.readouterr().err
    assert "36 pictures to make" in said
    for queue in ("3_subjects", "4_subjects"):
        assert (
            f"python dev.py python -m comfyui_ensemble.batch '{tmp_path}/bench mark/queues/{queue}/workflow.json'"
            in said
        )
    assert f"measure '{tmp_path}/bench mark' '{tmp_path}/bench mark_pictures/3_subjects'" in said


# COCO


def test_takes_pictures_of_up_to_three_whole_people(built):
    cases = read_benchmark(built["coco-pose"]).cases
    assert [case.key for case in cases] == [f"coco_val2017_{number:012d}" for number in range(1, 7)]
    assert [len(case.subjects) for case in cases] == [1, 2, 3, 1, 2, 3]
    assert read_benchmark(built["coco-pose"]).queues == {"1_subject": 2, "2_subjects": 2, "3_subjects": 2}
    assert cases[2].prompt == "3 people (a test) in picture 3." and cases[2].part == "3 people"
    assert (
        rows_of(built["coco-pose"], "3_subjects")[0]["Encode the prompt.text"] == r"3 people \(a test\) in picture 3."
    )


def test_subjects_are_cut_out_from_left_to_right(datasets, built):
    case = read_benchmark(built["coco-pose"]).cases[4]
    boxes = [subject.box for subject in case.subjects]
    assert boxes == [(0.0, 0.09375, 0.5, 0.90625), (0.5, 0.09375, 1.0, 0.90625)]  # 6 and 58 of 64 pixels
    with Image.open(datasets["coco-pose"] / "val2017" / "000000000005.jpg") as picture:
        whole = np.asarray(picture.convert("RGB"))
    for subject, (left, right) in zip(case.subjects, ((0, 48), (48, 96)), strict=True):
        with Image.open(built["coco-pose"] / subject.references[0]) as reference:
            assert np.array_equal(np.asarray(reference.convert("RGB")), whole[6:58, left:right])


def test_skeletons_are_cocos_keypoints_at_the_pictures_size(datasets, built):
    """Of the workflow's area, in the picture's proportions; every labelled keypoint where the annotation has it."""
    annotations = json.loads((datasets["coco-pose"] / "annotations" / "person_keypoints_val2017.json").read_text())
    for case in read_benchmark(built["coco-pose"]).cases:
        number = int(case.key.rpartition("_")[2])
        wide = number % 2 == 1
        assert (case.width, case.height) == ((160, 112) if wide else (112, 160))  # 96 x 64 and 64 x 96, in steps of 16
        across, down = (160 / 96, 112 / 64) if wide else (112 / 64, 160 / 96)
        people = sorted(
            (each for each in annotations["annotations"] if each["image_id"] == number), key=lambda a: a["bbox"]
        )
        assert case.pose is not None and len(case.pose["people"]) == len(people) == len(case.subjects)
        for found, person in zip(case.pose["people"], people, strict=True):
            body = np.array(found["pose_keypoints_2d"]).reshape(18, 3)
            for place, name in enumerate(COCO_KEYPOINTS):
                x, y, visibility = person["keypoints"][3 * place : 3 * place + 3]
                expected = (across * x, down * y, 1.0) if visibility else (0, 0, 0)
                assert body[KEYPOINT_INDEX[name]] == pytest.approx(expected)
            assert found["area"] == pytest.approx(across * down * person["area"])
            left, top, width, height = person["bbox"]
            assert found["bbox"] == pytest.approx([across * left, down * top, across * width, down * height])
        with Image.open(built["coco-pose"] / case.structure) as skeletons:
            pixels = np.asarray(skeletons.convert("RGB"))
        assert pixels.shape == (case.height, case.width, 3) and 0.005 < (pixels.max(axis=2) > 0).mean() < 0.5
        assert [each.score for each in frame_scores(dict(case.pose), dict(case.pose))] == [1.0] * len(people)


def test_the_workflow_takes_the_skeletons_and_as_many_subjects(built):
    for count in (1, 2, 3):
        queue = f"{count}_subject{'s' * (count > 1)}"
        workflow = json.loads((built["coco-pose"] / "queues" / queue / "workflow.json").read_text(encoding="utf-8"))
        kinds = Counter(node["class_type"] for node in workflow.values())
        assert kinds["EnsembleSubject"] == count and kinds["LoadImage"] == count + 1
        assert not kinds["EnsemblePoseRetriever"] and not kinds["EnsemblePoseRender"]
        latents = next(node for node in workflow.values() if node["class_type"] == "EnsembleReferenceLatents")
        assert workflow[latents["inputs"]["pose_image"][0]]["_meta"]["title"] == "Structure"
        assert len({row["Structure.image"] for row in rows_of(built["coco-pose"], queue)}) == 2


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    {
        "few": (lambda folder: None, "6 pictures of val2017 will do, 1000 are wanted; lower --count"),
        "none": (lambda folder: shutil.rmtree(folder / "annotations"), "there is no file "),
        "torn": (
            lambda folder: (folder / "annotations/captions_val2017.json").write_text("{"),
            "captions_val2017.json is not JSON; get the dataset again",
        ),
        "other": (
            lambda folder: (folder / "annotations/captions_val2017.json").write_text('{"images": [1]}'),
            "is not laid out as COCO is",
        ),
    }.values(),
)
def test_says_what_is_wrong_with_coco(tmp_path, capfd, spoil, sentence):
    write_small_coco(tmp_path / "coco")
    spoil(tmp_path / "coco")
    assert (
        main(["benchmark", "coco-pose", str(tmp_path / "coco"), "--out", str(tmp_path / "out"), "--min-side", "20"])
        == 2
    )
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_picture_of_another_size_is_found_out(tmp_path, capfd):
    write_small_coco(tmp_path / "coco")
    draw_picture(tmp_path / "coco" / "val2017" / "000000000001.jpg", (40, 40), 1)
    arguments = [
        "benchmark",
        "coco-pose",
        str(tmp_path / "coco"),
        "--out",
        str(tmp_path / "out"),
        *OPTIONS["coco-pose"],
    ]
    assert main(arguments) == 2
    assert "is not of the size that its annotations say" in capfd.readouterr().err
    assert not (tmp_path / "out" / "benchmark.json").exists()


# DreamBench


def test_every_subject_has_every_prompt_of_its_kind(built):
    cases = read_benchmark(built["dreambench"]).cases
    assert len(cases) == 2 * (3 * 3 + 2 * 2)  # three objects with three prompts, two live subjects with two, two seeds
    dogs = [case for case in cases if case.group == "dog"]
    assert {case.prompt for case in dogs} == {"a dog in the snow", "a dog wearing a santa hat"}
    assert {case.seed for case in dogs} == {0, 1} and {case.part for case in dogs} == {"live subjects"}
    plushies = [case for case in cases if case.group == "bear_plushie"]
    assert {case.prompt for case in plushies} == {
        *("a stuffed animal in the jungle", "a stuffed animal on top of a white rug", "a red stuffed animal"),
    }
    assert all(len(case.subjects[0].references) == 2 for case in cases)
    assert len({case.key for case in cases}) == len(cases)
    workflow = json.loads((built["dreambench"] / "queues/1_subject/workflow.json").read_text(encoding="utf-8"))
    latents = next(node for node in workflow.values() if node["class_type"] == "EnsembleReferenceLatents")
    assert "pose_image" not in latents["inputs"]


def test_pairs_are_of_different_classes_and_share_subjects_out(built):
    cases = read_benchmark(built["dreambench-pairs"]).cases
    pairs = {case.group: [subject.name for subject in case.subjects] for case in cases}
    assert len(pairs) == 4 and {len(set(names)) for names in pairs.values()} == {2}
    assert max(Counter(name for names in pairs.values() for name in names).values()) <= 2
    for case in cases:
        words = " and a ".join(subject.description for subject in case.subjects)
        assert words in case.prompt
        live = {subject.category for subject in case.subjects} == {"animal"}
        assert case.part == ("live subjects" if live else "objects")


def test_pairs_can_be_named(datasets, tmp_path, capfd):
    file = tmp_path / "pairs.txt"
    file.write_text("cat, dog\n\nteapot backpack\n", encoding="utf-8")
    cases = build(
        "dreambench-pairs", datasets["dreambench"], tmp_path / "out", "--pairs-file", str(file), "--seeds", "1"
    )
    assert {case.group for case in cases} == {"cat+dog", "teapot+backpack"}
    assert {case.prompt for case in cases if case.group == "cat+dog"} == {
        *("a cat and a dog in the snow", "a cat and a dog wearing a santa hat"),
    }
    for text, sentence in (
        ("cat dog\ncat dog", "line 2 of pairs.txt does not name a new pair"),
        ("cat unicorn", "the dataset has no subject 'unicorn'"),
        ("\n", "names no pair"),
    ):
        file.write_text(text, encoding="utf-8")
        arguments = ["benchmark", "dreambench-pairs", str(datasets["dreambench"]), "--out", str(tmp_path / "other")]
        assert main([*arguments, "--pairs-file", str(file)]) == 2
        assert sentence in capfd.readouterr().err


def test_the_published_file_has_its_prompts_and_classes(tmp_path):
    """All 30 subjects and 25 prompts of each kind, in the published file's own form."""
    names = [f"thing{number}" for number in range(28)] + ["cat2", "dog8"]
    kinds = {name: "dog" if name == "dog8" else "cat" if name == "cat2" else "toy" for name in names}
    lines = [
        "Classes",
        "",
        "subject_name,class",
        *(f"{name},{kind}" for name, kind in kinds.items()),
        "",
        "Prompts",
        "",
    ]
    for heading in ("Object Prompts", "Live Subject Prompts"):
        prompts = [f"'a {{0}} {{1}} in place {number}'.format(unique_token, class_token)," for number in range(24)]
        lines += [
            heading,
            "",
            "prompt_list = [",
            *prompts,
            "'a cube shaped {0} {1}'.format(unique_token, class_token)",
            "]",
        ]
    (tmp_path / "prompts_and_classes.txt").write_text("\n".join(lines), encoding="utf-8")
    for name in names:
        draw_picture(tmp_path / name / "00.jpg", (8, 8), 0)
    bench = read_dreambench(tmp_path)
    assert len(bench.things) == 30 and [len(bench.prompts[live]) for live in (False, True)] == [25, 25]
    cases = build("dreambench-pairs", tmp_path, tmp_path / "out", "--seeds", "6")
    assert len(cases) == 30 * 25 * 6 == 4500 and len({case.group for case in cases}) == 30


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    {
        "file": (
            lambda folder: (folder / "prompts_and_classes.txt").unlink(),
            "there is no prompts_and_classes.txt in",
        ),
        "words": (
            lambda folder: (folder / "prompts_and_classes.txt").write_text("hello"),
            "names no subjects or no prompts of both kinds",
        ),
        "folder": (lambda folder: shutil.rmtree(folder / "cat"), "there are no pictures in"),
        "picture": (lambda folder: (folder / "cat" / "00.jpg").write_text("x"), "00.jpg is missing or no picture"),
    }.values(),
)
def test_says_what_is_wrong_with_dreambench(tmp_path, capfd, spoil, sentence):
    write_small_dreambench(tmp_path / "data")
    spoil(tmp_path / "data")
    assert main(["benchmark", "dreambench", str(tmp_path / "data"), "--out", str(tmp_path / "out")]) == 2
    assert sentence in capfd.readouterr().err


# HumanBench


def test_every_pair_is_in_every_scene_with_every_seed(built):
    cases = read_benchmark(built["humanbench"]).cases
    assert len(cases) == 6 * 3 * 2
    assert Counter(case.part for case in cases) == dict.fromkeys(
        ("urban street", "lifestyle indoor", "minimalist studio"), 12
    )
    for case in cases:
        worn = {subject.name: subject.description for subject in case.subjects}
        assert all(words in case.prompt for words in worn.values())
        assert {"face", "bag"} < worn.keys() and ({"dress"} < worn.keys()) != ({"upper", "lower"} < worn.keys())
    by_group = {case.group: tuple(subject.references for subject in case.subjects) for case in cases}
    assert len(set(by_group.values())) == 6
    assert read_benchmark(built["humanbench"]).papers == "humanbench"


def test_pairs_are_the_papers_at_the_papers_sizes():
    """Table 5: 50 faces, 50 upper and 40 lower garments, 10 dresses, 20 bags -> 100 pairs, everything about equally often."""
    sizes = {"face": 50, "upper": 50, "lower": 40, "dress": 10, "bag": 20}
    items = {kind: [Item(kind, Path(f"{n}.png"), f"{kind} {n}") for n in range(count)] for kind, count in sizes.items()}
    outfits = draw_outfits(items, 100, 0)
    assert len(set(outfits)) == 100
    assert sum(outfit[1].kind == "dress" for outfit in outfits) == 17  # 10 of 60
    used = Counter((item.kind, item.path.name) for outfit in outfits for item in outfit)
    for kind, count in sizes.items():
        times = [used[kind, f"{number}.png"] for number in range(count)]
        assert min(times) >= 1 and max(times) - min(times) <= 2


def test_without_bags_it_is_table_6(datasets, tmp_path):
    cases = build("humanbench", datasets["humanbench"], tmp_path, "--pairs", "5", "--seeds", "4", "--without-bags")
    assert len(cases) == 5 * 3 * 4 and read_benchmark(tmp_path).papers == "humanbench-garments"
    assert not any("bag" in case.prompt for case in cases)


@pytest.mark.parametrize(
    ("spoil", "options", "sentence"),
    {
        "description": (
            lambda folder: (folder / "face" / "face1.txt").unlink(),
            (),
            "face1.png has no description; write it into face1.txt beside it, such as 'a young woman with short black hair'",
        ),
        "folder": (lambda folder: shutil.rmtree(folder / "bag"), (), "there are no pictures in"),
        "pairs": (
            lambda folder: None,
            ("--pairs", "200"),
            "100 different pairs of face + upper + lower + bag are wanted, there",
        ),
    }.values(),
)
def test_says_what_is_wrong_with_humanbench(tmp_path, capfd, spoil, options, sentence):
    write_small_humanbench(tmp_path / "data")
    spoil(tmp_path / "data")
    assert main(["benchmark", "humanbench", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *options]) == 2
    assert sentence in capfd.readouterr().err


# SeAl


def test_the_grid_is_every_appearance_with_every_structure_of_its_kind(built):
    cases = read_benchmark(built["seal"]).cases
    assert Counter(case.part for case in cases) == {
        **{"human, pose": 4, "human, canny": 2, "celebrity, pose": 2, "celebrity, canny": 1, "animal, pose": 1},
    }
    case = next(case for case in cases if case.key == "seal_human-alice_human-pose-sitting")
    assert case.prompt == "a woman in a red shirt sitting on a bench" and case.group == "human-alice"
    row = next(row for row in rows_of(built["seal"], "pairs") if row["#key"] == case.key)
    assert row["What the picture shows.text"] == "a woman in a red shirt" and row["Prompt.text"] == case.prompt
    assert row["Who.image"] == "../../references/human-alice.png"


def test_is_aligned_where_both_pictures_are_cut_out(datasets, built):
    cut_out = {}
    for path in datasets["seal"].rglob("*.png"):
        with Image.open(path) as picture:
            cut_out[path.stem] = picture.getchannel("A").getextrema()[0] == 0
    assert set(cut_out.values()) == {True, False}
    for row in rows_of(built["seal"], "pairs"):
        _seal, appearance, structure = row["#key"].split("_")
        expected = cut_out[appearance.split("-")[-1]] and cut_out[structure.split("-")[-1]]
        assert row["Anchor Align.enabled"] is expected


def test_the_structure_goes_through_anchor_align_to_the_controlnet(built):
    workflow = json.loads((built["seal"] / "queues/pairs/workflow.json").read_text(encoding="utf-8"))
    by_class = {node["class_type"]: (number, node["inputs"]) for number, node in workflow.items()}
    number, align = by_class["EnsembleAnchorAlign"]
    assert by_class["ControlNetApplyAdvanced"][1]["image"] == [number, 0]
    assert workflow[align["structure"][0]]["_meta"]["title"] == "Structure" and "structure_pose" not in align
    assert workflow[align["structure_mask"][0]]["inputs"]["mask"] == [align["structure"][0], 1]


def test_draws_from_the_grid(datasets, tmp_path, capfd):
    cases = build("seal", datasets["seal"], tmp_path / "some", "--count", "4")
    assert len(cases) == 4 == len({case.key for case in cases})
    assert main(["benchmark", "seal", str(datasets["seal"]), "--out", str(tmp_path / "more"), "--count", "11"]) == 2
    assert "the grid has 10 pairs, not 11; lower --count" in capfd.readouterr().err


def test_says_what_is_wrong_with_seal(tmp_path, capfd):
    assert main(["benchmark", "seal", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "there are no folders in" in capfd.readouterr().err
    draw_picture(tmp_path / "appearance" / "robot" / "r.png", (8, 8), 1).with_suffix(".txt").write_text("a robot")
    draw_picture(tmp_path / "structure" / "animal" / "pose" / "p.png", (8, 8), 1).with_suffix(".txt").write_text(
        "lying"
    )
    assert main(["benchmark", "seal", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "there are no structures for robot, nor for human" in capfd.readouterr().err
