"""The loop on a training of milliseconds: against a plain loop in float64, and against itself interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from PIL import Image
from safetensors.torch import load_file

from comfyui_ensemble.training.data import TrainingData
from comfyui_ensemble.training.errors import TrainingError
from comfyui_ensemble.training.loop import TrainingResult, train
from comfyui_ensemble.training.precision import GROWTH_STEPS, LossScale
from comfyui_ensemble.training.progress import Progress
from devtools.toy_training import ToyConfig, ToyTask, toy_data


def run(out: Path, task: ToyTask | None = None, data: TrainingData | None = None, **settings: Any) -> TrainingResult:
    other = {name: settings.pop(name) for name in ("report", "resume", "stopped") if name in settings}
    return train(task or ToyTask(), data or toy_data(), ToyConfig(**{"workers": 0, **settings}), out, **other)


def tensors(result: TrainingResult) -> dict[str, torch.Tensor]:
    return result.weights.files[0].tensors


def same(one: TrainingResult, other: TrainingResult) -> bool:
    return all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


def newest(out: Path) -> Path:
    return sorted((out / "checkpoints").glob("step-*.safetensors"))[-1]


def test_the_weights_are_those_of_a_plain_loop_in_double_precision(tmp_path: Path) -> None:
    """AdamW, warm-up, cosine, clipping, accumulation and the average, each written out from its equation."""
    settings = {
        "steps": 12,
        "batch_size": 3,
        "accumulation": 2,
        "warmup_steps": 4,
        "schedule": "cosine",
        "clip_norm": 0.2,
        "weight_decay": 0.1,
        "ema_decay": 0.9,
    }
    result = run(tmp_path, ToyTask(dropout=0.0), **settings)
    task, data = ToyTask(dropout=0.0), toy_data()
    with torch.inference_mode(False), torch.enable_grad():
        parameters = {
            f"{part}.{name}": value
            for part, module in task.modules().items()
            for name, value in module.named_parameters()
        }
        present = {name: value.detach().double() for name, value in parameters.items()}
        first = {name: torch.zeros_like(value) for name, value in present.items()}
        second = {name: torch.zeros_like(value) for name, value in present.items()}
        average = dict(present)
        for step in range(12):
            draws = data.batch(step, 6)
            batch = [task.prepare(data.load(draw), draw.position) for draw in draws]
            loss = task.losses(batch, range(6 * step, 6 * step + 6))["loss"].mean()
            gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
            norm = math.sqrt(sum(float(value.double().square().sum()) for value in gradients.values()))
            assert result.history[step]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
            assert result.history[step]["loss"] == pytest.approx(loss.item(), rel=1e-4)
            factor = min(1.0, 0.2 / (norm + 1e-6))
            rate = 0.01 * (step + 1) / 4 if step < 4 else 0.01 * (1 + math.cos(math.pi * (step - 4) / 8)) / 2
            decay = min(0.9, (2 + step) / (11 + step))
            for name, gradient in gradients.items():
                gradient = gradient.double() * factor
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                kept = 1 - rate * (0.1 if gradient.ndim > 1 else 0.0)
                moved = (first[name] / (1 - 0.9 ** (step + 1))) / (
                    (second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                )
                present[name] = present[name] * kept - rate * moved
                average[name] = decay * average[name] + (1 - decay) * present[name]
                parameters[name].data.copy_(present[name])
    for name, value in tensors(result).items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-4, atol=1e-5)
    assert [entry["learning_rate"] for entry in result.history[:4]] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", ToyTask(dropout=0.0), batch_size=4)
    halves = run(tmp_path / "halves", ToyTask(dropout=0.0), batch_size=2, accumulation=2)
    for name, value in tensors(whole).items():
        torch.testing.assert_close(tensors(halves)[name], value, rtol=1e-4, atol=1e-6)
    assert [entry["loss"] for entry in halves.history] == pytest.approx(
        [entry["loss"] for entry in whole.history], rel=1e-4
    )


def test_workers_change_nothing(tmp_path: Path) -> None:
    assert same(run(tmp_path / "none", workers=0), run(tmp_path / "three", workers=3))


def test_pictures_and_checkpoints_change_nothing(tmp_path: Path) -> None:
    assert same(run(tmp_path / "bare", save_every=0), run(tmp_path / "full", picture_every=3, save_every=1, keep=1))


def test_it_learns_and_leaves_inference_mode(tmp_path: Path) -> None:
    """The autouse fixture runs the test in inference mode, as the host runs nodes."""
    assert torch.is_inference_mode_enabled()
    result = run(tmp_path, steps=80, warmup_steps=0)
    losses = [entry["loss"] for entry in result.history]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert not comfy.model_management.in_training and torch.is_inference_mode_enabled()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_with_float32_weights(tmp_path: Path, precision: str) -> None:
    result = run(tmp_path, steps=80, warmup_steps=0, precision=precision)
    losses = [entry["loss"] for entry in result.history]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert {value.dtype for value in tensors(result).values()} == {torch.float32}
    full = run(tmp_path / "full", steps=80, warmup_steps=0)
    assert not same(result, full)
    assert sum(losses) == pytest.approx(sum(entry["loss"] for entry in full.history), rel=0.1)


def test_float16_overflow_halves_the_scale_and_spares_the_weights(tmp_path: Path) -> None:
    before = {name: value.detach().clone() for name, value in ToyTask().network.named_parameters()}
    result = run(tmp_path, ToyTask(loss_factor=1e3), steps=3, precision="fp16", ema_decay=0.0)
    assert all(math.isinf(entry["gradient_norm"]) or math.isnan(entry["gradient_norm"]) for entry in result.history)
    for name, value in before.items():
        assert torch.equal(tensors(result)[f"network.{name}"], value)
    more = run(tmp_path, ToyTask(loss_factor=1e3), steps=60, precision="fp16", ema_decay=0.0)
    assert math.isfinite(more.history[-1]["gradient_norm"])
    assert not torch.equal(tensors(more)["network.0.weight"], before["0.weight"])


def test_the_loss_scale_grows_and_shrinks() -> None:
    scale = LossScale("fp16")
    first = scale.value
    for _ in range(GROWTH_STEPS):
        scale.update(finite=True)
    assert scale.value == 2 * first
    for _ in range(GROWTH_STEPS - 1):
        scale.update(finite=True)
    scale.update(finite=False)
    assert scale.value == first
    for _ in range(GROWTH_STEPS - 1):
        scale.update(finite=True)
    assert scale.value == first  # the count began anew
    again = LossScale("fp16")
    again.restore(json.loads(json.dumps(scale.state())))
    again.update(finite=True)
    assert again.value == 2 * first


def stop_after(step: int) -> tuple[Callable[[Progress], None], Callable[[], bool]]:
    seen: list[int] = []
    return lambda progress: seen.append(progress.step), lambda: bool(seen) and seen[-1] >= step


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stopped_and_resumed_is_bit_identical(tmp_path: Path, precision: str) -> None:
    settings: dict[str, Any] = {"precision": precision, "accumulation": 2, "schedule": "cosine", "save_every": 7}
    settings |= {"steps": 20}
    through = run(tmp_path / "through", **settings)
    report, stopped = stop_after(9)
    half = run(tmp_path / "half", **settings, report=report, stopped=stopped)
    assert not half.finished and half.step == 9
    assert newest(tmp_path / "half").name == "step-00000009.safetensors"
    rest = run(tmp_path / "half", **{**settings, "workers": 2, "save_every": 0})
    assert rest.finished and rest.step == 20 and same(rest, through)
    assert rest.history == through.history
    assert newest(tmp_path / "half").read_bytes() == newest(tmp_path / "through").read_bytes()


def test_a_finished_run_gives_its_weights_at_once(tmp_path: Path) -> None:
    first = run(tmp_path)
    again = run(tmp_path, ToyTask(seed=0))
    assert same(first, again) and again.history == first.history and again.finished


def test_more_steps_continue_a_finished_run(tmp_path: Path) -> None:
    run(tmp_path / "two", steps=10)
    assert same(run(tmp_path / "two", steps=25), run(tmp_path / "one", steps=25))


def test_beginning_afresh_keeps_the_old_run_aside(tmp_path: Path) -> None:
    run(tmp_path, steps=10)
    fresh = run(tmp_path, steps=3, learning_rate=0.1, resume=False)
    assert len(fresh.history) == 3
    assert (tmp_path / "earlier-1" / "checkpoints" / "step-00000010.safetensors").is_file()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003.safetensors"]


@pytest.mark.parametrize(
    ("settings", "said", "input_name"),
    [
        ({"learning_rate": 0.5}, "with learning_rate 0.01, not 0.5", "config"),
        ({"widths": (1, 2)}, "with widths [8, 8], not [1, 2]", "config"),
        ({"batch_size": 2}, "with batch_size 4, not 2", "config"),
        ({"data": toy_data(count=7)}, "with other training data", "data"),
        ({"task": "other model"}, "with base model toy 8, not toy 9", "model"),
        ({"task": "other trainer"}, "with trainer toy, not plaything", "model"),
    ],
)
def test_another_configuration_model_or_data_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str, input_name: str
) -> None:
    run(tmp_path, steps=5)
    before = newest(tmp_path).read_bytes()
    task = ToyTask()
    if settings.get("task") == "other model":
        task.identity = lambda: {"base model": "toy 9"}  # type: ignore[method-assign]
    if settings.get("task") == "other trainer":
        task.name = "plaything"
    with pytest.raises(TrainingError) as raised:
        run(tmp_path, **{**settings, "task": task})
    assert said in str(raised.value) and "give this one another name" in str(raised.value)
    assert raised.value.input_name == input_name
    assert newest(tmp_path).read_bytes() == before


def test_what_a_step_does_not_depend_on_may_differ(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    run(tmp_path, steps=6, save_every=1, keep=1, picture_every=2, workers=1, gradient_checkpointing=True)


class Breaking(ToyTask):
    """Raises, or gives what is no number, from the n-th sample on."""

    error: BaseException | float = math.nan
    start = 0

    def losses(self, batch: Sequence[Any], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        losses = super().losses(batch, positions)
        if positions[-1] < self.start:
            return losses
        if isinstance(self.error, BaseException):
            raise self.error
        return {**losses, "loss": losses["loss"] * self.error}


def breaking(error: BaseException | float, step: int) -> Breaking:
    task = Breaking()
    task.error, task.start = error, 4 * step
    return task


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_loss_that_is_no_number_ends_in_a_sentence(tmp_path: Path, value: float, precision: str) -> None:
    with pytest.raises(TrainingError) as raised:
        run(tmp_path, breaking(value, 12), precision=precision, keep=9)
    assert "is not a finite number in step" in str(raised.value) and "smaller learning_rate" in str(raised.value)
    assert "the checkpoint of step" in str(raised.value) and "\n" not in str(raised.value)
    if precision != "fp16":
        assert newest(tmp_path).name == "step-00000010.safetensors"  # 11 and 12 were good, but who knows
    good = load_file(newest(tmp_path))
    assert all(torch.isfinite(tensor).all() for tensor in good.values())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_what_to_lower(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(TrainingError) as raised:
        run(tmp_path, breaking(error, 12))
    for setting in ("batch_size", "resolution", "gradient_checkpointing", "lora_rank"):
        assert setting in str(raised.value)
    assert "\n" not in str(raised.value)
    assert newest(tmp_path).name == "step-00000012.safetensors"  # what was learned so far is kept
    through = run(tmp_path / "through")
    assert same(run(tmp_path, gradient_checkpointing=True), through)


def test_really_out_of_memory(tmp_path: Path) -> None:
    class Greedy(ToyTask):
        def losses(self, batch: Sequence[Any], positions: Sequence[int]) -> dict[str, torch.Tensor]:
            torch.empty(2**50)
            return super().losses(batch, positions)

    with pytest.raises(TrainingError, match="not enough memory"):
        run(tmp_path, Greedy())


def test_another_error_passes_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        run(tmp_path, breaking(KeyError("broken"), 7))
    assert newest(tmp_path).name == "step-00000007.safetensors"


def test_the_hosts_interrupt_leaves_a_checkpoint_and_passes(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.step == 8:
            comfy.model_management.interrupt_current_processing()

    try:
        with pytest.raises(InterruptProcessingException):
            run(tmp_path, report=interrupt)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert newest(tmp_path).name == "step-00000008.safetensors"
    assert not comfy.model_management.in_training
    assert same(run(tmp_path), run(tmp_path / "through"))


@pytest.mark.parametrize("where", ["report", "sampler"])
def test_an_interrupt_raised_anywhere_leaves_a_checkpoint(tmp_path: Path, where: str) -> None:
    def report(progress: Progress) -> None:
        if where == "report" and progress.step == 8:
            raise InterruptProcessingException

    class Sampled(ToyTask):
        def picture(self) -> torch.Tensor:
            raise InterruptProcessingException

    with pytest.raises(InterruptProcessingException):
        run(tmp_path, Sampled(), picture_every=8, report=report)
    assert newest(tmp_path).name == "step-00000008.safetensors"
    assert same(run(tmp_path), run(tmp_path / "through"))


def test_two_trainings_cannot_write_to_one_folder(tmp_path: Path) -> None:
    def second(progress: Progress) -> None:
        with pytest.raises(TrainingError, match="another training writes to"):
            run(tmp_path / "run")

    run(tmp_path / "run", steps=1, report=second)


def test_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    task = ToyTask()
    for module in task.modules().values():
        module.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter"):
        run(tmp_path, task)


def test_frozen_parts_stay_as_they_are(tmp_path: Path) -> None:
    task = ToyTask()
    task.shift.requires_grad_(False)
    before = task.shift.weight.detach().clone()
    result = run(tmp_path, task)
    assert torch.equal(tensors(result)["shift.weight"], before)


def test_weights_and_pictures_are_averaged_while_training_goes_on(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watched(ToyTask):
        def picture(self) -> torch.Tensor:
            seen.append(self.shift.weight.detach().clone())
            return super().picture()

    task = Watched()
    result = run(tmp_path, task, ema_decay=0.95, picture_every=40, learning_rate=0.05)
    saved = load_file(newest(tmp_path))
    assert torch.equal(tensors(result)["shift.weight"], saved["average/shift.weight"])
    assert torch.equal(seen[0], saved["average/shift.weight"])
    assert torch.equal(task.shift.weight, saved["weight/shift.weight"])
    assert not torch.equal(saved["average/shift.weight"], saved["weight/shift.weight"])


def test_log_plot_pictures_and_event_files(tmp_path: Path) -> None:
    reports: list[Progress] = []
    result = run(tmp_path, picture_every=20, report=reports.append)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == result.history and [line["step"] for line in lines] == list(range(1, 41))
    assert set(lines[0]) == {"step", "loss", "error", "learning_rate", "gradient_norm"}
    picture = np.asarray(Image.open(tmp_path / "pictures" / "step-00000040.png"))
    assert picture.shape == (16, 24, 3)
    assert Image.open(tmp_path / "loss.png").size == (640, 360)
    assert [progress.step for progress in reports] == list(range(1, 41))
    assert [progress.step for progress in reports if progress.picture is not None] == [20, 40]
    assert reports[-1].remaining == 0 and 0 <= reports[-1].waited <= 1
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "error", "learning_rate", "gradient_norm"}
    scalars = events.Scalars("loss")
    assert [scalar.step for scalar in scalars] == list(range(1, 41))
    assert [scalar.value for scalar in scalars] == pytest.approx([entry["loss"] for entry in lines])
    assert [image.step for image in events.Images("picture")] == [20, 40]


def test_a_log_that_was_cut_off_is_mended(tmp_path: Path) -> None:
    report, stopped = stop_after(10)
    run(tmp_path, report=report, stopped=stopped)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 11, "loss": 1.0}\n{"step": 12, "lo')
    result = run(tmp_path)
    assert result.history == run(tmp_path / "through").history
