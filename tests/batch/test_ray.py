"""A batch on a Ray cluster of this machine, one of its workers killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import psutil
import pytest

from comfyui_ensemble.batch.command import main
from comfyui_ensemble.batch.journal import read_journal
from comfyui_ensemble.batch.ray_cluster import pack_code
from devtools.server import host_of_this_process

WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": ""}, "_meta": {"title": "Who"}},
    "2": {
        "class_type": "ResizeImageMaskNode",
        "inputs": {"input": ["1", 0], "resize_type": "scale by multiplier", "resize_type.multiplier": 1.0}
        | {"scale_method": "area"},
        "_meta": {"title": "Resize"},
    },
    "3": {
        "class_type": "SaveImage",
        "inputs": {"images": ["2", 0], "filename_prefix": "ray"},
        "_meta": {"title": "Save"},
    },
}
JOBS = 60


def test_the_code_that_is_shipped(tmp_path: Path):
    """All that the host and the pack run with, nothing that is data; the same bytes for the same code."""
    host = tmp_path / "ComfyUI"
    for name in ("main.py", "comfy/sd.py", "models/big.safetensors", "output/a.png", "comfy/models/net.py", ".git/x"):
        (host / name).parent.mkdir(parents=True, exist_ok=True)
        (host / name).write_text(name)
    (host / "venv").mkdir()
    (host / "venv" / "pyvenv.cfg").touch()
    packed = pack_code(host)
    assert packed == pack_code(host)
    names = set(zipfile.ZipFile(BytesIO(packed)).namelist())
    pack = "ComfyUI/custom_nodes/comfyui_ensemble/"
    host_files = {f"ComfyUI/{name}" for name in ("main.py", "comfy/sd.py", "comfy/models/net.py")}
    assert {name for name in names if not name.startswith(pack)} == host_files
    assert {f"{pack}__init__.py", f"{pack}batch/headless.py", f"{pack}nodes/extension.py"} <= names
    assert not any("/tests/" in name or "__pycache__" in name or "/." in name for name in names)


@pytest.mark.timeout(600)
def test_a_lost_worker_is_replaced_and_no_job_is_lost(tmp_path: Path):
    pytest.importorskip("ray")
    from PIL import Image

    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "models").mkdir()
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    values = ",".join(str(1 + number / 16) for number in range(JOBS))
    (tmp_path / "jobs.csv").write_text("Who.image\nred.png\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "workflow.json"), str(tmp_path / "jobs.csv"), "--out", str(out)]
    arguments += ["--grid", f"Resize.resize_type.multiplier={values}", "--ray", "local", "--ray-workers", "2"]
    arguments += ["--ray-comfyui", str(host_of_this_process()), "--ray-models", str(tmp_path / "models")]
    command = [sys.executable, "-m", "comfyui_ensemble.batch", *arguments, "--ray-argument=--disable-api-nodes"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        both = {"ray-1", "ray-2"}
        _until(process, lambda: {row["server"] for row in _saved(out)} == both)
        first = _kill_worker(process)
        before = len(_saved(out))
        _until(process, lambda: len(_saved(out)) >= before + 5)  # the other one goes on
        second = _kill_worker(process, but=first)
        left = len(_saved(out))
        _nothing, said = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert left < JOBS  # the rest was made by workers in their places
    assert first != second
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["job"] for row in rows] == list(range(1, JOBS + 1))
    assert (
        max(Counter(event["job"] for event in read_journal(out / "_batch") if event["event"] == "saved").values()) == 1
    )
    for row in rows:
        with Image.open(out / row["file"]) as picture:
            assert picture.size == (round(16 * row["cells"]["Resize.resize_type.multiplier"]),) * 2
            assert picture.getpixel((3, 3)) == (255, 0, 0)


def _saved(out: Path) -> list[dict]:
    return [row for event in read_journal(out / "_batch") if event["event"] == "saved" for row in event["rows"]]


def _kill_worker(process: subprocess.Popen[str], but: int | None = None) -> int:
    """Kill a worker as a crash does; its ComfyUI ends with it. Returns the ComfyUI's number."""
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if "ComfyWorker" in child.name()]
    comfys = {
        worker: child.pid for worker in workers for child in worker.children() if "main.py" in " ".join(child.cmdline())
    }
    victim, comfy = next((worker, pid) for worker, pid in comfys.items() if pid != but)
    victim.kill()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(comfy) and psutil.Process(comfy).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return comfy


def _until(process: subprocess.Popen[str], ready) -> None:
    deadline = time.monotonic() + 400
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.02)


def test_without_ray_one_sentence_says_how_to_get_it(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    (tmp_path / "jobs.csv").write_text("Who.image\na.png\n", encoding="utf-8")
    arguments = [str(tmp_path / "workflow.json"), str(tmp_path / "jobs.csv"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--ray"]) == 2
    assert "Ray is not installed; run `pip install ray` here and on every node." in capsys.readouterr().err
