"""Rows of every family from end to end, with random tiny models: trained, drawn, measured, kept, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.training.ablations import budget, command
from comfyui_ensemble.training.ablations.budget import Cost, share_out
from comfyui_ensemble.training.ablations.models import USED, Models
from comfyui_ensemble.training.ablations.results import Plan, Store
from comfyui_ensemble.training.ablations.table import ABLATIONS, Ablation, find_ablation
from comfyui_ensemble.training.errors import TrainingError

# Of every table: two rows that differ in what the mechanism does.
PAIRS = {
    "astra": ("ASTRA", "without DSM"),
    "one-for-all": ("One-for-All", "index embeddings"),
    "anystory": ("AnyStory", "without router"),
    "seal": ("SeAl", "the base model alone"),
}
BRIEF = ["--seeds", "1", "--scenes", "2", "--pictures", "4", "--resolution", "64"]
BRIEF += ["--reference-resolution", "32", "--draw-steps", "2"]


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As the command runs."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def pair(name: str) -> Ablation:
    """A table of two rows."""
    ablation, names = find_ablation(name), PAIRS[name]
    claims = tuple(claim for claim in ablation.claims if {claim.winner, claim.loser} <= set(names))
    return replace(ablation, rows=tuple(ablation.row(each) for each in names), claims=claims)


@pytest.fixture(autouse=True)
def _brief_rehearsals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "REHEARSED", 2)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_ablation", pair)


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_pair_of_rows_from_end_to_end(name: str, pairs, tiny_models: Path, tmp_path: Path, capsys) -> None:
    out, docs = tmp_path / "out", tmp_path / "doc.md"
    docs.write_text(f"<!-- ablation {name} -->\n<!-- end of ablation {name} -->\n", encoding="utf-8")
    arguments = [name, "--out", str(out), "--models-dir", str(tiny_models), "--steps", "2", *BRIEF, "--docs", str(docs)]
    assert command.main(arguments) == 0
    ablation = pair(name)
    results = json.loads((out / name / "results.json").read_text(encoding="utf-8"))
    assert list(results["rows"]) == sorted(row.name for row in ablation.rows) and results["random"]
    for scenes in (results["rows"][row.name][0] for row in ablation.rows):
        assert len(scenes) == 2 and set(ablation.measures) - {"routing_iou"} <= set(scenes[0])
    assert ("routing_iou" in results["rows"][ablation.rows[0].name][0][0]) == (name == "anystory")
    first, second = (Store(out / name).picture(row, 0, 1) for row in ablation.rows)
    assert not np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))
    assert ablation.title in docs.read_text(encoding="utf-8")
    assert Image.open(tmp_path / f"ablation_{name.replace('-', '_')}.png").width > 4 * 64
    assert not list(out.rglob("checkpoints"))
    said = capsys.readouterr().err
    assert "about" in said.splitlines()[0] and "these numbers mean nothing" in said
    # The same command again has nothing left to do, and says the same.
    written = {path: path.stat().st_mtime_ns for path in out.rglob("seed-0.json")}
    assert command.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("seed-0.json")} == written
    assert "step" not in capsys.readouterr().err.split("##")[0]


SCRIPT = """
import sys
import comfyui_ensemble.training
from dataclasses import replace
from comfyui_ensemble.training.ablations import budget, command
budget.REHEARSED, full = 2, command.find_ablation
command.find_ablation = lambda name: replace(full(name), rows=full(name).rows[:1], claims=())
sys.exit(command.main(sys.argv[1:]))
"""


def first_row(name: str) -> Ablation:
    """As in the script above."""
    ablation = find_ablation(name)
    return replace(ablation, rows=ablation.rows[:1], claims=())


def test_a_killed_command_goes_on_to_the_same_results(tiny_models: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Killed while it trains, behind the first checkpoint, and once more while it draws."""
    monkeypatch.setattr(command, "find_ablation", first_row)
    results = {}
    for name, waits in (
        ("whole", ()),
        ("killed", ("trainings/*/seed-0/checkpoints/step-*", "*/seed-0-scene-00.png")),
    ):
        out = tmp_path / name
        arguments = ["astra", "--out", str(out), "--models-dir", str(tiny_models), "--steps", "8", *BRIEF]
        for pattern in waits:
            _kill_when(out / "astra", pattern, arguments)
            assert not (out / "astra" / "results.json").exists()
        assert command.main(arguments) == 0
        assert ("continues after step" in capsys.readouterr().err) == bool(waits)
        results[name] = (out / "astra" / "results.json").read_bytes()
    assert results["whole"] == results["killed"]


