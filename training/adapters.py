"""What a training begins with: fresh adapters, or files that are there already."""

from __future__ import annotations

from pathlib import Path

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ..models_info.registry import find_file
from .errors import TrainingError
from .lora import ALPHA, DOWN, load_lora_state
from .model import TrainableModel, trainable_network

LORAS = "loras"


def existing_file(setting: str, folder: str, name: str) -> Path:
    """The file of ComfyUI's folder that a setting names.

    Raises:
        TrainingError: it is not there.
    """
    path = find_file(folder, name)
    if path is None:
        raise TrainingError(
            f"{setting} is '{name}', which is not in models/{folder}; put it there, or leave {setting} out"
        )
    return path


def continue_lora(model: TrainableModel, name: str, rank: int) -> None:
    """Let the LoRAs of a model begin with the values of a file in models/loras.

    Raises:
        TrainingError: the file is not there, or is no LoRA of this rank for this model.
    """
    state: dict[str, torch.Tensor] = comfy.utils.load_torch_file(
        str(existing_file("lora", LORAS, name)), safe_load=True
    )  # type: ignore[assignment]
    ranks = {value.shape[0] for key, value in state.items() if key.endswith(DOWN)}
    if ranks != {rank}:
        its = ", ".join(map(str, sorted(ranks))) or "none"
        raise TrainingError(
            f"lora is '{name}', whose rank is {its}, while lora_rank is {rank}; set lora_rank to that of the file"
        )
    alphas = {float(value) for key, value in state.items() if key.endswith(ALPHA)}
    if alphas - {float(rank)}:
        raise TrainingError(f"lora is '{name}', whose alpha is not its rank; choose a LoRA that was trained here")
    try:
        load_lora_state(model.modules()["lora"], state)  # type: ignore[arg-type]
    except ValueError as error:
        raise TrainingError(f"lora is '{name}', which does not fit this model: {error}") from None


def resident(adapter: ModelPatcher) -> ModelPatcher:
    """A trainable copy of an adapter that stays on the device it is trained on, where its optimizer expects it."""
    own = trainable_network(adapter)
    own.offload_device = own.load_device
    own.model.to(own.load_device)
    return own
