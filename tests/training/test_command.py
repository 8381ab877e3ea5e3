"""The command line as processes of its own: killed, stopped, on a full disk, with bad arguments."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from comfyui_ensemble.training.checkpoint import read_checkpoint
from comfyui_ensemble.training.command import TRAINERS, main
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.shortage import shortage_in_one_sentence
from devtools.tiny_trainings import SYSTEMS, tiny_arguments, write_config
from devtools.toy_training import TRAINER, command


def newest(out: Path) -> Path:
    return sorted((out / "checkpoints").glob("step-*.safetensors"))[-1]


# The processes that are killed are forked from one that has imported everything, where the system can do that.
_START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@pytest.fixture(scope="module")
def start() -> Callable[..., Any]:
    """`start(out, *arguments)`: the command with the toy trainer, as a process of its own."""
    context: Any = multiprocessing.get_context(_START)
    if _START == "forkserver":
        context.set_forkserver_preload(["devtools.toy_training"])

    def begin(out: Path, *arguments: str, **around: Any) -> Any:
        process = context.Process(target=command, args=("--out", str(out), *arguments), kwargs=around)
        process.start()
        return process

    return begin


def finished(process: Any) -> int:
    process.join(120)
    return process.exitcode


def weights(out: Path) -> bytes:
    return (out / "weights" / "loras" / "training.safetensors").read_bytes()


def files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def wait_for(path: Path, process: Any) -> None:
    for _ in range(6000):
        if path.exists() or not process.is_alive():
            return
        time.sleep(0.01)


@pytest.mark.parametrize("trainer", SYSTEMS)
def test_a_system_s_killed_training_goes_on_bit_identical(
    trainer: str, tmp_path: Path, start: Callable[..., Any], tiny_models: Path
) -> None:
    config = write_config(tmp_path / "config.json", trainer, steps=6, save_every=1, keep=9, picture_every=4)
    arguments = ("--config", str(config), *tiny_arguments(trainer, tiny_models))
    through, killed = tmp_path / "through", tmp_path / "killed"
    whole, process = (start(out, *arguments, trainer=trainer) for out in (through, killed))
    wait_for(killed / "checkpoints" / "step-00000002.safetensors", process)
    process.kill()
    assert finished(process) == -signal.SIGKILL and newest(killed).name < "step-00000006"
    assert finished(start(killed, *arguments, trainer=trainer)) == 0 and finished(whole) == 0
    saved = [
        path.relative_to(through)
        for part in ("weights", "checkpoints", "pictures")
        for path in files_in(through / part)
    ]
    assert len(saved) >= 8
    for path in saved:
        assert (killed / path).read_bytes() == (through / path).read_bytes(), path


def test_killed_at_random_moments_and_resumed_is_bit_identical(tmp_path: Path, start: Callable[..., Any]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"steps": 60, "save_every": 2, "picture_every": 7, "accumulation": 2, "keep": 2}))
    through, killed = tmp_path / "through", tmp_path / "killed"
    assert finished(start(through, "--config", str(config))) == 0
    random = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    for attempt in range(5):
        process = start(killed, "--config", str(config), "--step-seconds", "0.01")
        wait_for(killed / "checkpoints", process)
        time.sleep(random.uniform(0, 0.4))
        process.kill()
        assert finished(process) in (-signal.SIGKILL, 0), attempt
    assert finished(start(killed, "--config", str(config))) == 0
    assert weights(killed) == weights(through)
    assert (killed / "log.jsonl").read_text() == (through / "log.jsonl").read_text()
    ended = [sorted(path.name for path in (out / "checkpoints").iterdir()) for out in (through, killed)]
    assert ended[0] == ended[1] == ["step-00000058.safetensors", "step-00000060.safetensors"]
    for name in ended[0]:
        assert (killed / "checkpoints" / name).read_bytes() == (through / "checkpoints" / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint(tmp_path: Path, start: Callable[..., Any], number: int) -> None:
    process = start(tmp_path, "--step-seconds", "0.02")
    wait_for(tmp_path / "checkpoints", process)
    os.kill(process.pid, number)
    assert finished(process) == 130
    steps = len((tmp_path / "log.jsonl").read_text().splitlines())
    assert newest(tmp_path).name == f"step-{steps:08d}.safetensors" and 5 <= steps < 40


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files stands for the full disk")
def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, start: Callable[..., Any]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"steps": 10}))
    out = tmp_path / "out"
    wide = ("--width", "4096", "--config", str(config))
    assert finished(start(out, *wide)) == 0
    before = newest(out).read_bytes()
    config.write_text(json.dumps({"steps": 40}))
    assert finished(start(out, *wide, largest_file=200_000, said=tmp_path / "said")) == 2
    said = (tmp_path / "said").read_text()
    assert "the checkpoint of step 15 could not be written" in said and "File too large" in said
    assert "step-00000010.safetensors is whole" in said and "Traceback" not in said
    assert newest(out).name == "step-00000010.safetensors" and newest(out).read_bytes() == before
    assert not list((out / "checkpoints").glob(".*"))
    assert finished(start(out, *wide)) == 0


def test_weights_are_left_in_the_folder_and_saved_by_name(tmp_path: Path, toy: None) -> None:
    assert main(["toy", "--out", str(tmp_path)]) == 0
    saved = load_file(tmp_path / "weights" / "loras" / "training.safetensors")
    checkpoint = read_checkpoint(newest(tmp_path))
    for name, value in saved.items():
        assert (value == checkpoint.tensors[f"average/{name}"]).all()
    assert (tmp_path / "weights" / "loras" / "training_shift.safetensors").is_file()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TRAINERS, "toy", TRAINER)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no trainer 'nothing'; choose one of: "),
        (["toy", "--save-as", "../away"], "'../away' cannot be a file's name"),
        (
            ["toy", "--config", "nowhere.json"],
            "--config nowhere.json: it cannot be read (No such file or directory); give a JSON file of settings, or leave"
            " --config out.",
        ),
        (["toy", "--config", os.curdir], f"--config {os.curdir}: it cannot be read ("),
    ],
)
def test_bad_arguments(
    tmp_path: Path, toy: None, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert said in printed and "Traceback" not in printed and len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"steps": 3}'.encode("utf-16"), "it is not in UTF-8; save it again in that encoding."),
        (b'{"steps": 3', "it is not JSON (Expecting ',' delimiter: line 1 column 12 (char 11)); write it like"),
        (b'\xef\xbb\xbf{"steps": 0}', "steps is 0; it must be at least 1."),
    ],
)
def test_a_config_that_will_not_do_is_named(
    tmp_path: Path, toy: None, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    config = tmp_path / "config.json"
    config.write_bytes(content)
    assert main(["toy", "--out", str(tmp_path / "out"), "--config", str(config)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"--config {config}: {said}") and len(printed.strip().splitlines()) == 1


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path, toy: None) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"steps": 3}', encoding="utf-8-sig")
    assert main(["toy", "--out", str(tmp_path / "out"), "--config", str(config)]) == 0
    assert newest(tmp_path / "out").name == "step-00000003.safetensors"


@pytest.mark.parametrize("place", ["taken", "taken/below", "taken/below/that"])
def test_a_folder_that_cannot_be_made(
    tmp_path: Path, toy: None, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    out = tmp_path / place
    assert main(["toy", "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"{out} cannot be written to (") and "; give another folder (--out) or " in printed
    assert len(printed.strip().splitlines()) == 1
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.parametrize("place", [".", "out", "out/log.jsonl"])
def test_a_folder_that_may_not_be_written(tmp_path: Path, place: str) -> None:
    sentence = r"out cannot be written to \(Permission denied\); give another folder \(--out\) or another name \(run\), or make"
    with pytest.raises(TrainingError, match=sentence), shortage_in_one_sentence(tmp_path / "out"):
        raise PermissionError(13, "Permission denied", str(tmp_path / place))


def test_an_error_of_the_system_about_something_else_is_not_the_folders(tmp_path: Path) -> None:
    for error in (PermissionError(13, "Permission denied", str(tmp_path / "model")), OSError(5, "Input/output error")):
        with pytest.raises(OSError) as raised, shortage_in_one_sentence(tmp_path / "out"):
            raise error
        assert raised.value is error


def test_a_bad_setting_and_another_run_are_said_in_a_sentence(
    tmp_path: Path, toy: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"learning_rate": NaN}')
    assert main(["toy", "--out", str(tmp_path / "out"), "--config", str(config)]) == 2
    assert (
        capsys.readouterr().err == f"--config {config}: learning_rate is nan; give a number above 0, such as 0.0001.\n"
    )
    config.write_text('{"steps": 3}')
    assert main(["toy", "--out", str(tmp_path / "out"), "--config", str(config)]) == 0
    config.write_text('{"steps": 3, "seed": 5}')
    capsys.readouterr()
    assert main(["toy", "--out", str(tmp_path / "out"), "--config", str(config)]) == 2
    assert "with seed 0, not 5" in capsys.readouterr().err
    assert main(["toy", "--out", str(tmp_path / "out"), "--config", str(config), "--fresh"]) == 0


def test_help_lists_the_trainers(toy: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "toy " in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["toy", "--help"])
    assert ended.value.code == 0 and "--step-seconds" in capsys.readouterr().out


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, toy: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["toy", "--out", str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1/40: loss ")
    assert any(line.startswith("step 40/40: loss ") and "waited for data" in line for line in lines)
    assert len(lines) < 12 and not any("\r" in line for line in lines)
