"""Several processes on one machine learn what one process learns."""

from __future__ import annotations

import json
import multiprocessing
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from devtools.tiny_trainings import SYSTEMS, tiny_arguments, write_config
from devtools.toy_training import command

pytest.importorskip("accelerate")
pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="the processes talk by gloo over forks"
)

SETTINGS = {
    "steps": 20,
    "batch_size": 5,
    "accumulation": 2,
    "clip_norm": 0.2,
    "schedule": "cosine",
    "picture_every": 10,
}
PLAIN = ("--dropout", "0")  # dropout draws by process


@pytest.fixture(scope="module")
def together() -> Callable[..., list[int]]:
    """`together(count, out, *arguments)`: the command in so many processes, with what a launcher tells each; exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["devtools.toy_training"])

    def run(count: int, out: Path, *arguments: str, said: Path | None = None, trainer: str = "toy") -> list[int]:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        shared["OMP_NUM_THREADS"] = "1"  # alone as well: sums in as many parts
        shared |= {"MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"} if count > 1 else {}
        processes = []
        for rank in range(count):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            keywords = {"environment": environment, "said": said if rank == 0 else None, "trainer": trainer}
            processes.append(context.Process(target=command, args=("--out", str(out), *arguments), kwargs=keywords))
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]

    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, together: Callable[..., list[int]]) -> tuple[Path, Path]:
    """The configuration, and the folder of the run that one process made of it."""
    folder = tmp_path_factory.mktemp("alone")
    config = folder / "config.json"
    config.write_text(json.dumps(SETTINGS))
    assert together(1, folder / "run", "--config", str(config), *PLAIN) == [0]
    return config, folder / "run"


def last(out: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((out / "checkpoints").glob("*.safetensors"))[-1])


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same(out: Path, alone: Path) -> None:
    """Weights, averages and the optimizer's moments agree up to the order of sums, and so do losses."""
    ours, theirs = last(out), last(alone)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        error = (ours[name] - value).abs().max() / value.abs().max().clamp_min(1e-6)
        assert error < 2e-5, (name, error)
    for one, other in zip(log(out), log(alone), strict=True):
        assert one == pytest.approx(other, rel=2e-5)
    files = [load_file(run / "weights" / "loras" / "training.safetensors") for run in (out, alone)]
    for name, value in files[1].items():
        torch.testing.assert_close(files[0][name], value, rtol=2e-5, atol=1e-6)
    assert (out / "pictures" / "step-00000020.png").is_file()


@pytest.mark.parametrize("sharing", [(), ("--fsdp",)], ids=["copies", "shares"])
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_learn_what_one_does(
    tmp_path: Path,
    together: Callable[..., list[int]],
    alone: tuple[Path, Path],
    sharing: tuple[str, ...],
    count: int,
) -> None:
    """A batch of 5 is not shared evenly."""
    assert together(count, tmp_path, "--config", str(alone[0]), *PLAIN, *sharing) == [0] * count
    assert_same(tmp_path, alone[1])


def test_any_number_of_processes_continues_a_run(
    tmp_path: Path, together: Callable[..., list[int]], alone: tuple[Path, Path]
) -> None:
    config = tmp_path / "config.json"
    rounds = [(2, 5, ("--fsdp",)), (1, 9, ()), (3, 12, ("--fsdp",)), (2, 15, ()), (2, 20, ("--fsdp",))]
    for count, steps, sharing in rounds:
        config.write_text(json.dumps({**SETTINGS, "steps": steps, "schedule": "constant"}))
        assert together(count, tmp_path / "run", "--config", str(config), *PLAIN, *sharing) == [0] * count
    assert together(1, tmp_path / "through", "--config", str(config), *PLAIN) == [0]
    assert_same(tmp_path / "run", tmp_path / "through")


def test_more_processes_than_samples_are_refused(tmp_path: Path, together: Callable[..., list[int]]) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"batch_size": 1}))
    said = tmp_path / "said"
    assert together(2, tmp_path / "run", "--config", str(config), said=said) == [2, 2]
    assert said.read_text() == "batch_size is 1, and 2 processes share a batch; give each at least one.\n"


@pytest.mark.parametrize("trainer", SYSTEMS)
def test_a_system_learns_in_two_processes_what_it_does_in_one(
    trainer: str, tmp_path: Path, together: Callable[..., list[int]], tiny_models: Path
) -> None:
    """Of the same batches: one process takes their pictures one after the other, as each of two takes one."""
    arguments = tiny_arguments(trainer, tiny_models)
    outs = [tmp_path / "one", tmp_path / "two"]
    for count, out, batch in ((1, outs[0], {"batch_size": 1, "accumulation": 2}), (2, outs[1], {"batch_size": 2})):
        config = write_config(tmp_path / f"{count}.json", trainer, steps=3, precision="fp32", **batch)
        assert together(count, out, "--config", str(config), *arguments, trainer=trainer) == [0] * count
    one, two = (last(out) for out in outs)
    assert set(one) == set(two)
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        # All of them together: some gradients are 0 but for rounding.
        ours, theirs = (
            torch.cat([run[name].flatten() for name in sorted(run) if name.startswith(f"{kind}/")])
            for run in (two, one)
        )
        error = (ours - theirs).norm() / theirs.norm()
        assert theirs.norm() > 0 and error < 1e-5, (kind, error)
    for mine, its in zip(log(outs[1]), log(outs[0]), strict=True):
        assert mine == pytest.approx(its, rel=1e-5)


def test_under_a_real_launcher(tmp_path: Path, alone: tuple[Path, Path]) -> None:
    machine = ["--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = ["-m", "accelerate.commands.launch", *machine, "--use_fsdp", "--fsdp_version", "2"]
    module = ["-m", "devtools.toy_training", "--out", str(tmp_path), "--config", str(alone[0]), *PLAIN]
    started = [sys.executable, *launcher, *module]
    done = subprocess.run(started, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path, alone[1])
