"""The benchmark's table, its file, and the comparison of two files. No timing decides a test."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devtools.bench import FAMILIES, ON_CPU_ALONE, line, main, runs
from devtools.bench_compare import compare, report
from devtools.bench_family import measure
from devtools.bench_record import Measured, read_rows, write_rows
from devtools.bench_row import AT_LEAST, AT_MOST, SHARE, Row, row_of

DEVTOOLS = Path(__file__).resolve().parent.parent / "devtools"
RECORDED = Path(__file__).resolve().parent / "bench_recorded.json"
FIELDS = {"family", "id", "name", "unit", "value", "bound", "limit", "device", "problem"}
FIELDS |= {"promised", "met", "commit", "versions", "machine"}


@pytest.fixture(scope="module")
def recorded() -> list[Measured]:
    """Rows of a real run."""
    return read_rows(RECORDED)


def changed(rows: list[Measured], **values: float | None) -> list[Measured]:
    """The rows, some with other values, by the part of their id behind the family."""
    return [
        replace(one, row=replace(one.row, value=values[name])) if (name := one.row.id.split(".")[-1]) in values else one
        for one in rows
    ]


@pytest.mark.parametrize(
    ("row", "measured", "promised", "met"),
    [
        (Row("a", "", SHARE, 0.0016, 0.02), "0.16 %", "under 2 %", True),
        (Row("a", "", SHARE, 0.02, 0.02), "2 %", "under 2 %", False),
        (Row("a", "", SHARE, -0.0076, 0.1, AT_MOST), "-0.76 %", "at most 10 %", True),
        (Row("a", "", "x", 1.35, 1.35, AT_MOST), "1.35 x", "at most 1.35 x", True),
        (Row("a", "", "ms", 48.31, 50.0), "48.3 ms", "under 50 ms", True),
        (Row("a", "", "MiB", 1136.4), "1,136 MiB", "no promise", None),
        (Row("a", "", "pictures", 999.0, 1000.0, AT_LEAST), "999 pictures", "at least 1000 pictures", False),
        (Row("a", "", "s", None, 1.0, problem="OSError: no"), "not measured", "under 1 s", False),
    ],
)
def test_a_row_in_words(row: Row, measured: str, promised: str, met: bool | None):
    assert (row.measured, row.promised, row.met) == (measured, promised, met)
    assert row_of(json.loads(json.dumps(row.record()))) == row


def test_every_family_has_its_module_and_its_own_ids():
    modules = {path.stem.removeprefix("bench_") for path in DEVTOOLS.glob("bench_*.py")}
    assert set(FAMILIES) == modules - {"row", "record", "family", "compare"}
    assert len(set(FAMILIES)) == len(FAMILIES) and set(FAMILIES) > ON_CPU_ALONE
    for family in FAMILIES:
        source = ast.parse((DEVTOOLS / f"bench_{family}.py").read_text(encoding="utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name == "rows" for node in source.body)


def test_with_an_accelerator_what_depends_on_it_runs_on_both():
    assert runs(("pose", "dsm"), "") == [("pose", True), ("dsm", True)]
    assert runs(("pose", "dsm"), "H100") == [("pose", True), ("dsm", True), ("dsm", False)]


def test_the_file_has_everything_two_commits_are_compared_by(recorded: list[Measured]):
    records = json.loads(RECORDED.read_text(encoding="utf-8"))["rows"]
    assert all(set(record) == FIELDS for record in records)
    ids = [(record["id"], record["device"]) for record in records]
    assert len(set(ids)) == len(ids) and {record["family"] for record in records} == set(FAMILIES)
    assert all(record["id"].split(".")[0] == record["family"] for record in records)
    assert all(record["bound"] is None or isinstance(record["bound"], float) for record in records)
    assert all({"python", "torch", "comfyui"} <= record["versions"].keys() for record in records)
    assert all({"processor", "cores", "system"} <= record["machine"].keys() for record in records)
    for record, one in zip(records, recorded, strict=True):
        assert (record["met"], record["promised"]) == (one.row.met, one.row.promised)
        assert line(one).count("|") == 6 and record["name"] in line(one)


def test_what_is_written_is_read(recorded: list[Measured], tmp_path: Path):
    write_rows(tmp_path / "rows.json", recorded)
    assert read_rows(tmp_path / "rows.json") == recorded
    assert (tmp_path / "rows.json").read_bytes() == RECORDED.read_bytes()


def test_the_same_run_has_not_changed(recorded: list[Measured]):
    found = compare(recorded, recorded)
    assert not (found.broken or found.kept or found.changed or found.gone or found.new or found.elsewhere)
    assert report(found) == f"{len(recorded)} rows as before, 0 changed, no promise newly broken."


def test_what_a_comparison_says(recorded: list[Measured]):
    before = changed(recorded, search=14.0, load=120.0, render=4.0, poses=15.6, weights=90.0)
    after = changed(recorded, search=31.0, load=150.0, render=4.5, poses=15.7, weights=50.0)
    after = [one for one in after if one.family != "puppets"]
    found = compare([one for one in before if one.row.id != "start.pack_import"], after)
    assert [old.row.id for old, _ in found.broken] == ["retrieval.search"]
    assert [old.row.id for old, _ in found.kept] == ["sizes.weights"]
    # By 15 % of what is promised, and by more than all of it; the rendering's by 5 %.
    assert [old.row.id for old, _ in found.changed] == ["retrieval.load", "pose_scale.search"]
    assert {one.family for one in found.gone} == {"puppets"} and [one.row.id for one in found.new] == [
        "start.pack_import"
    ]
    words = report(found)
    assert "| one retrieval over it, after the first | 14 ms | 31 ms | under 30 ms | cpu |" in words
    assert words.splitlines()[-1].endswith("2 changed, 1 newly broken.")


def test_what_fails_now_and_was_kept_before_is_broken(recorded: list[Measured]):
    """All rows of the family; those of a family that was not asked for are not."""
    [problem] = measure("no_such_family")
    failure = replace(recorded[0], row=replace(problem, id="dam"), family="dam")
    after = [one for one in recorded if one.family not in ("dam", "seal")]
    found = compare(recorded, [*after, failure])
    kept = [one.row.id for one in recorded if one.family == "dam" and one.row.met]
    assert [old.row.id for old, _ in found.broken] == kept
    assert "ModuleNotFoundError" in report(found)
    assert {one.family for one in found.gone} == {"seal"}


def test_other_devices_and_machines(recorded: list[Measured]):
    on_gpu = [replace(one, row=replace(one.row, device="cuda:0")) for one in recorded if one.family == "dsm"]
    found = compare(recorded, on_gpu)
    assert not found.alike and len(found.new) == len(on_gpu)
    other = [replace(one, machine={**one.machine, "cores": "64"}) for one in recorded]
    assert compare(recorded, other).elsewhere
    assert report(compare(recorded, other)).startswith("The two ran on different machines")


def test_only_a_comparison_ends_with_one(recorded: list[Measured], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    write_rows(before, changed(recorded, render=4.0))
    write_rows(after, changed(recorded, render=11.0))
    assert main(["--compare", str(before), str(after)]) == 1
    assert "Newly broken" in capsys.readouterr().out
    assert main(["--compare", str(after), str(before)]) == 0
    assert main(["--compare", str(after), str(after)]) == 0  # broken, but not newly


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("[", "it is not a file that `dev.py bench --json` wrote"),
        ('[{"name": "x", "ms": 1.0}]', "it is not a file that `dev.py bench --json` wrote"),
        ('{"format": "ensemble-bench", "version": 9, "rows": []}', "is of another version of the benchmark"),
        ('{"format": "ensemble-bench", "version": 1, "rows": [{"id": "x"}]}', "it is not a file that"),
    ],
)
def test_files_that_cannot_be_compared(content: str | None, sentence: str, tmp_path: Path, capsys: Any):
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert main(["--compare", str(path), str(RECORDED)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_a_family_that_fails_is_a_row_and_not_the_end(tmp_path: Path):
    """Run as `dev.py bench` runs it, with a family in front that ends its process and one behind that is measured."""
    package = tmp_path / "devtools"
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__.append({str(DEVTOOLS)!r})")
    (package / "bench_dam.py").write_text("import os\nos._exit(9)\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, DEVTOOLS / "bench.py", "dam", "sizes", "--json", tmp_path / "rows.json"]
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "| the rows of dam | its process ended with status 9 | no promise | no | cpu |" in done.stdout
    rows = read_rows(tmp_path / "rows.json")
    assert [one.row.id for one in rows] == ["dam", "sizes.poses", "sizes.weights"]
    assert rows[0].row.met is False and rows[1].row.met is True
    assert all(one.machine["cores"] and one.versions["torch"] for one in rows)


def test_an_unknown_family_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["retrieval", "speed"])
    assert ended.value.code == 2 and "there is no family speed; choose from start, sizes" in capsys.readouterr().err
