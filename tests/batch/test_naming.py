"""What pictures are called; never outside the folder, never two the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyui_ensemble.batch.addresses import Target
from comfyui_ensemble.batch.declared import Declared
from comfyui_ensemble.batch.errors import BatchError
from comfyui_ensemble.batch.jobs import Column, Job, JobList
from comfyui_ensemble.batch.naming import job_names, numbered, slug

WORKFLOW = {
    "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "of the workflow"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 9, "cfg": 1.5}},
    "3": {"class_type": "LoadImage", "inputs": {"image": "bob.png"}},
}
COLUMNS = [
    Column("Prompt.text", Target("1", "Prompt", Declared("text", "STRING", {}))),
    Column("seed", Target("2", "Paint", Declared("seed", "INT", {}))),
    Column("Paint.cfg", Target("2", "Paint", Declared("cfg", "FLOAT", {}))),
    Column("Who.image", Target("3", "Who", Declared("image", "COMBO", {"image_upload": True}))),
    Column("cast", None),
    Column("#client", None),
]


def names(template: str, *cells: dict[str, Any]) -> list[str]:
    jobs = [Job(number, number + 1, row) for number, row in enumerate(cells, start=1)]
    return job_names(template, JobList(COLUMNS, jobs), WORKFLOW, "poster")


def test_fields():
    row = {"Prompt.text": "A Cat, 2 m: tall/../?", "seed": 5, "Who.image": "/pics/Alice B.jpg", "cast": "/casts/duo"}
    row |= {"#client": "ACME/Ltd."}
    template = (
        "{workflow}/{client}/{index:03d}_{text_slug}_{Prompt.text}_{seed:04d}_{cfg}_{image}_{Who.image_slug}_{cast}"
    )
    assert names(template, row) == [
        "poster/ACME_Ltd/001_a-cat-2-m-tall_A Cat, 2 m_ tall_..__0005_1.5_Alice B_alice-b_duo"
    ]
    assert names("{text_slug}-{image}-x{client}", {}) == ["of-the-workflow-bob-x"]


def test_slugs():
    assert slug("Ein Mädchen — São Paulo!") == "ein-madchen-sao-paulo"
    assert slug("猫と犬") == "猫と犬" and slug("!?") == "x"
    assert slug("word " * 40) == "-".join(["word"] * 12)
    assert len(slug("x" * 200)) == 60


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{indx}", "--name has no 'indx'; did you mean 'index'?"),
        ("{zzzz}", "--name has no 'zzzz'; there are"),
        ("{index", "cannot be read"),
        ("{text:04d}", "cannot write 'text' as '04d'"),
        ("../{index}", "which no file can have"),
        ("/tmp/{index}", "which no file can have"),
        ("a//{index}", "which no file can have"),
        ("{index}/", "which no file can have"),
        ("a\\{index}", "which no file can have"),
        (".{index}", "which no file can have"),
        ("con", "which no file can have"),
        ("{index:0300d}", "which no file can have"),
        ("_batch/{index}", "keeps for itself"),
        ("Manifest", "keeps for itself"),
        ("{seed}", "jobs 1 and 2 would both be saved as '9'; put {index} into --name"),
    ],
)
def test_says_what_is_wrong(template: str, sentence: str):
    with pytest.raises(BatchError) as raised:
        names(template, {}, {})
    assert sentence in str(raised.value)


def test_a_cell_never_makes_a_folder_or_leaves_one(tmp_path: Path):
    nasty = ["..", "../..", "/etc/passwd", "a/b", "\x00", "C:\\x", "nul", "~", "%2e%2e", "x" * 5000]
    for cell in nasty:
        (name,) = names("x{client}y", {"#client": cell})
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()


def test_large_and_small_letters_are_one_file_on_some_systems():
    with pytest.raises(BatchError, match="would both be saved"):
        names("{text}", {"Prompt.text": "Cat"}, {"Prompt.text": "cat"})
    with pytest.raises(BatchError, match="is what a second picture of job 1 would be called"):
        names("{text}", {"Prompt.text": "cat"}, {"Prompt.text": "cat_p2"})
    assert [numbered("cat", place) for place in range(3)] == ["cat", "cat_p2", "cat_p3"]