def _kill_when(folder: Path, pattern: str, arguments: list[str]) -> None:
    """Start the command and kill it as soon as such a file is there."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 120
        while not list(folder.glob(pattern)):
            assert process.poll() is None and time.monotonic() < end, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "there is no ablation 'nobody'; choose among: astra, one-for-all, anystory, seal."),
        (["astra", "--steps", "0"], "--steps is 0; it must be at least 1."),
        (["astra", "--seeds", "0"], "--seeds is 0; it must be at least 1."),
        (["astra", "--minutes", "-1"], "--minutes is -1; give a time above 0."),
        (["astra", "--minutes", "nan"], "--minutes is nan; give a time above 0."),
        (["astra", "--scenes", "0"], "scenes is 0; it must be at least 1."),
        (["astra", "--models-dir", "nowhere"], "--models-dir: there is no folder nowhere"),
        (["astra", "--docs", "nowhere.md"], "--docs: there is no file nowhere.md"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_models(tmp_path: Path, capsys) -> None:
    assert command.main(["seal", "--out", str(tmp_path / "out"), "--models-dir", str(tmp_path)]) == 2
    assert "diffusion_models/ensemble_tiny_sdxl.safetensors is missing" in capsys.readouterr().err


def test_other_settings_are_refused_where_there_are_results(tiny_models: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "astra")
    store.save_plan(Plan({"seeds": 3, "steps": 10}, 10, 3, 4, True))
    assert store.plan({"seeds": 3, "steps": 10}) is not None
    with pytest.raises(TrainingError, match="holds results with seeds 3, not 1; choose another --out"):
        store.plan({"seeds": 1, "steps": 10})


def test_all_tables_are_planned_before_the_first_is_begun(
    pairs, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a command that is continued would share its minutes out among fewer."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", end)
    arguments = ["seal", "astra", "--out", str(tmp_path), "--models-dir", str(tiny_models), "--minutes", "60", *BRIEF]
    assert command.main(arguments) == 130
    plans = {
        name: json.loads((tmp_path / name / "plan.json").read_text(encoding="utf-8")) for name in ("seal", "astra")
    }
    assert plans["seal"]["steps"] == 0 and plans["astra"]["steps"] > 10


def test_time_is_shared_out_evenly() -> None:
    """By hand: every training of any table gets the same time, and together they take what was given."""
    costs = [Cost(10.0, 0.5, 1.0, 1, 5, 5), Cost(20.0, 0.25, 2.0, 2, 2, 5), Cost(0.0, 0.0, 1.5, 0, 0, 5)]
    steps = share_out(costs, 60.0, seeds=3, scenes=12)
    left = 3600 - 30 - 12 * 3 * 5 * (1 + 2 + 1.5)
    assert steps == [int(left / 21 / 0.5), int(left / 21 / 0.5), 0]
    total = sum(cost.total(number, 3, 12) for cost, number in zip(costs, steps, strict=True))
    assert 3600 - 21 < total <= 3600


def test_too_short_a_time_says_how_much_it_takes() -> None:
    costs = [Cost(10.0, 0.5, 1.0, 1, 5, 5)]
    with pytest.raises(
        TrainingError, match=r"--minutes 2 is not enough, the pictures alone take .*; give at least (\d+)"
    ) as e:
        share_out(costs, 2.0, seeds=3, scenes=12)
    least = float(str(e.value).split("give at least ")[1].split(",")[0])
    assert share_out(costs, least + 1, seeds=3, scenes=12)[0] >= 10


def test_the_packs_own_models_are_whole_in_a_fresh_clone():
    """The ones that come untrained are in no models folder of the host's; they are the same wherever they are written."""
    entries = {entry for used in USED.values() for entry in used}
    first, second = Models(), Models()
    assert all(first.path(entry).is_file() for entry in entries)
    assert {kind: first.identity(kind) for kind in USED} == {kind: second.identity(kind) for kind in USED}
