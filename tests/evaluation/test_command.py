"""From a dataset to a report, through a real server; and one sentence for everything that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from comfyui_ensemble.batch.command import main as batch
from comfyui_ensemble.evaluation.command import main
from comfyui_ensemble.evaluation.measured import read_measured
from comfyui_ensemble.models_info.registry import CLIP_VIT_B_32, DINO_VIT_S_16, GME_2B
from devtools.server import ComfyServer
from devtools.small_benchmarks import draw_picture, write_small_coco, write_small_humanbench, write_small_seal

FEW_STEPS = ("--grid", "KSampler.steps=1")


def make(server: ComfyServer, benchmark: Path, pictures: Path) -> list[str]:
    """Every queue through `batch`; the folders."""
    folders = []
    for queue in sorted((benchmark / "queues").iterdir()):
        folder = pictures / queue.name
        arguments = [str(queue / "workflow.json"), str(queue / "jobs.jsonl"), "--name", "{key}", "--out", str(folder)]
        assert batch([*arguments, *FEW_STEPS, "--server", server.url]) == 0
        folders.append(str(folder))
    return folders


def keep_poses(benchmark: Path, folder: Path) -> Path:
    """The poses that were asked for, as if they had been found in the pictures."""
    folder.mkdir()
    for line in (benchmark / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        (folder / f"{case['key']}_keypoints.json").write_text(json.dumps(case["pose"]), encoding="utf-8")
    return folder


def test_coco_from_the_dataset_to_the_report(server: ComfyServer, encoders: Path, tmp_path: Path, capfd):
    write_small_coco(tmp_path / "coco", 3)
    bench, results = tmp_path / "bench", tmp_path / "results"
    options = ["--count", "3", "--min-side", "20"]
    assert main(["benchmark", "coco-pose", str(tmp_path / "coco"), "--out", str(bench), *options]) == 0
    folders = make(server, bench, tmp_path / "pictures")
    for line in (bench / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        name = f"{len(case['subjects'])}_subject{'s' * (len(case['subjects']) > 1)}"
        with Image.open(tmp_path / "pictures" / name / f"{case['key']}.png") as picture:
            assert picture.size == (case["width"], case["height"])
    poses = keep_poses(bench, tmp_path / "poses")
    assert main(["measure", str(bench), *folders, "--out", str(results), "--poses", str(poses)]) == 0
    found, _files, context = read_measured(results)
    counts = {metric: sum(each.metric == metric for each in found) for metric in ("OKS", "CLIP-I", "DINO", "CLIP-T")}
    assert counts == {"OKS": 6, "CLIP-I": 6, "DINO": 6, "CLIP-T": 3}  # 1 + 2 + 3 people in 3 pictures
    assert all(each.score is not None for each in found)
    assert {each.score for each in found if each.metric == "OKS"} == {1.0}
    assert context.benchmark == "coco-pose"
    capfd.readouterr()
    assert main(["report", str(results), "--name", "tiny"]) == 0
    assert "The report is in" in capfd.readouterr().err
    text = (results / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Beside ASTRA, Table 3" in text and "| **tiny** | **1.0000 \\[1.0000, 1.0000\\]** |" in text
    page = (results / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 3 and page.count("no picture") == 0
    assert page.count("data:image/") == 1 + 3 + 6  # the plots, the pictures, their references


def test_seal_from_the_dataset_to_the_report(server: ComfyServer, encoders: Path, tmp_path: Path):
    """Pairs that AnchorAlign aligns and pairs that it leaves alone."""
    write_small_seal(tmp_path / "seal")
    bench, results = tmp_path / "bench", tmp_path / "results"
    assert main(["benchmark", "seal", str(tmp_path / "seal"), "--out", str(bench), "--count", "4"]) == 0
    rows = (bench / "queues/pairs/jobs.jsonl").read_text(encoding="utf-8")
    assert '"Anchor Align.enabled": true' in rows and '"Anchor Align.enabled": false' in rows
    folders = make(server, bench, tmp_path / "pictures")
    assert main(["measure", str(bench), *folders, "--out", str(results)]) == 0
    found, _files, _context = read_measured(results)
    assert {each.metric for each in found} == {"CLIP-T", "DINO"} and len(found) == 8
    assert main(["report", str(results)]) == 0
    assert "(human, pose)" in (results / "report" / "report.md").read_text(encoding="utf-8")


def test_humanbench_through_a_server(server: ComfyServer, tmp_path: Path):
    """Three and four references, among them a dress, in one benchmark."""
    write_small_humanbench(tmp_path / "human", each=2)
    bench = tmp_path / "bench"
    options = ["--pairs", "2", "--seeds", "1"]
    assert main(["benchmark", "humanbench", str(tmp_path / "human"), "--out", str(bench), *options]) == 0
    folders = make(server, bench, tmp_path / "pictures")
    assert len(folders) == 2
    assert sum(len(list(Path(folder).glob("humanbench_pair00*.png"))) for folder in folders) == 6


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
