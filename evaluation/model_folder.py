"""A model in a folder as Hugging Face's hub lays it out, read by Transformers' own classes, and in the hands of ComfyUI's memory
management while it works.

Nothing is fetched and no code of the folder is run. Weights are safetensors, or a .bin that PyTorch reads as weights only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import CoreModelPatcher

from .errors import EvaluationError


class HeldModel:
    """A network that ComfyUI moves to its device when it is called, and away when the room is needed."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network: Any = network.eval()
        # ComfyUI notes things on the model it holds, for which Transformers' own classes leave no room.
        self._patcher = CoreModelPatcher(
            torch.nn.ModuleDict({"network": network}),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def run(self, ask: Callable[[Any, torch.device], torch.Tensor]) -> torch.Tensor:
        """What `ask(network, device)` gives, as float32 on the CPU."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        comfy.model_management.load_models_gpu([self._patcher], force_full_load=True)
        with torch.inference_mode():
            return ask(self.network, self._patcher.load_device).float().cpu()


def model_type(folder: Path) -> str:
    """What kind of model a folder holds, by its config.json.

    Raises:
        EvaluationError: there is no such folder, or its config.json says nothing.
    """
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder.name}; choose a model's folder")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"{folder.name} has no config.json; copy the model's whole folder") from None
    except (OSError, ValueError):
        config = None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise EvaluationError(f"{folder.name} has a config.json that names no kind of model; copy the model again")
    return kind


def read_network(folder: Path, loader: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The model of a folder.

    Args:
        loader: a class of Transformers with `from_pretrained`.
        options: further arguments of the model.

    Raises:
        EvaluationError: it cannot be read, or weights are missing.
    """
    network, info = read_part(
        folder,
        lambda: loader.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            dtype=dtype,
            **options,
        ),
    )
    lacking = _names([*info["missing_keys"], *info["mismatched_keys"]])
    if lacking:
        raise EvaluationError(f"{folder.name} lacks weights such as {lacking[0]}; copy the whole model again")
    return network


def _names(keys: Iterable[Any]) -> list[str]:
    """Weights by name; one of another shape comes with its shapes."""
    return sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)


def read_part(folder: Path, read: Callable[[], Any]) -> Any:
    """What Transformers reads from a folder, whose many ways to fail mean one thing."""
    try:
        return read()
    except Exception as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise EvaluationError(f"{folder.name} cannot be read ({first}); copy the whole model again") from None


def image_processor(folder: Path, **options: Any) -> Any:
    """How the model of a folder sees pictures, in Pillow's arithmetic, with which the published scores were made.

    Args:
        options: what is to be other than the folder says.
    """
    import transformers

    new = int(transformers.__version__.split(".")[0]) >= 5
    options |= {"backend": "pil"} if new else {"use_fast": False}
    return read_part(
        folder,
        lambda: transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        ),
    )
