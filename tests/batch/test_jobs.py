"""Jobs files, grids, seeds and cast folders -> jobs; what is wrong with them is said before the first one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comfyui_ensemble.batch.addresses import Addresses
from comfyui_ensemble.batch.errors import BatchError
from comfyui_ensemble.batch.jobs import Job, build_jobs, parse_grid, seed_drawer
from comfyui_ensemble.batch.jobs_file import Row, read_jobs
from devtools.workflow_sources import WORKFLOWS

WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "ensemble_alice.png"}, "_meta": {"title": "Picture"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}, "_meta": {"title": "Prompt"}},
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "steps": 4, "cfg": 1.0, "sampler_name": "euler"},
        "_meta": {"title": "Paint"},
    },
    "4": {"class_type": "PreviewAny", "inputs": {}, "_meta": {"title": "Look"}},
    "5": {"class_type": "ImageStitch", "inputs": {"match_image_size": True}, "_meta": {"title": "Join"}},
}


# The file


def rows(tmp_path: Path, name: str, content: str | bytes) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_jobs(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_reads_csv_of_any_spreadsheet(tmp_path: Path, delimiter: str):
    text = "\ufeff" + "\n".join(
        delimiter.join(cells)
        for cells in (["text", " seed "], ['"a, ""red"" cat;\non\ttwo\u2028lines"', "1"], ["", ""], ["b", ""])
    )
    found = rows(tmp_path, "jobs.csv", text)
    assert [row.cells for row in found] == [{"text": 'a, "red" cat;\non\ttwo\u2028lines', "seed": "1"}, {"text": "b"}]
    assert [row.line for row in found] == [3, 5]


def test_reads_jsonl(tmp_path: Path):
    found = rows(tmp_path, "jobs.jsonl", '{"text": "", "seed": 3}\n\n{"seed": null, "text": "ü"}\n')
    assert [row.cells for row in found] == [{"text": "", "seed": 3}, {"text": "ü"}]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("jobs.csv", "", "column 1 of jobs.csv has no heading|jobs.csv is empty"),
        ("jobs.csv", "text,seed\n\n", "jobs.csv is empty; write one row"),
        ("jobs.jsonl", "\n", "jobs.jsonl is empty"),
        ("jobs.csv", "text,,seed\na,b,c", "column 2 of jobs.csv has no heading"),
        ("jobs.csv", "text,text\na,b", "two columns 'text'"),
        ("jobs.csv", "text,seed\na,b,c", "line 2 of jobs.csv has 3 cells for 2 columns; put quotes"),
        ("jobs.csv", 'text\n"a', "line 2 of jobs.csv is no CSV"),
        ("jobs.csv", "text\n\xe9t\xe9".encode("latin-1"), "is not UTF-8 text; save it as CSV UTF-8"),
        ("jobs.csv", b"\x00\x01,\x02\n" + b"\xff" * 9, "is not UTF-8"),
        ("jobs.jsonl", '{"a": 1}\n[1]', "line 2 of jobs.jsonl is no JSON object"),
        ("jobs.jsonl", "[" * 100_000, "line 1 of jobs.jsonl is no JSON object"),
        ("jobs.xlsx", "", "neither .csv nor .jsonl"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: str | bytes, sentence: str):
    with pytest.raises(BatchError, match=sentence):
        rows(tmp_path, name, content)
    with pytest.raises(BatchError, match="there is no jobs file"):
        read_jobs(tmp_path / "missing.csv")


# The jobs


@pytest.fixture(scope="module")
def addresses(object_info) -> Addresses:
    return Addresses(WORKFLOW, object_info)


def build(addresses: Addresses, folder: Path, *cells: dict[str, Any], grids: tuple[str, ...] = ()) -> list[Job]:
    found = [Row(number + 2, row) for number, row in enumerate(cells)]
    return build_jobs(found, [parse_grid(grid) for grid in grids], addresses, folder, seed_drawer("s")).jobs


def test_a_cell_becomes_a_value_of_its_input(addresses: Addresses, tmp_path: Path):
    (job,) = build(
        addresses,
        tmp_path,
        {
            "text": "1..4",
            "seed": " 7 ",
            "cfg": "2",
            "sampler_name": "heun",
            "match_image_size": "No",
            "#client": "ACME",
        },
    )
    expected = {("2", "text"): "1..4", ("3", "seed"): 7, ("3", "cfg"): 2.0, ("3", "sampler_name"): "heun"}
    assert job.values == expected | {("5", "match_image_size"): False}
    assert job.cells["#client"] == "ACME" and job.line == 2
    prompt = job.prompt(WORKFLOW, {})
    assert prompt["3"]["inputs"] == WORKFLOW["3"]["inputs"] | {"seed": 7, "cfg": 2.0, "sampler_name": "heun"}
    assert WORKFLOW["3"]["inputs"]["seed"] == 1


def test_a_cell_can_be_several_jobs_and_grids_multiply(addresses: Addresses, tmp_path: Path):
    jobs = build(
        addresses,
        tmp_path,
        {"seed": "3..1", "steps": [5, "6..7"]},
        {"text": "b"},
        grids=("cfg=1,2.5", "sampler_name=euler,heun"),
    )
    assert [job.number for job in jobs] == list(range(1, 3 * 3 * 4 + 4 + 1))
    first = [(job.cells["seed"], job.cells["steps"], job.cells["cfg"], job.cells["sampler_name"]) for job in jobs[:36]]
    assert first == [
        (seed, steps, cfg, name)
        for seed in (3, 2, 1)
        for steps in (5, 6, 7)
        for cfg in (1, 2.5)
        for name in ("euler", "heun")
    ]
    assert [job.values[("3", "cfg")] for job in jobs[36:]] == [1.0, 1.0, 2.5, 2.5]
    assert parse_grid('Prompt.text="a, b",c').cells == ["a, b", "c"]


def test_random_seeds_are_always_the_same_for_a_batch(addresses: Addresses, tmp_path: Path):
    first = build(addresses, tmp_path, {"seed": "random*3"}, {"seed": "random"})
    again = build(addresses, tmp_path, {"seed": "random*3"}, {"seed": "random"})
    seeds = [job.values[("3", "seed")] for job in first]
    assert seeds == [job.values[("3", "seed")] for job in again] == [job.cells["seed"] for job in first]
    assert len(set(seeds)) == 4 and all(0 <= seed < 2**48 for seed in seeds)
    steps = [job.values[("3", "steps")] for job in build(addresses, tmp_path, {"steps": "random*50"})]
    assert min(steps) >= 1 and max(steps) <= 10000


def test_a_file_of_this_machine_comes_before_one_of_the_server(addresses: Addresses, tmp_path: Path):
    (job,) = build(addresses, tmp_path, {"image": "ensemble_alice.png"})
    assert job.values == {("1", "image"): "ensemble_alice.png"} and not job.pictures
    (tmp_path / "ensemble_alice.png").write_bytes(b"x")
    (job,) = build(addresses, tmp_path, {"Picture.image": "ensemble_alice.png"})
    assert job.pictures == {("1", "image"): tmp_path / "ensemble_alice.png"} and not job.values


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ({"steps": "many"}, "line 2, 'steps': 'many' is no whole number"),
        ({"steps": "2.5"}, "'2.5' is no whole number"),
        ({"steps": True}, "'True' is no whole number"),
        ({"steps": 0}, "0 is out of range; it must be at least 1 and at most 10000"),
        ({"steps": "9990..10010"}, "10001 is out of range"),
        ({"steps": "1..100000000"}, "it stands for 100000000 jobs"),
        ({"cfg": "0,5"}, "'0,5' is no number; write a point instead of the comma"),
        ({"cfg": "nan"}, "'nan' is no number"),
        ({"cfg": 1e9}, "out of range"),
        ({"sampler_name": "eular"}, "'eular' is no choice here; did you mean 'euler'?"),
        ({"match_image_size": "perhaps"}, "'perhaps' is neither true nor false"),
        ({"text": {"a": 1}}, "is no single value"),
        ({"text": []}, "it is an empty list"),
        ({"seed": [1, [2]]}, "is no single value"),
        ({"image": "bob.png"}, "there is no file .*bob.png, and none of that name on the server"),
        ({"text": "a", "Prompt.text": "b"}, "'text' and 'Prompt.text' fill the same input"),
        ({"cast": "."}, "the cast folder .* holds 0 pictures, the workflow has 1 subject"),
        ({"cast": "nowhere"}, "there is no cast folder"),
        ({"cast": ".", "image": "ensemble_alice.png"}, "'cast' and 'image' fill the same input"),
    ],
)
def test_says_what_is_wrong_with_a_cell(addresses: Addresses, tmp_path: Path, cells: dict[str, Any], sentence: str):
    with pytest.raises(BatchError, match=sentence):
        build(addresses, tmp_path, cells)


@pytest.mark.parametrize("grid", ["steps", "steps=", "=1,2", "steps= , "])
def test_says_what_is_wrong_with_a_grid(grid: str):
    with pytest.raises(BatchError, match="is not of the form"):
        parse_grid(grid)


def test_a_grid_and_a_column_cannot_be_one(addresses: Addresses, tmp_path: Path):
    with pytest.raises(BatchError, match="'steps' is a column and a grid"):
        build(addresses, tmp_path, {"steps": 3}, grids=("steps=1,2",))
    with pytest.raises(BatchError, match="--grid, 'steps': '1x' is no whole number"):
        build(addresses, tmp_path, {"seed": 3}, grids=("steps=1x",))


# Casts


def test_a_cast_folder_fills_the_subjects_in_the_order_of_the_cast(object_info, tmp_path: Path):
    workflow = json.loads((WORKFLOWS / "api" / "astra_multi_subject.json").read_text(encoding="utf-8"))
    for name in ("Zoe.png", "anna.jpg", "ben.WEBP", "readme.md", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "anna.txt").write_text("a woman in green\n", encoding="utf-8")
    (job,) = build(Addresses(workflow, object_info), tmp_path, {"cast": str(tmp_path)})
    prompt = job.prompt(workflow, {slot: path.name for slot, path in job.pictures.items()})
    last = next(node for node in prompt.values() if node["class_type"] == "EnsembleCastSheet")["inputs"]["cast"]
    found = []
    while last is not None:  # from the end of the chain to its beginning
        subject = prompt[last[0]]["inputs"]
        found.insert(0, (subject["name"], prompt[subject["image"][0]]["inputs"]["image"], subject["description"]))
        last = subject.get("cast")
    before = [node["inputs"]["description"] for node in workflow.values() if node["class_type"] == "EnsembleSubject"]
    assert found == [
        ("anna", "anna.jpg", "a woman in green"),
        ("ben", "ben.WEBP", before[1]),
        ("Zoe", "Zoe.png", before[2]),
    ]


def test_subjects_that_share_a_picture_take_no_cast_folder(object_info, tmp_path: Path):
    subject = {"class_type": "EnsembleSubject", "inputs": {"image": ["1", 0], "name": "a"}}
    workflow = {"1": WORKFLOW["1"], "2": subject, "3": subject}
    with pytest.raises(BatchError, match="two Subject nodes share one Load Image node"):
        build(Addresses(workflow, object_info), tmp_path, {"cast": "."})
    with pytest.raises(BatchError, match="'EnsembleSubject' comes from no Load Image node"):
        build(Addresses({"2": {**subject, "inputs": {}}}, object_info), tmp_path, {"cast": "."})
    with pytest.raises(BatchError, match="no Subject or Load Image node"):
        build(Addresses({"4": WORKFLOW["4"]}, object_info), tmp_path, {"cast": "."})
