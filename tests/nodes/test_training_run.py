"""A training as a node runs it: in inference mode, with progress in the page, stopped by the artist."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_execution.utils import CurrentNodeContext
from PIL import Image
from server import PromptServer

from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.training_config import check_config, config_input, config_sentence
from comfyui_ensemble.nodes.training_run import RUNS, run_training
from comfyui_ensemble.training.errors import TrainingError
from devtools.toy_training import ToyConfig, ToyTask, toy_data


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / RUNS


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, Any]]:
    """What the page's progress bar was told."""
    told: list[tuple[int, int, Any]] = []

    def hook(value: int, total: int, preview: Any, node_id: str | None = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()  # as the host's own hook
        told.append((value, total, preview))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return told


def train(build: Callable[[], Any] = lambda: (ToyTask(), toy_data()), **settings: Any) -> Any:
    return run_training("Train Toy", build, ToyConfig(**{"workers": 0, "run": "toy", **settings}))


def test_it_trains_into_the_output_folder(output: Path, bar: list[tuple[int, int, Any]]) -> None:
    result, plot = train(picture_every=20)
    assert result.finished and result.step == 40
    assert (output / "toy" / "checkpoints" / "step-00000040.safetensors").is_file()
    assert plot.shape == (1, 360, 640, 3) and plot.dtype == torch.float32 and 0 <= plot.min() < plot.max() <= 1
    assert bar[-1][:2] == (40, 40)
    kind, picture, _ = bar[-1][2]
    assert kind == "PNG" and isinstance(picture, Image.Image)
    assert picture.size == (640 + 540, 360)  # the plot, and the sample picture of 24 x 16 beside it


def test_what_was_built_in_the_node_can_learn() -> None:
    """A node runs in inference mode, whose tensors no gradient passes; `build` does not."""
    modes: list[bool] = []

    def build() -> Any:
        modes.append(torch.is_inference_mode_enabled() or not torch.is_grad_enabled())
        return ToyTask(), toy_data()

    assert torch.is_inference_mode_enabled()
    train(build)
    assert modes == [False] and torch.is_inference_mode_enabled()


def test_the_artists_interrupt_leaves_a_checkpoint_and_ends_the_node(
    output: Path, bar: list[tuple[int, int, Any]]
) -> None:
    class Stopped(ToyTask):
        def prepare(self, sample: Any, position: int) -> Any:
            if position == 48:
                comfy.model_management.interrupt_current_processing()
            return super().prepare(sample, position)

    with pytest.raises(InterruptProcessingException):
        train(lambda: (Stopped(), toy_data()))
    assert not comfy.model_management.processing_interrupted()
    assert (output / "toy" / "checkpoints" / "step-00000013.safetensors").is_file()
    result, _ = train()
    assert result.finished and [entry["step"] for entry in result.history] == list(range(1, 41))


def test_errors_name_node_input_and_remedy() -> None:
    train(steps=2)
    with pytest.raises(InputError) as raised:
        train(steps=2, learning_rate=0.5)
    assert str(raised.value).startswith(
        "Train Toy, config: there is a run 'toy' already, with learning_rate 0.01, not 0.5;"
    )
    with pytest.raises(InputError, match=r"^Train Toy, data: there is a run 'toy' already, with other training data;"):
        train(lambda: (ToyTask(), toy_data(seed=9)), steps=2)

    def build() -> Any:
        raise TrainingError("it is no FLUX; connect one", "model")

    with pytest.raises(InputError, match=r"^Train Toy, model: it is no FLUX; connect one\.$"):
        train(build)
    with pytest.raises(
        InputError, match=r"^Train Toy, config: the loss or its gradient is not a finite number in step 1;"
    ):
        train(lambda: (ToyTask(loss_factor=math.nan), toy_data()), run="bad")


def test_settings_are_checked_before_the_run() -> None:
    assert config_sentence("Train Toy", ToyConfig, None) is True
    assert config_sentence("Train Toy", ToyConfig, "") is True
    assert check_config("Train Toy", ToyConfig, '{"steps": 3}').steps == 3
    said = config_sentence("Train Toy", ToyConfig, '{"steps": "3"}')
    assert said == 'Train Toy, config: steps is "3"; it must be a whole number.'
    assert config_input(ToyConfig, "Such as steps.").id == "config"


def test_the_page_shows_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []

    class Page:
        def send_progress_text(self, text: str, node_id: str) -> None:
            told.append((text, node_id))

    monkeypatch.setattr(PromptServer, "instance", Page(), raising=False)
    with CurrentNodeContext("prompt", "7"):
        train(steps=5)
        train(steps=10)
    assert all(node == "7" for _, node in told)
    assert any(text.startswith("step 5/5: loss ") for text, _ in told)
    assert ("the run 'toy' continues after step 5.", "7") in told


def test_a_finished_training_is_out_of_memory_at_once() -> None:
    """Though its network holds itself, as one with a LoRA does, and Python's own collector has not come by."""
    networks: list[weakref.ref[Any]] = []

    def build() -> Any:
        task = ToyTask()
        network = task.network
        network.register_forward_hook(lambda *_: network.train() and None)
        networks.append(weakref.ref(network))
        return task, toy_data()

    gc.disable()
    try:
        train(build)
        assert [network() for network in networks] == [None]
    finally:
        gc.enable()
