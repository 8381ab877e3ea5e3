"""Shards of pictures on real servers: killed, continued, shared by servers, one of which is silent."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from comfyui_ensemble.batch.journal import read_journal
from comfyui_ensemble.batch.queue_client import QueueClient, Refused
from comfyui_ensemble.models_info.registry import BUNDLED_POSES, PACK_FOLDER, find_minilm
from comfyui_ensemble.pose_db.collection import open_collection
from comfyui_ensemble.pose_db.collection_shards import shard_folder
from comfyui_ensemble.pose_db.database import load_database
from comfyui_ensemble.pose_db.encoder import SentenceEncoder
from comfyui_ensemble.pose_db.factory import Plan
from comfyui_ensemble.pose_db.prompt_file import PromptFile
from comfyui_ensemble.pose_db.quality import check_pose
from comfyui_ensemble.pose_db.scale import ScaleError, build_collection
from comfyui_ensemble.pose_db.scale_cli import main
from comfyui_ensemble.pose_db.scale_pictures import PICTURES, PictureShards
from devtools.server import ComfyServer, free_port, host_of_this_process

PROMPTS = [f"a {who} man standing" for who in ("young", "tall", "slim", "strong", "tired", "happy", "calm")]
SHARD = 2


@pytest.fixture(scope="module")
def workflow() -> dict:
    """A picture of one colour, and a pose that would be found in it; so quick that a server makes many a second."""
    database = load_database(PACK_FOLDER / "pose_db" / "data" / BUNDLED_POSES.name)
    single = (database.frame(entry) for entry in range(len(database)) if database.tags[entry]["people"] == 1)
    pose = next(frame for frame in single if not check_pose(frame, "a man standing"))
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 3}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "scale"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": "%prompt%"}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": json.dumps([pose])}},
    }


@pytest.fixture
def command(workflow: dict, tmp_path: Path) -> list[str]:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (tmp_path / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    files = [str(tmp_path / name) for name in ("prompts.txt", "workflow.json")]
    return ["pictures", *files, "--shard", str(SHARD), "--out", str(tmp_path / "made.safetensors"), "--workers", "1"]


def done(out: Path) -> list[Path]:
    return sorted((shard_folder(out) / PICTURES).glob("*/pictures/*.png"))


def test_killed_and_continued_on_two_servers(server: ComfyServer, command: list[str], tmp_path: Path, capsys):
    out = tmp_path / "made.safetensors"
    urls = ["--server", server.url, server.url.replace("127.0.0.1", "localhost")]
    process = subprocess.Popen([sys.executable, "-m", "comfyui_ensemble.pose_db.scale", *command, *urls])
    deadline = time.monotonic() + 120
    while not done(out):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in done(out)}
    accepted = [path.parent.parent for path in before if _accepted(path.parent.parent)]

    assert main([*command, *urls]) == 0
    assert f"{len(PROMPTS)} entries of {len(PROMPTS)} prompts, 0 waiting" in capsys.readouterr().out
    assert len(done(out)) == len(PROMPTS)
    for folder in accepted:  # what was whole before the kill was not made again
        kept = [path for path in before if path.parent.parent == folder and _accepted(folder) == len(before)]
        assert all(path.stat().st_mtime_ns == before[path] for path in kept)
    collection = open_collection(out)
    assert list(collection.prompts) == PROMPTS
    assert all(len(collection.frame(entry)["people"]) == 1 for entry in range(len(PROMPTS)))
    events = [read_journal(folder) for folder in sorted((shard_folder(out) / PICTURES).iterdir())]
    assert [sum(event["event"] == "accepted" for event in shard) for shard in events] == [2, 2, 2, 1]
    seeds = [event["seed"] for shard in events for event in shard if event["event"] == "picture"]
    assert len(set(seeds)) == len(PROMPTS)
    assert main([*command, *urls]) == 0 and open_collection(out).shards.records == collection.shards.records


@pytest.mark.timeout(300)
def test_a_ray_cluster_makes_what_a_server_makes(server: ComfyServer, command: list[str], tmp_path: Path):
    """Two workers on this machine, each with a ComfyUI of its own; of two shards each has one in hand."""
    pytest.importorskip("ray")
    models = tmp_path / "models"
    models.mkdir()
    ray = ["--ray", "local", "--ray-workers", "2", "--ray-models", str(models), "--ray-argument=--disable-api-nodes"]
    ray += ["--ray-comfyui", str(host_of_this_process())]
    module = [sys.executable, "-m", "comfyui_ensemble.pose_db.scale", *command]
    ended = subprocess.run([*module, *ray], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert all(f"ray-{number} is process" in ended.stdout for number in (1, 2))
    made = open_collection(tmp_path / "made.safetensors")
    assert list(made.prompts) == PROMPTS
    other = tmp_path / "other.safetensors"
    assert main([*command, "--out", str(other), "--server", server.url]) == 0
    assert open_collection(other).shards.records == made.shards.records


def test_ray_that_is_not_there_is_one_sentence(command: list[str], capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    assert main([*command, "--ray"]) == 2
    assert capsys.readouterr().out == "Ray is not installed; run `pip install ray` here and on every node.\n"


def _accepted(folder: Path) -> int:
    return sum(event["event"] == "accepted" for event in read_journal(folder))


def shards(
    workflow: dict, path: Path, *clients: QueueClient, prompts: Sequence[str] = PROMPTS, **options: Any
) -> PictureShards:
    path.write_text("\n".join(prompts), encoding="utf-8")
    plan = Plan(prompts=(), workflow=workflow, tries=2)
    encoder = SentenceEncoder(find_minilm())
    return PictureShards(PromptFile(path, SHARD), plan, clients, encoder, lambda text: None, **options)


def test_a_silent_server_leaves_its_shards_to_the_others(server: ComfyServer, workflow: dict, tmp_path: Path):
    silent = QueueClient(f"http://127.0.0.1:{free_port()}")
    made = shards(workflow, tmp_path / "p.txt", silent, QueueClient(server.url), wait=1.0)
    assert build_collection(tmp_path / "a.safetensors", made.digest(), made, 1, str) == len(PROMPTS)
    alone = shards(workflow, tmp_path / "p.txt", silent, wait=0.5)
    with pytest.raises(ScaleError, match="no server is left that could go on: ComfyUI does not answer at"):
        build_collection(tmp_path / "b.safetensors", alone.digest(), alone, 1, str)
    assert not (tmp_path / "b.safetensors").exists()


def test_a_server_that_is_replaced_is_waited_for(tiny_models: Path, workflow: dict, tmp_path: Path):
    """As Ray does with a lost worker: killed in the middle, another in its place, which knows nothing of what was asked."""
    prompts = [f"a man standing, number {number}" for number in range(40)]
    server = ComfyServer(tmp_path / "server", tiny_models, arguments=["--cpu"])
    out = tmp_path / "made.safetensors"
    with server:
        made = shards(workflow, tmp_path / "p.txt", QueueClient(server.url), prompts=prompts)
        replaced = threading.Thread(target=_replace_when, args=(server, lambda: len(done(out)) >= 5))
        replaced.start()
        count = build_collection(out, made.digest(), made, 1, str)
        early = replaced.is_alive()
        replaced.join()
    assert not early and count == len(prompts) and list(open_collection(out).prompts) == prompts
    events = [read_journal(folder) for folder in (shard_folder(out) / PICTURES).iterdir()]
    kinds = [Counter(event["event"] for event in shard[1:]) for shard in events]
    assert kinds == [{"picture": SHARD, "accepted": SHARD}] * (len(prompts) // SHARD)  # nothing twice


def _replace_when(server: ComfyServer, ready: Callable[[], bool]) -> None:
    while not ready():
        time.sleep(0.002)
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    server.start()


def test_a_workflow_that_cannot_run_ends_it(server: ComfyServer, workflow: dict, tmp_path: Path):
    wrong = workflow | {"1": {"class_type": "EmptyImage", "inputs": {"width": "wide"}}}
    made = shards(wrong, tmp_path / "p.txt", QueueClient(server.url))
    with pytest.raises(Refused, match="refused the workflow"):
        build_collection(tmp_path / "a.safetensors", made.digest(), made, 1, str)


def test_entries_without_a_pose_are_left_out_and_late_pose_files_are_waited_for(
    server: ComfyServer, command: list[str], workflow: dict, tmp_path: Path, capsys
):
    """Shard 0 has both poses, shard 1 none yet, shard 2 poor ones, shard 3 one."""
    pose = json.loads(workflow["4"]["inputs"]["source"])[0]
    poses = tmp_path / "poses"
    for number, good in ((0, True), (2, False), (3, True)):
        (poses / f"{number:06d}").mkdir(parents=True)
        for name in ("00000_00", "00001_00"):
            frame = pose if good else pose | {"people": []}
            (poses / f"{number:06d}" / f"{name}_keypoints.json").write_text(json.dumps(frame), encoding="utf-8")
    arguments = [*command, "--server", server.url, "--poses-from-json", str(poses), "--tries", "1"]
    assert main(arguments) == 0
    assert "3 entries of 7 prompts, 2 waiting" in capsys.readouterr().out
    out = tmp_path / "made.safetensors"
    assert list(open_collection(out).prompts) == [*PROMPTS[:2], PROMPTS[6]]
    (poses / "000001").mkdir()
    for name in ("00000_00", "00001_00"):
        (poses / "000001" / f"{name}_keypoints.json").write_text(json.dumps(pose), encoding="utf-8")
    assert main(arguments) == 0
    assert "5 entries of 7 prompts, 0 waiting" in capsys.readouterr().out
    assert list(open_collection(out).prompts) == [*PROMPTS[:4], PROMPTS[6]]
