"""From a dataset to a report, through a real server; and one sentence for everything that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from comfyui_ensemble.batch.command import main as batch
from comfyui_ensemble.evaluation.cases import Case, read_cases
from comfyui_ensemble.evaluation.command import main
from comfyui_ensemble.evaluation.measured import read_measured
from comfyui_ensemble.models_info.registry import CLIP_VIT_B_32, DINO_VIT_S_16, GME_2B
from devtools.server import ComfyServer
from devtools.small_benchmarks import (
    draw_picture,
    write_small_coco,
    write_small_dreambench,
    write_small_humanbench,
    write_small_seal,
)

FEW_STEPS = ("--grid", "KSampler.steps=1")


@dataclass(frozen=True)
class Miniature:
    """A benchmark's dataset in miniature, and what is to come of it.

    Attributes:
        write: draws the dataset.
        jobs: of every queue that are made; the benchmark's other pictures stay unmade.
        measuring: more for `measure`.
        measured: metric -> how many scores.
        references: how many the page shows.
        beside: a paper's table that stands in the report.
        reported: what else stands there.
        queued: what stands in the jobs.
    """

    write: Callable[[Path], Path]
    building: tuple[str, ...]
    jobs: int
    measuring: tuple[str, ...]
    measured: dict[str, int]
    references: int
    beside: str
    reported: tuple[str, ...] = ()
    queued: tuple[str, ...] = ()


MINIATURES = {
    "coco-pose": Miniature(  # 1 + 2 + 3 people in 3 pictures, each of which is a queue
        partial(write_small_coco, pictures=3),
        ("--count", "3", "--min-side", "20"),
        1,
        ("--poses", "{poses}"),
        {"OKS": 6, "CLIP-I": 6, "DINO": 6, "CLIP-T": 3},
        6,
        "ASTRA, Table 3",
        ("| **tiny** | **1.0000 \\[1.0000, 1.0000\\]** |",),
    ),
    "dreambench": Miniature(
        write_small_dreambench, ("--seeds", "1"), 2, (), {"CLIP-I": 2, "DINO": 2, "CLIP-T": 2}, 2, "ASTRA, Table 1"
    ),
    "dreambench-pairs": Miniature(
        write_small_dreambench,
        ("--seeds", "1", "--pairs", "1"),
        2,
        (),
        {"CLIP-I": 4, "DINO": 4, "CLIP-T": 2},
        4,
        "ASTRA, Table 2",
    ),
    "humanbench": Miniature(  # a queue of four references, and one of three, with a dress
        partial(write_small_humanbench, each=2),
        ("--pairs", "2", "--seeds", "1"),
        3,
        ("--metrics", "DINOv2", "GME-T", "FashionCLIP-T", "--model", "FashionCLIP-T={clip}"),
        {"DINOv2": 21, "GME-T": 6, "FashionCLIP-T": 15},
        21,
        "One-for-All, Table 1",
    ),
    "seal": Miniature(  # pairs that AnchorAlign aligns and pairs that it leaves alone
        write_small_seal,
        ("--count", "4"),
        4,
        (),
        {"CLIP-T": 4, "DINO": 4},
        4,
        "SeAl, main results, Human-Pose",
        ("(human, pose)",),
        ('"Anchor Align.enabled": true', '"Anchor Align.enabled": false'),
    ),
}


def make(server: ComfyServer, benchmark: Path, pictures: Path, jobs: int) -> list[str]:
    """The first so many jobs of every queue through `batch`; the folders."""
    folders = []
    for queue in sorted((benchmark / "queues").iterdir()):
        folder = pictures / queue.name
        lines = (queue / "jobs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (queue / "jobs.jsonl").write_text("".join(lines[:jobs]), encoding="utf-8")
        arguments = [str(queue / "workflow.json"), str(queue / "jobs.jsonl"), "--name", "{key}", "--out", str(folder)]
        assert batch([*arguments, *FEW_STEPS, "--server", server.url]) == 0
        folders.append(str(folder))
    return folders


def keep_poses(cases: Sequence[Case], folder: Path) -> Path:
    """The poses that were asked for, as if they had been found in the pictures."""
    folder.mkdir()
    for case in cases:
        (folder / f"{case.key}_keypoints.json").write_text(json.dumps(case.pose), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", MINIATURES)
def test_from_the_dataset_to_the_report(server: ComfyServer, encoders: Path, tmp_path: Path, capfd, name: str):
    """Every benchmark: built, pictures made by a server, measured, reported."""
    small = MINIATURES[name]
    small.write(tmp_path / "dataset")
    bench, results = tmp_path / "bench", tmp_path / "results"
    assert main(["benchmark", name, str(tmp_path / "dataset"), "--out", str(bench), *small.building]) == 0
    cases = read_cases(bench / "manifest.jsonl")
    jobs = "".join(path.read_text(encoding="utf-8") for path in bench.glob("queues/*/jobs.jsonl"))
    assert all(text in jobs for text in small.queued)
    folders = make(server, bench, tmp_path / "pictures", small.jobs)
    made = {path.stem: path for folder in folders for path in Path(folder).glob("*.png")}
    assert len(made) == small.jobs * len(folders) and made.keys() <= {case.key for case in cases}
    sizes = {case.key: (case.width, case.height) for case in cases if case.width}
    for key, path in made.items():
        with Image.open(path) as picture:
            assert picture.size == sizes.get(key, picture.size)
    known = {"poses": keep_poses(cases, tmp_path / "poses"), "clip": encoders / "openai" / CLIP_VIT_B_32.name}
    measuring = [argument.format(**known) for argument in small.measuring]
    assert main(["measure", str(bench), *folders, "--out", str(results), *measuring]) == 0
    said = capfd.readouterr().err
    found, _files, context = read_measured(results)
    assert context.benchmark == {"dreambench-pairs": "dreambench-multi"}.get(
        name, name
    )  # as the papers' tables have it
    assert Counter(each.metric for each in found if each.score is not None) == small.measured
    assert {each.note for each in found if each.score is None} <= {"the picture was not made"}
    assert {each.score for each in found if each.metric == "OKS"} <= {1.0}
    assert ("COCO's AP: 1.0000, AP50: 1.0000" in said) == ("OKS" in small.measured)
    assert main(["report", str(results), "--name", "tiny"]) == 0
    assert "The report is in" in capfd.readouterr().err
    text = (results / "report" / "report.md").read_text(encoding="utf-8")
    assert f"## Beside {small.beside}" in text and "| **tiny** | **" in text
    assert all(words in text for words in small.reported)
    assert ("| AP | 1.0000 | 6 |  |" in text) == ("OKS" in small.measured)
    page = (results / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == len(cases) and page.count("no picture") == len(cases) - len(made)
    assert page.count("data:image/") == 1 + len(made) + small.references  # 1: the plots


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    for number in range(3):
        path = draw_picture(tmp_path / "shots" / f"shot{number}.png", (40, 30), number)
        path.with_suffix(".txt").write_text(f"a blob number {number}", encoding="utf-8")
    draw_picture(tmp_path / "who.png", (20, 20), 1)
    return tmp_path / "shots"


def test_a_folder_of_pictures_is_measured_and_goes_on(shots: Path, tmp_path: Path, encoders: Path, capfd):
    arguments = ["measure", str(shots), "--out", str(tmp_path / "out"), "--reference", f"who={tmp_path / 'who.png'}"]
    assert main([*arguments, "--metrics", "CLIP-I", "CLIP-T"]) == 0
    said = capfd.readouterr().err
    assert "CLIP-I: 3/3" in said and "6 measurements are in" in said
    first = read_measured(tmp_path / "out")[0]
    assert main([*arguments, "--metrics", "CLIP-I", "CLIP-T", "DINO"]) == 0
    said = capfd.readouterr().err
    assert "DINO: 3/3" in said and "CLIP-I: 3/3" not in said
    assert read_measured(tmp_path / "out")[0][:6] == first
    assert main(["report", str(tmp_path / "out"), "--title", "Blobs", "--benchmark", "dreambench"]) == 0
    text = (tmp_path / "out" / "report" / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Blobs\n") and "Beside ASTRA, Table 1" in text


def test_several_results_are_one_report(shots: Path, tmp_path: Path, encoders: Path):
    for metric in ("CLIP-T", "GME-T"):
        assert main(["measure", str(shots), "--out", str(tmp_path / metric), "--metrics", metric]) == 0
    both = [str(tmp_path / metric) for metric in ("CLIP-T", "GME-T")]
    assert main(["report", *both, "--out", str(tmp_path / "report")]) == 0
    data = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert [each["metric"] for each in data["summaries"]] == ["CLIP-T", "GME-T"]


def test_a_metric_can_have_another_model(shots: Path, tmp_path: Path, encoders: Path):
    scores = []
    for name in (CLIP_VIT_B_32.name, GME_2B.name):
        folder = next(path for path in encoders.rglob(name))
        arguments = ["measure", str(shots), "--out", str(tmp_path / name), "--metrics", "CLIP-T"]
        assert main([*arguments, "--model", f"CLIP-T={folder}"]) == 0
        scores.append([each.score for each in read_measured(tmp_path / name)[0]])
    assert scores[0] != scores[1]


def test_a_manifests_masks_are_read(shots: Path, tmp_path: Path, encoders: Path, capfd):
    """A bad one is a reason in the results; one that is not there, or leaves the folder, is said at once."""
    subject = {"name": "who", "description": "", "category": "other", "references": ["shot1.png"]}
    lines = [
        {"key": name, "prompt": "", "picture": "shot0.png", "subjects": [{**subject, "mask": f"{name}.png"}]}
        for name in ("good", "empty", "small")
    ]
    for name, size, box in (
        ("good", (40, 30), (5, 5, 20, 20)),
        ("empty", (40, 30), ()),
        ("small", (20, 15), (0, 0, 9, 9)),
    ):
        mask = Image.new("L", size)
        mask.paste(255, box or (0, 0, 0, 0))
        mask.save(shots / f"{name}.png")
    (shots / "list.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    arguments = ["measure", str(shots / "list.jsonl"), "--out", str(tmp_path / "out"), "--metrics", "CLIP-I"]
    assert main(arguments) == 0
    found = {each.key: (each.score is not None, each.note) for each in read_measured(tmp_path / "out")[0]}
    assert found == {
        "good": (True, ""),
        "empty": (False, "the mask empty.png is empty; paint or find the subject in it"),
        "small": (False, "the mask small.png is 20 x 15, its picture 40 x 30; make the mask of this picture"),
    }
    for name, sentence in (("no.png", "there is no file"), ("../who.png", "the file name '../who.png' leaves")):
        lines[0]["subjects"][0]["mask"] = name
        (shots / "list.jsonl").write_text(json.dumps(lines[0]), encoding="utf-8")
        capfd.readouterr()
        assert main(arguments) == 2
        said = capfd.readouterr().err
        assert sentence in said and said.count("\n") == 1


def test_prompts_are_utf_8(shots: Path, tmp_path: Path, encoders: Path, capfd):
    arguments = ["measure", str(shots), "--out", str(tmp_path / "out"), "--metrics", "CLIP-T"]
    (shots / "shot1.txt").write_text("Zoë", encoding="utf-8-sig")
    assert main(arguments) == 0
    assert [each.reference for each in read_measured(tmp_path / "out")[0]][1] == "Zoë"
    (shots / "shot1.txt").write_bytes("Zoë".encode("latin-1"))
    capfd.readouterr()
    assert main(arguments) == 2
    assert capfd.readouterr().err == f"{shots / 'shot1.txt'} is not UTF-8; save it as UTF-8 text.\n"


def spoilt_benchmark(folder: Path) -> list[str]:
    (folder / "bench").mkdir()
    (folder / "bench" / "benchmark.json").write_text("{}")
    return ["measure", str(folder / "bench"), str(folder), "--out", str(folder / "out")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    {
        "metric": (["--metrics", "CLIP"], "there is no metric 'CLIP'; choose of OKS, CLIP-I"),
        "none": ([], "--metrics is missing; choose of OKS, CLIP-I"),
        "model": (["--metrics", "CLIP-I", "--model", "CLIP=x"], "--model 'CLIP=x' is not a new name"),
        "folder": (["--metrics", "CLIP-I", "--model", "CLIP-I=/nowhere"], "there is no folder nowhere"),
        "weights": (
            ["--metrics", "FashionCLIP-I"],
            "fashion-clip is missing: it is needed for measuring FashionCLIP-I",
        ),
        "text": (
            ["--metrics", "CLIP-T", "--model", "CLIP-T={dino}"],
            "reads no texts, so that CLIP-T cannot be measured",
        ),
        "poses": (["--metrics", "OKS", "--poses", "/nowhere"], "--poses: there is no folder /nowhere"),
        "reference": (["--metrics", "CLIP-I", "--reference", "who"], "--reference 'who' is not a new name"),
        "detector": (["--metrics", "CLIP-I", "--detector", "{dino}"], "choose a GroundingDINO, OWL-ViT or OWLv2"),
        "models": (["--metrics", "CLIP-I", "--models-dir", "/nowhere"], "--models-dir: there is no folder /nowhere"),
    }.values(),
)
def test_says_what_is_wrong_with_measuring(
    shots: Path, tmp_path: Path, encoders: Path, capfd, arguments: list[str], sentence: str
):
    dino = str(encoders / DINO_VIT_S_16.name)
    given = [argument.replace("{dino}", dino) for argument in arguments]
    assert main(["measure", str(shots), "--out", str(tmp_path / "out"), *given]) == 2
    said = capfd.readouterr().err
    assert (
        sentence in said
        and "Traceback" not in said
        and said.rstrip().endswith(".")
        and not said.rstrip().endswith("..")
    )


def test_says_what_is_wrong_with_a_benchmarks_pictures(tmp_path: Path, encoders: Path, capfd):
    write_small_coco(tmp_path / "coco", 3)
    bench = tmp_path / "bench"
    options = ["--count", "3", "--min-side", "20"]
    assert main(["benchmark", "coco-pose", str(tmp_path / "coco"), "--out", str(bench), *options]) == 0
    measure = ["measure", str(bench)]
    out = ["--out", str(tmp_path / "out"), "--metrics", "CLIP-T"]
    capfd.readouterr()
    for folders, sentence in (
        ([], "the benchmark's pictures are missing; give the folders that `batch` wrote them to"),
        ([str(tmp_path / "nowhere")], "there are no pictures in"),
        ([str(tmp_path / "coco" / "val2017")], "is of this benchmark; give the folder that `batch` wrote"),
    ):
        assert main([*measure, *folders, *out]) == 2
        assert sentence in capfd.readouterr().err
    key = "coco_val2017_000000000001"
    for name in ("one", "two"):
        draw_picture(tmp_path / name / f"{key}.png", (40, 30), 1)
    assert main([*measure, str(tmp_path / "one"), str(tmp_path / "two"), *out]) == 2
    assert f"'{key}' has two pictures" in capfd.readouterr().err
    manifest = tmp_path / "one" / "manifest.jsonl"
    manifest.write_bytes("Zoë".encode("latin-1"))
    assert main([*measure, str(tmp_path / "one"), *out]) == 2
    assert f"{manifest} is not UTF-8; save it as UTF-8 text." in capfd.readouterr().err
    manifest.unlink()
    assert main([*measure, str(tmp_path / "one"), *out]) == 0
    said = capfd.readouterr().err
    assert "2 of 3 pictures have not been made yet." in said and "(2 could not be measured)" in said
    assert main(spoilt_benchmark(tmp_path / "one")) == 2
    assert "holds no benchmark; give the folder that `benchmark` wrote" in capfd.readouterr().err


def test_says_what_is_wrong_with_results(tmp_path: Path, capfd):
    (tmp_path / "results.jsonl").write_text('{"metric": "OKS"}\n')
    assert main(["report", str(tmp_path)]) == 2
    assert (
        "results.jsonl: line 1 of the results is not a measurement: it lacks metric, score or key."
        in capfd.readouterr().err
    )
    (tmp_path / "results.jsonl").write_text("\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "there are no measurements; measure something first." in capfd.readouterr().err


def test_numbers_are_checked(tmp_path: Path, capfd):
    for option in ("0", "-3", "many"):
        with pytest.raises(SystemExit) as raised:
            main(["benchmark", "coco-pose", str(tmp_path), "--out", str(tmp_path / "out"), "--count", option])
        assert raised.value.code == 2 and "is no whole number above 0" in capfd.readouterr().err


def test_answers_as_a_module_of_its_own(shots: Path, tmp_path: Path):
    """Where nobody has told the host of its devices; benchmark and report need no host at all."""
    command = [sys.executable, "-m", "comfyui_ensemble.evaluation"]
    arguments = [
        "measure",
        str(shots),
        "--out",
        str(tmp_path / "out"),
        "--metrics",
        "CLIP-I",
        "--models-dir",
        str(tmp_path),
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "clip-vit-base-patch32 is missing" in done.stderr and "Traceback" not in done.stderr
    light = "from comfyui_ensemble.evaluation.command import main; main(['report', '/nowhere'])"
    light = f"import sys; {light}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
