"""A training run inside ComfyUI, for the training nodes; imported where one runs, with all that a training needs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ..training.config import TrainingConfig
from ..training.data import TrainingData
from ..training.errors import TrainingError
from ..training.loop import TrainingResult, train
from ..training.loss_plot import loss_plot
from ..training.progress import Progress
from ..training.task import Task
from ..training.terminal import progress_line
from .errors import InputError

RUNS = "ensemble_training"  # below ComfyUI's output folder
PREVIEW_SECONDS = 2.0


def run_training(
    node: str, build: Callable[[], tuple[Task, TrainingData]], config: TrainingConfig
) -> tuple[TrainingResult, torch.Tensor]:
    """Train, with progress in the page, into output/ensemble_training/<run>; the result and its loss plot (1, H, W, 3).

    Args:
        build: makes the task and its data; called where gradients can be computed.

    Raises:
        InputError: the training cannot begin or go on.
        InterruptProcessingException: the artist stopped it; there is a checkpoint.
    """
    folder = Path(folder_paths.get_output_directory()) / RUNS / config.run
    comfy.model_management.unload_all_models()  # what earlier nodes left on the device
    try:
        result = _trained(node, build, config, folder)
    except TrainingError as error:
        raise InputError(node, error.input_name, str(error)) from None
    finally:
        # A model's hooks hold the model, so only the collector frees it; by itself that waits for many objects, and these
        # are few and large.
        gc.collect()
    plot = np.asarray(loss_plot(result.history), dtype=np.float32) / 255.0
    return result, torch.from_numpy(plot)[None]


def _trained(
    node: str, build: Callable[[], tuple[Task, TrainingData]], config: TrainingConfig, folder: Path
) -> TrainingResult:
    # The host runs nodes in inference mode, whose tensors no gradient passes.
    with torch.inference_mode(False), torch.enable_grad():
        task, data = _built(node, build)
        return train(task, data, config, folder, PageReport(config.steps))


def _built(node: str, build: Callable[[], tuple[Task, TrainingData]]) -> tuple[Task, TrainingData]:
    try:
        return build()
    except TrainingError:
        raise
    except ValueError as error:  # a model that no trainer knows
        raise InputError(node, "model", str(error)) from None


class PageReport:
    """Shows a training in the page: the bar, the numbers below it, and the loss plot beside the newest sample picture."""

    def __init__(self, steps: int) -> None:
        self.bar = comfy.utils.ProgressBar(steps)
        self.entries: list[dict[str, float]] = []
        self.picture: Image.Image | None = None
        self.shown = float("-inf")

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            _show_text(progress.note + ".")
            return
        self.entries.append({"step": progress.step, "loss": progress.loss})
        if progress.picture is not None:
            pixels = (progress.picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
            self.picture = Image.fromarray(pixels)
        now = time.monotonic()
        if progress.picture is None and progress.step < progress.steps and now - self.shown < PREVIEW_SECONDS:
            self.bar.update_absolute(progress.step)  # raises where the artist stopped it
            return
        self.shown = now
        _show_text(progress_line(progress))
        self.bar.update_absolute(progress.step, preview=("PNG", self._preview(), None))

    def _preview(self) -> Image.Image:
        plot = loss_plot(self.entries)
        if self.picture is None:
            return plot
        width = max(1, round(self.picture.width * plot.height / self.picture.height))
        both = Image.new("RGB", (plot.width + width, plot.height))
        both.paste(plot, (0, 0))
        both.paste(self.picture.resize((width, plot.height), Image.Resampling.LANCZOS), (plot.width, 0))
        return both


def _show_text(text: str) -> None:
    """Write below the node that is running, where there is a page."""
    server: Any = getattr(PromptServer, "instance", None)
    context = get_executing_context()
    if server is not None and context is not None:
        server.send_progress_text(text, context.node_id)
