"""The factory on a real ComfyUI: killed in the middle it goes on without repeating or losing an entry."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.batch.journal import JournalError, open_journal, read_journal
from comfyui_ensemble.batch.queue_client import QueueClient, QueueError
from comfyui_ensemble.models_info.registry import TINY_FLUX, TINY_VAE
from comfyui_ensemble.pose_db.database import load_database
from comfyui_ensemble.pose_db.factory import (
    KIND,
    FactoryError,
    Plan,
    fill_workflow,
    replay,
    run_factory,
    seed_of,
    stem_of,
)
from comfyui_ensemble.pose_db.factory_cli import main
from comfyui_ensemble.pose_db.keypoints import frame_from_people
from comfyui_ensemble.pose_db.prompt_axes import Variation
from comfyui_ensemble.pose_db.quality import check_pose
from comfyui_ensemble.pose_db.skeleton import ANGLES, body_lengths, forward
from devtools.server import ComfyServer, free_port

SIZE = 64
PROMPTS = [f"a {who} man waving" for who in ("young", "tall", "slim", "strong", "tired", "happy")]
BAD_TRIES = {1: 1, 3: 9}  # entry -> how many of its tries have a poor pose
TRIES = 3
WORKFLOW = {
    "1": {"class_type": "EnsembleMiniLMTextEncoder", "inputs": {}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 0], "text": "%prompt%, photograph"}},
    "3": {"class_type": "UNETLoader", "inputs": {"unet_name": TINY_FLUX.name, "weight_dtype": "default"}},
    "4": {"class_type": "EmptySD3LatentImage", "inputs": {"width": SIZE, "height": SIZE, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {"model": ["3", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["4", 0], "seed": 1}
        | {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    },
    "6": {"class_type": "VAELoader", "inputs": {"vae_name": TINY_VAE.name}},
    "7": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["6", 0]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "factory"}},
}


def standing(height: float = 0.8) -> np.ndarray:
    """An upright person in the middle of the canvas, (1, 18, 3)."""
    joints = forward(np.zeros((1, len(ANGLES))), body_lengths("person")[None]).joints[0]
    joints *= height * SIZE / np.ptp(joints[:, 1])
    people = np.full((1, 18, 3), 0.9)
    people[0, :, 0] = SIZE / 2 + joints[:, 0]
    people[0, :, 1] = SIZE / 2 - joints[:, 1] + (joints[:, 1].min() + joints[:, 1].max()) / 2
    return people


def shows(text: str) -> dict:
    """Nodes that show a text, as a model's answer or a pose detector's result is shown."""
    return {
        "90": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": text}},
        "91": {"class_type": "PreviewAny", "inputs": {"source": ["90", 0]}},
    }


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    """What another program found in the pictures of every try, poor poses among them."""
    folder = tmp_path / "poses"
    folder.mkdir()
    for entry in range(len(PROMPTS)):
        for attempt in range(TRIES):
            people = standing(0.7 + 0.02 * entry)
            if attempt < BAD_TRIES.get(entry, 0):
                people[0, 4, :2] = 2, 60  # a wrist that lies at somebody's foot
            frame = frame_from_people(people, SIZE, SIZE)
            (folder / f"{stem_of(entry, attempt)}_keypoints.json").write_text(json.dumps(frame), encoding="utf-8")
    return folder


def command(server: ComfyServer, folder: Path, *more: str) -> list[str]:
    (folder / "workflow.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    arguments = ["run", folder / "prompts.txt", folder / "workflow.json", "--work", folder / "work"]
    arguments += ["--out", folder / "out.safetensors", "--server", server.url, "--tries", TRIES, *more]
    return [str(argument) for argument in arguments]


def test_killed_and_resumed(server: ComfyServer, poses: Path, tmp_path: Path, capsys):
    arguments = command(server, tmp_path, "--poses-from-json", str(poses))
    for wanted in (1, 3):  # killed twice, each time after that many accepted entries
        _kill_after(arguments, tmp_path / "work", wanted)
    with (tmp_path / "work" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"event":"accepted","entry":5,"att')  # as a kill within a write leaves it
    before = read_journal(tmp_path / "work")
    assert sum(event["event"] == "accepted" for event in before) < len(PROMPTS) - 1
    assert main(arguments) == 0
    assert "5 accepted, 1 given up, 0 waiting" in capsys.readouterr().out

    events = read_journal(tmp_path / "work")
    assert events[: len(before)] == before
    steps = Counter((event["event"], event["entry"], event["attempt"]) for event in events[1:])
    assert max(steps.values()) == 1  # nothing was done twice
    tries = {entry: min(BAD_TRIES.get(entry, 0) + 1, TRIES) for entry in range(len(PROMPTS))}
    pictures = {stem_of(entry, attempt) + ".png" for entry in tries for attempt in range(tries[entry])}
    assert {path.name for path in (tmp_path / "work" / "pictures").iterdir()} == pictures
    assert len({event["seed"] for event in events if event["event"] == "picture"}) == len(pictures)

    database = load_database(tmp_path / "out.safetensors")
    assert database.prompts == [prompt for entry, prompt in enumerate(PROMPTS) if entry != 3]
    for row, entry in enumerate(entry for entry in range(len(PROMPTS)) if entry != 3):
        np.testing.assert_allclose(database.people(row), standing(0.7 + 0.02 * entry), atol=1 / 16)
    content = (tmp_path / "out.safetensors").read_bytes()
    assert main(arguments) == 0  # nothing is left to do
    assert read_journal(tmp_path / "work") == events
    assert (tmp_path / "out.safetensors").read_bytes() == content


def _kill_after(arguments: list[str], work: Path, wanted: int) -> None:
    process = subprocess.Popen([sys.executable, "-m", "comfyui_ensemble.pose_db.factory", *arguments])
    deadline = time.monotonic() + 60
    while sum(event["event"] == "accepted" for event in read_journal(work)) < wanted:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_a_pose_file_that_is_not_there_yet_is_waited_for(server: ComfyServer, poses: Path, tmp_path: Path, capsys):
    late = poses / "00002_00_keypoints.json"
    content = late.read_text(encoding="utf-8")
    late.unlink()
    arguments = command(server, tmp_path, "--poses-from-json", str(poses))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:3]), encoding="utf-8")
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "3/3 waits for 00002_00_keypoints.json" in said and "2 accepted, 0 given up, 1 waiting" in said
    pictures = sum(event["event"] == "picture" for event in read_journal(tmp_path / "work"))
    late.write_text(content, encoding="utf-8")
    assert main(arguments) == 0
    assert sum(event["event"] == "picture" for event in read_journal(tmp_path / "work")) == pictures
    assert load_database(tmp_path / "out.safetensors").prompts == PROMPTS[:3]
    with Image.open(tmp_path / "work" / "pictures" / "00002_00.png") as picture:
        assert picture.size == (SIZE, SIZE)


def run(server: ComfyServer, folder: Path, workflow: dict, prompts=("a man waving",), **changes):
    plan = Plan(prompts=[Variation(prompt, {}) for prompt in prompts], workflow=workflow, tries=2, **changes)
    summary = run_factory(plan, QueueClient(server.url), folder, lambda text: None)
    return summary, read_journal(folder)


def test_pose_and_rating_from_the_workflow(server: ComfyServer, tmp_path: Path):
    pose = json.dumps([frame_from_people(standing(), SIZE, SIZE)])
    answer = '{"subject": 9, "interaction": 8, "detail": 4}'  # 0.76
    second = {"92": {"class_type": "PreviewAny", "inputs": {"source": answer}}}
    workflow = WORKFLOW | shows(pose) | second
    summary, events = run(server, tmp_path / "good", workflow, threshold=0.75)
    assert (summary.accepted, summary.given_up) == (1, 0)
    assert replay(events, 1)[0].accepted is not None
    summary, events = run(server, tmp_path / "bad", workflow, threshold=0.77)
    assert (summary.accepted, summary.given_up) == (0, 1)
    reasons = [event["reason"] for event in events if event["event"] == "rejected"]
    assert reasons == ["the alignment score 0.76 is below 0.77"] * 2
    summary, events = run(server, tmp_path / "two", WORKFLOW | shows(pose), prompts=["two men waving"])
    assert [event["reason"] for event in events if event["event"] == "rejected"] == [
        "the picture has 1 person, the prompt 2"
    ] * 2


@pytest.mark.parametrize(
    "changes, options, sentence",
    [
        ({}, {}, "the workflow shows no pose"),
        ({}, {"threshold": 0.5}, "the workflow shows no rating"),
        ({"8": None}, {}, "the workflow saves no picture"),
        ({"2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 0], "text": "x"}}}, {}, "has no %prompt%"),
        ({"9": {"nodes": []}}, {}, "is not in API form"),
    ],
)
def test_workflows_that_will_not_do(server: ComfyServer, tmp_path: Path, changes, options, sentence):
    workflow = {number: node for number, node in (WORKFLOW | changes).items() if node is not None}
    if "8" not in workflow:
        workflow |= {"93": {"class_type": "PreviewAny", "inputs": {"source": "%prompt%"}}}
    with pytest.raises(FactoryError, match=sentence):
        run(server, tmp_path, workflow, **options)


def test_what_the_server_says_is_passed_on(server: ComfyServer, tmp_path: Path):
    wrong = json.loads(json.dumps(WORKFLOW))
    wrong["3"]["inputs"]["unet_name"] = "nothing.safetensors"
    with pytest.raises(QueueError, match=r"refused the workflow: .*UNETLoader: Value not in list"):
        run(server, tmp_path, wrong)
    half = WORKFLOW | {"94": {"class_type": "PreviewImage", "inputs": {}}}
    with pytest.raises(QueueError, match="a part of it is wrong; PreviewImage: Required input is missing"):
        run(server, tmp_path / "half", half)
    with pytest.raises(QueueError, match="ComfyUI does not answer at"):
        QueueClient(f"http://127.0.0.1:{free_port()}").run(WORKFLOW)


def test_only_one_run_in_a_folder_and_only_of_one_plan(tmp_path: Path):
    with (
        open_journal(tmp_path, "plan", KIND),
        pytest.raises(JournalError, match="another run works in"),
        open_journal(tmp_path, "plan", KIND),
    ):
        pass
    with pytest.raises(JournalError, match="belongs to other prompts"), open_journal(tmp_path, "other plan", KIND):
        pass
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b"garbage\n")
    with pytest.raises(JournalError, match="line 2 of the journal"), open_journal(tmp_path, "plan", KIND):
        pass


def test_a_database_of_another_run_is_not_overwritten(server: ComfyServer, poses: Path, tmp_path: Path, capsys):
    arguments = command(server, tmp_path, "--poses-from-json", str(poses))
    (tmp_path / "prompts.txt").write_text(PROMPTS[0], encoding="utf-8")
    assert main(arguments) == 0
    (tmp_path / "prompts.txt").write_text(PROMPTS[2], encoding="utf-8")
    arguments[arguments.index("--work") + 1] = str(tmp_path / "other")
    assert main(arguments) == 2
    assert "is there and another run made it; choose another name" in capsys.readouterr().out
    out = arguments[arguments.index("--out") + 1]
    arguments[arguments.index("--work") + 1] = str(tmp_path / "work")  # the first run's
    arguments[arguments.index("--out") + 1] = str(tmp_path / "mixed.safetensors")
    assert main(arguments) == 2
    assert "belongs to other prompts" in capsys.readouterr().out and not (tmp_path / "mixed.safetensors").exists()
    arguments[arguments.index("--work") + 1] = str(tmp_path / "other")
    arguments[arguments.index("--out") + 1] = str(tmp_path / "more.safetensors")
    assert main([*arguments, "--base", out]) == 0
    assert load_database(tmp_path / "more.safetensors").prompts == [PROMPTS[0], PROMPTS[2]]


def test_workflow_is_filled_and_left_alone():
    workflow = {
        "1": {
            "class_type": "A",
            "inputs": {"text": "%prompt%!", "seed": 3, "noise_seed": 4, "steps": 5, "model": ["2", 0]},
        },
        "2": {"class_type": "B", "inputs": {"prompt": "%question%", "seed": ["3", 0]}},
    }
    filled = fill_workflow(workflow, "a man", 77)
    assert filled["1"]["inputs"] == {"text": "a man!", "seed": 77, "noise_seed": 77, "steps": 5, "model": ["2", 0]}
    assert filled["2"]["inputs"]["seed"] == ["3", 0] and 'Prompt: "a man"' in filled["2"]["inputs"]["prompt"]
    assert workflow["1"]["inputs"]["seed"] == 3


def test_seeds_differ_and_stay():
    seeds = {seed_of(0, entry, attempt) for entry in range(50) for attempt in range(5)}
    assert len(seeds) == 250 and max(seeds) < 2**48 and seed_of(0, 3, 1) == seed_of(0, 3, 1) != seed_of(1, 3, 1)


def test_variations_command(tmp_path: Path, capsys):
    axes = {"actions": ["a man waving", "two women dancing"], "attributes": ["old", "young"], "cameras": ["low angle"]}
    (tmp_path / "axes.json").write_text(json.dumps(axes), encoding="utf-8")
    out = tmp_path / "prompts.json"
    arguments = ["variations", str(tmp_path / "axes.json"), "--count", "2", "--out", str(out)]
    assert main(arguments) == 0
    made = json.loads(out.read_text(encoding="utf-8"))
    assert {item["prompt"] for item in made} == {
        *("an old man waving, low angle", "a young man waving, low angle"),
        *("two old women dancing, low angle", "two young women dancing, low angle"),
    }
    assert main(arguments) == 2  # nothing is overwritten
    (tmp_path / "axes.json").write_text("{}", encoding="utf-8")
    out.unlink()
    assert main(arguments) == 2
    assert "needs lists actions, attributes" in capsys.readouterr().out


def test_the_pose_of_these_tests_is_sound():
    assert check_pose(frame_from_people(standing(), SIZE, SIZE), "a man") == []
