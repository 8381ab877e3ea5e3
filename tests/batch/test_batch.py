"""Batches on real servers: killed, resumed, cancelled, shared; and one sentence for everything that is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.batch.command import console, main
from comfyui_ensemble.batch.errors import BatchError
from comfyui_ensemble.batch.journal import read_journal
from comfyui_ensemble.batch.queue_client import QueueClient, QueueError, Refused
from comfyui_ensemble.batch.records import pack_version
from comfyui_ensemble.batch.workflow import OLDEST_HOST, check_version
from devtools.server import ComfyServer, free_port

CHEAP = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
        "_meta": {"title": "Paper"},
    },
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "batch/cheap"},
        "_meta": {"title": "Save"},
    },
}
UPLOAD = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "ensemble_alice.png"}, "_meta": {"title": "Who"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "Invert"}},
    "3": {
        "class_type": "SaveImage",
        "inputs": {"images": ["2", 0], "filename_prefix": "batch/inverted"},
        "_meta": {"title": "Save"},
    },
}
BLURS = 8
SLOW = "1024"  # a width at which a job takes some seconds; at 16 it takes a moment


def slow_workflow() -> dict[str, Any]:
    """Its time grows with the width of the paper; it can be interrupted before every node."""
    workflow: dict[str, Any] = {
        "1": {**CHEAP["1"], "inputs": {**CHEAP["1"]["inputs"], "height": 256, "width": 16}},
        "100": {**CHEAP["2"], "inputs": {"images": [str(BLURS + 1), 0], "filename_prefix": "batch/slow"}},
    }
    for number in range(2, BLURS + 2):
        inputs = {"image": [str(number - 1), 0], "blur_radius": 15, "sigma": 5.0}
        workflow[str(number)] = {"class_type": "ImageBlur", "inputs": inputs}
    return workflow


@pytest.fixture(scope="module")
def mortal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A second server, without the pack, which tests may kill."""
    folder = tmp_path_factory.mktemp("other_server")
    with ComfyServer(folder, folder / "models", custom_nodes=None, pack="none", arguments=["--cpu"]) as running:
        yield running


@pytest.fixture
def other_server(mortal_server: ComfyServer) -> ComfyServer:
    """The second server, alive."""
    if mortal_server.process is None or mortal_server.process.poll() is not None:
        mortal_server.start()
    return mortal_server


def kill(server: ComfyServer) -> None:
    """As a crash does."""
    assert server.process is not None
    server.process.kill()
    server.process.wait()


class Batch:
    """A folder with a workflow and a jobs file, and the command that runs them."""

    def __init__(self, folder: Path, workflow: Any, jobs: str, *urls: str, more: tuple[str, ...] = ()) -> None:
        self.out = folder / "out"
        (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
        (folder / "jobs.csv").write_text(jobs, encoding="utf-8")
        paths = [str(folder / "workflow.json"), str(folder / "jobs.csv")]
        self.arguments = [*paths, "--out", str(self.out), *more, "--server", *urls]

    def run(self) -> int:
        return main(self.arguments)

    def start(self) -> subprocess.Popen[Any]:
        return subprocess.Popen([sys.executable, "-m", "comfyui_ensemble.batch", *self.arguments])

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        events = read_journal(self.out / "_batch")
        return [event for event in events if kind in (None, event["event"])]

    def wait(self, process: subprocess.Popen[Any], ready: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something has happened while the command still runs."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)

    def manifest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]

    def check(self, jobs: int) -> list[dict[str, Any]]:
        """That journal, manifest and pictures agree, and every job is there once; returns the manifest."""
        rows = self.manifest()
        assert [row["job"] for row in rows] == list(range(1, jobs + 1))
        assert max(Counter(event["job"] for event in self.events("saved")).values()) == 1
        files = {path.relative_to(self.out).as_posix() for path in self.out.rglob("*.png")}
        assert files == {row["file"] for row in rows}
        for row in rows:
            content = (self.out / row["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row["sha256"] and len(content) == row["bytes"]
            assert hashlib.sha256((self.out / row["prompt"]).read_bytes()).hexdigest() == row["prompt_sha256"]
        assert not list(self.out.rglob("*.partial"))
        return rows


def queue(server: ComfyServer) -> list[str]:
    """The ids of all that waits or runs."""
    answer = server.get("/queue")
    return [entry[1] for entry in [*answer["queue_running"], *answer["queue_pending"]]]


def colour(path: Path) -> int:
    with Image.open(path) as picture:
        red, green, blue = np.asarray(picture)[0, 0]
    return int(red) << 16 | int(green) << 8 | int(blue)


# What it is for


def test_200_jobs_killed_three_times(other_server: ComfyServer, tmp_path: Path):
    """The client twice, the server once: exactly 200 pictures and a manifest that agrees."""
    batch = Batch(tmp_path, CHEAP, "Paper.color\n1001..1200\n", other_server.url)
    saved = lambda: len(batch.events("saved"))  # noqa: E731

    first = batch.start()
    batch.wait(first, lambda: saved() >= 30)
    first.kill()
    first.wait()

    second = batch.start()
    batch.wait(second, lambda: saved() >= 70)
    kill(other_server)
    before = saved()
    assert before < 190
    other_server.start()
    batch.wait(second, lambda: saved() >= before + 40)
    second.kill()
    second.wait()
    assert saved() < 200

    assert batch.run() == 0
    rows = batch.check(200)
    for row in rows:
        assert row["file"] == f"{row['job']:05d}.png"
        assert colour(batch.out / row["file"]) == row["cells"]["Paper.color"] == 1000 + row["job"]
    # What a killed client had sent was found again; sent twice was what the server lost, and a client just about to send.
    assert len(batch.events("sent")) <= 200 + 2 + 2
    assert queue(other_server) == []
    events = batch.events()
    assert batch.run() == 0 and batch.events() == events  # nothing is left to do


def test_two_servers_share_a_batch_and_an_idle_one_takes_over(
    server: ComfyServer, other_server: ComfyServer, tmp_path: Path
):
    jobs = "width,color\n4096,1\n" + "".join(f"16,{number}\n" for number in range(2, 8))
    batch = Batch(tmp_path, slow_workflow(), jobs, server.url, other_server.url)
    assert batch.run() == 0
    rows = batch.check(7)
    by_server = Counter(row["server"] for row in rows)
    assert set(by_server) == {server.url, other_server.url}
    slow = rows[0]["server"]
    assert [row["job"] for row in rows if row["server"] == slow] == [1]  # what waited behind it was taken over
    assert len(batch.events("shared")) == 1
    assert queue(server) == queue(other_server) == []


def test_the_jobs_of_a_server_that_dies_go_to_the_other(server: ComfyServer, other_server: ComfyServer, tmp_path: Path):
    jobs = "width,color\n" + "".join(f"{SLOW},{number}\n" for number in (1, 2)) + "16,3..40\n"
    batch = Batch(tmp_path, slow_workflow(), jobs, server.url, other_server.url)
    process = batch.start()
    try:
        batch.wait(
            process, lambda: {event["server"] for event in batch.events("sent")} == {server.url, other_server.url}
        )
        kill(other_server)
        assert process.wait(200) == 0
    finally:
        process.kill()
    batch.check(40)
    assert queue(server) == []


def test_cancel_cleans_the_queue_and_leaves_others_alone(server: ComfyServer, tmp_path: Path):
    batch = Batch(tmp_path, slow_workflow(), f"width,color\n4096,1\n{SLOW},2\n16,3\n", server.url)
    process = batch.start()
    batch.wait(process, lambda: len(batch.events("sent")) == 2 and len(queue(server)) == 2)
    client = QueueClient(server.url)
    somebody_elses = client.submit(CHEAP, str(uuid.uuid4()))
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130
    assert set(queue(server)) <= {somebody_elses}
    assert len(batch.events("withdrawn")) == 2 and not batch.events("saved")
    deadline = time.monotonic() + 30
    while (state := client.state(somebody_elses)) is None or state.history is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert state.history["outputs"]["2"]["images"]  # it ran to its end

    process = batch.start()  # SIGTERM is as good
    batch.wait(process, lambda: len(batch.events("sent")) == 4)
    process.terminate()
    assert process.wait(100) == 130 and queue(server) == []


def test_a_job_that_ended_while_nobody_looked_is_fetched_and_not_repeated(server: ComfyServer, tmp_path: Path):
    batch = Batch(tmp_path, slow_workflow(), f"width,color\n{SLOW},1\n16,2\n", server.url)
    process = batch.start()
    batch.wait(process, lambda: len(batch.events("sent")) == 2 and len(queue(server)) == 2)
    process.kill()
    process.wait()
    while queue(server):
        time.sleep(0.05)
    assert batch.run() == 0
    batch.check(2)
    assert len(batch.events("sent")) == 2


def test_pictures_are_uploaded_once_and_named_by_their_content(server: ComfyServer, tmp_path: Path):
    for name, value in (("a", 10), ("b", 20), ("c", 10)):
        Image.new("RGB", (8, 8), (value, 0, 0)).save(tmp_path / f"{name}.png")
    before = {path.name for path in (server.data / "input").iterdir()}
    jobs = "Who.image,#who\na.png,Ann\nb.png,Ben\nc.png,Cem\nensemble_bruno.png,Bruno\n"
    batch = Batch(tmp_path, UPLOAD, jobs, server.url, more=("--name", "{who}/{image}"))
    assert batch.run() == 0
    rows = batch.check(4)
    assert [row["file"] for row in rows] == ["Ann/a.png", "Ben/b.png", "Cem/c.png", "Bruno/ensemble_bruno.png"]
    assert [colour(batch.out / row["file"]) >> 16 for row in rows[:3]] == [245, 235, 245]
    new = {path.name for path in (server.data / "input").iterdir()} - before
    digests = [hashlib.sha256((tmp_path / f"{name}.png").read_bytes()).hexdigest() for name in "ab"]
    assert new == {f"ensemble_{digest[:24]}.png" for digest in digests}
    assert rows[0]["files"] == {"Who.image": {"file": str(tmp_path / "a.png"), "sha256": digests[0]}}
    assert rows[3]["files"] == {}


def test_a_graph_is_converted_and_the_manifest_says_what_made_each_picture(server: ComfyServer, tmp_path: Path):
    graph = json.loads((Path(__file__).with_name("odd_graph.json")).read_text(encoding="utf-8"))
    api = {number: graph["api"][number] for number in ("1", "6", "7")}
    nodes = [node for node in graph["graph"]["nodes"] if node["id"] in (1, 3, 4, 5, 6, 7)]
    more = ("--name", "{index}_{multiplier}", "--grid", "Smaller.resize_type.multiplier=0.25,0.5")
    batch = Batch(tmp_path, {**graph["graph"], "nodes": nodes}, "#note\nfirst\n", server.url, more=more)
    assert batch.run() == 0
    rows = batch.check(2)
    assert [row["file"] for row in rows] == ["1_0.25.png", "2_0.5.png"]
    for row, factor in zip(rows, (0.25, 0.5), strict=True):
        api["6"]["inputs"]["resize_type.multiplier"] = factor
        assert json.loads((batch.out / row["prompt"]).read_text(encoding="utf-8")) == api
        assert row["comfyui"] == server.get("/system_stats")["system"]["comfyui_version"]
        assert row["ensemble"] == pack_version() and row["server"] == server.url and row["seconds"] > 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["time"])
        assert row["cells"] == {"#note": "first", "Smaller.resize_type.multiplier": factor} and row["line"] == 2


def test_random_seeds_are_in_the_manifest_and_several_pictures_of_a_job_are_numbered(
    server: ComfyServer, tmp_path: Path
):
    workflow = json.loads(json.dumps(CHEAP))
    workflow["1"]["inputs"]["batch_size"] = 2
    workflow["3"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}, "_meta": {"title": "Noise"}}
    batch = Batch(
        tmp_path, workflow, "noise_seed,color\nrandom*2,7\n", server.url, more=("--name", "{index}_{noise_seed}")
    )
    assert batch.run() == 0
    rows = batch.manifest()
    seeds = [row["seeds"]["Noise.noise_seed"] for row in rows]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert [row["file"] for row in rows] == [
        f"{job}_{seed}{more}.png" for job, seed in ((1, seeds[0]), (2, seeds[2])) for more in ("", "_p2")
    ]
    assert all((batch.out / row["file"]).is_file() for row in rows)


# What goes wrong


def test_a_job_that_fails_is_repeated_and_given_up_while_the_others_go_on(server: ComfyServer, tmp_path: Path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    jobs = "image\nbroken.png\ngood.png\n"
    batch = Batch(tmp_path, UPLOAD, jobs, server.url, more=("--retries", "1", "--name", "{image}"))
    assert batch.run() == 1
    said = capsys.readouterr().err
    assert "job 1 failed, it is tried again: LoadImage failed" in said and "job 1 is given up: LoadImage failed" in said
    assert "1 jobs are in" in said and "1 failed; the same command tries those again" in said
    assert [row["file"] for row in batch.manifest()] == ["good.png"]
    assert len(batch.events("failed")) == 2

    Image.new("RGB", (8, 8)).save(tmp_path / "broken.png")  # mended
    assert batch.run() == 0
    assert [row["file"] for row in batch.check(2)] == ["broken.png", "good.png"]


def test_a_job_that_takes_too_long_is_given_up(server: ComfyServer, tmp_path: Path, capsys):
    jobs, more = "width,color\n8192,9\n16,8\n", ("--timeout", "2", "--retries", "0")
    batch = Batch(tmp_path, slow_workflow(), jobs, server.url, more=more)
    assert batch.run() == 1
    assert "job 1 is given up: it took longer than 2 seconds" in capsys.readouterr().err
    assert [row["job"] for row in batch.manifest()] == [2] and queue(server) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_the_batch_goes_on_afterwards(server: ComfyServer, tmp_path: Path):
    batch = Batch(tmp_path, CHEAP, "color\n2001..2060\n", server.url)
    process = subprocess.Popen(
        [sys.executable, "-m", "comfyui_ensemble.batch", *batch.arguments], stderr=subprocess.PIPE, text=True
    )
    manifest = batch.out / "manifest.jsonl"
    while not batch.events("saved"):
        time.sleep(0.005)
    os.symlink("/dev/full", tmp_path / "full")
    os.replace(tmp_path / "full", manifest)
    _nothing, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.strip().splitlines()[-1] == (
        f"the disk of {batch.out} is full; make room, then start this again to go on."
    )
    assert "Traceback" not in said and queue(server) == []
    manifest.unlink()
    assert batch.run() == 0
    batch.check(60)


WRONG = {
    "column 'Papier.color' fills no input of the workflow; did you mean 'Paper.color'?": ("Papier.color\n1\n", ()),
    "line 2, 'color': -1 is out of range": ("color\n-1\n", ()),
    "jobs.csv is empty; write one row for every job below its heading": ("color\n", ()),
    "jobs 1 and 2 would both be saved as 'x'": ("color\n1\n2\n", ("--name", "x")),
    "--name has no 'prompt'": ("color\n1\n", ("--name", "{prompt}")),
    "--grid 'color' is not of the form": ("width\n8\n", ("--grid", "color")),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_bad_input_is_one_sentence_before_the_first_job(server: ComfyServer, tmp_path: Path, capsys, sentence: str):
    jobs, more = WRONG[sentence]
    batch = Batch(tmp_path, CHEAP, jobs, server.url, more=more)
    assert batch.run() == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and said.endswith(".") and "\n" not in said
    assert not batch.out.exists()


def test_bad_workflows_are_one_sentence(server: ComfyServer, tmp_path: Path, capsys):
    unknown = {"1": {"class_type": "NoSuchNode", "inputs": {}, "_meta": {"title": "New"}}}
    no_output = {"1": CHEAP["1"]}
    shapes: list[tuple[Any, str]] = [
        (unknown, "the server has no node 'NoSuchNode' ('New' in the workflow); install the pack it comes from."),
        (no_output, "the workflow saves nothing; add a Save Image node."),
        ([1, 2], "workflow.json is no ComfyUI workflow; open it in ComfyUI and save it with Workflow > Export (API)."),
        ({"prompt": CHEAP}, "workflow.json is no ComfyUI workflow;"),
    ]
    for workflow, sentence in shapes:
        assert Batch(tmp_path, workflow, "#n\n1\n", server.url).run() == 2
        assert sentence in capsys.readouterr().err
    batch = Batch(tmp_path, CHEAP, "#n\n1\n", server.url)
    (tmp_path / "workflow.json").write_text("{", encoding="utf-8")
    assert batch.run() == 2 and "workflow.json is not JSON;" in capsys.readouterr().err
    (tmp_path / "workflow.json").unlink()
    assert batch.run() == 2 and "there is no workflow file" in capsys.readouterr().err


def test_what_the_server_refuses_is_said_at_the_first_job(server: ComfyServer, tmp_path: Path, capsys):
    wrong = json.loads(json.dumps(CHEAP))
    wrong["1"]["inputs"]["height"] = -5
    batch = Batch(tmp_path, wrong, "color\n1\n2\n", server.url)
    assert batch.run() == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("job 1: ComfyUI refused the workflow:") and "EmptyImage" in said
    assert queue(server) == []


def test_a_server_that_is_down_is_one_sentence(tmp_path: Path, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    batch = Batch(tmp_path, CHEAP, "color\n1\n", url)
    assert batch.run() == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"ComfyUI does not answer at {url} (") and "\n" not in said and not batch.out.exists()
    assert Batch(tmp_path, CHEAP, "color\n1\n", url, url).run() == 2
    assert "a server is named twice" in capsys.readouterr().err


def test_one_server_that_is_down_is_done_without(server: ComfyServer, tmp_path: Path, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    batch = Batch(tmp_path, CHEAP, "color\n3001..3003\n", url, server.url)
    assert batch.run() == 0
    batch.check(3)
    assert f"ComfyUI does not answer at {url}" in capsys.readouterr().err


def test_a_server_that_does_not_come_back_is_not_waited_for_for_ever(other_server: ComfyServer, tmp_path: Path):
    batch = Batch(tmp_path, CHEAP, "color\n4001..4400\n", other_server.url, more=("--wait", "2"))
    process = subprocess.Popen(
        [sys.executable, "-m", "comfyui_ensemble.batch", *batch.arguments], stderr=subprocess.PIPE, text=True
    )
    batch.wait(process, lambda: bool(batch.events("saved")))
    kill(other_server)
    _nothing, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "no server has answered for 2 seconds; start one, then start this again to go on." in said
    assert "Traceback" not in said


def test_another_batch_in_the_same_folder_is_refused(server: ComfyServer, tmp_path: Path, capsys):
    assert Batch(tmp_path, CHEAP, "color\n5\n", server.url).run() == 0
    assert Batch(tmp_path, CHEAP, "color\n6\n", server.url).run() == 2
    assert "belongs to other prompts, settings or another workflow; take another folder." in capsys.readouterr().err
    (tmp_path / "out" / "_batch" / "journal.jsonl").unlink()
    assert Batch(tmp_path, CHEAP, "color\n6\n", server.url).run() == 2
    assert "00001.png is there already; choose another --out or --name." in capsys.readouterr().err


def test_check_runs_nothing(server: ComfyServer, tmp_path: Path, capsys):
    batch = Batch(tmp_path, CHEAP, "color\n1..3\n", server.url, more=("--check",))
    assert batch.run() == 0 and not batch.out.exists()
    assert "3 jobs, from 00001 to 00003; all values fit." in capsys.readouterr().err


def test_the_output_folder_is_never_left_by_a_link(server: ComfyServer, tmp_path: Path, capsys):
    (tmp_path / "elsewhere").mkdir()
    batch = Batch(tmp_path, CHEAP, "color\n1\n", server.url, more=("--name", "sub/{index}"))
    batch.out.mkdir()
    os.symlink(tmp_path / "elsewhere", batch.out / "sub")
    assert batch.run() == 2
    assert "is a link that leaves the output folder; remove it." in capsys.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_older_server_is_refused():
    for version in ("0.30.0", "0.30.1", "v0.30", "1.0", "0.31.0-rc1"):
        check_version(version)
    for version in ("0.29.9", "0.3.50", "0", "nightly"):
        with pytest.raises(BatchError, match=f"is older than {OLDEST_HOST}; update it"):
            check_version(version)
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-comfyui = ">={OLDEST_HOST}"' in project


@pytest.fixture
def old_server() -> Iterator[tuple[str, list[str]]]:
    """Answers as a ComfyUI of last year does; its URL, and what it is asked."""
    asked: list[str] = []

    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = json.dumps({"system": {"comfyui_version": "0.3.50"}, "devices": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the terminal that is not the command's."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Old) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}", asked
        listener.shutdown()
        thread.join()


@pytest.mark.parametrize("more", [(), ("--check",)])
def test_the_command_says_that_a_server_is_older(
    old_server: tuple[str, list[str]], tmp_path: Path, capsys, more: tuple[str, ...]
):
    url, asked = old_server
    batch = Batch(tmp_path, CHEAP, "color\n1\n", url, more=more)
    assert batch.run() == 2
    assert capsys.readouterr().err == f"{url}: its ComfyUI 0.3.50 is older than {OLDEST_HOST}; update it.\n"
    assert asked == ["/system_stats"] and not batch.out.exists()


def test_console_has_one_command(server: ComfyServer, tmp_path: Path, capsys):
    batch = Batch(tmp_path, CHEAP, "color\n1\n", server.url, more=("--check",))
    assert console(["batch", *batch.arguments]) == 0
    assert console([]) == 2 and "usage: comfyui-ensemble batch" in capsys.readouterr().err


# The client


def test_client_sees_cancels_and_dequeues(server: ComfyServer, tmp_path: Path):
    client = QueueClient(server.url)
    slow = slow_workflow()
    slow["1"]["inputs"] |= {"width": 4096, "color": 77}
    running, waiting = (client.submit(slow, str(uuid.uuid4())) for _ in range(2))
    while not (state := client.state(running)) or not state.running:
        time.sleep(0.02)
    assert client.state(waiting) is not None and client.dequeue(waiting) and client.state(waiting) is None
    assert not client.dequeue(running)
    client.cancel(waiting)  # nothing happens to anything else
    assert client.state(running) is not None
    client.cancel(running)
    while (state := client.state(running)) is not None and state.history is None:
        time.sleep(0.02)
    assert state is not None and state.history is not None
    assert client.state(str(uuid.uuid4())) is None


def test_client_says_who_is_to_blame(server: ComfyServer):
    client = QueueClient(server.url)
    with pytest.raises(Refused, match="EmptyImage"):
        client.run({**CHEAP, "1": {"class_type": "EmptyImage", "inputs": {}}})
    with pytest.raises(QueueError, match="prompt_id must be a valid UUID"):
        client.submit(CHEAP, "no uuid")
    with pytest.raises(QueueError, match="answered with status 404"):
        client.fetch({"filename": "missing.png", "type": "output"})
    with pytest.raises(QueueError, match="does not answer at nowhere"):
        QueueClient("nowhere").version()
