"""What the files of this pack's adapters have in common.

An adapter's file is a safetensors file whose metadata has one key, a JSON object that says at least ``format`` and
``version``: one key, because several are written in random order. Sizes are read from the tensors. The modules
`dsm_file` and `dam_file` say what else stands in theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..models_info.files import whole_file


class AdapterError(ValueError):
    """An adapter file that cannot be used; the message is one sentence fit for an artist."""


@dataclass(frozen=True)
class AdapterFormat:
    """One kind of adapter file.

    Attributes:
        header: the metadata's key.
        name, version: what its ``format`` and ``version`` say.
        noun: how an artist calls such an adapter.
        error: raised where a file will not do.
    """

    header: str
    name: str
    version: str
    noun: str
    error: type[AdapterError]

    def write(self, path: Path, weights: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
        """Write an adapter's file, whole or not at all; `header` is what the metadata says besides format and version."""
        tensors = {name: value.contiguous() for name, value in weights.items()}
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata=self.metadata(header))

    def metadata(self, header: Mapping[str, Any]) -> dict[str, str]:
        """What the file's metadata says; `header` as in `write`."""
        return {self.header: json.dumps({"format": self.name, "version": self.version, **header})}

    def read_header(self, path: Path) -> dict[str, Any]:
        """The metadata's JSON object, of this format and version."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get(self.header, "{}"))
        except (SafetensorError, OSError, json.JSONDecodeError):
            raise self.error("it is no whole safetensors file; download or copy it again") from None
        if not isinstance(header, dict) or header.get("format") != self.name:
            raise self.error(f"it is no {self.noun} of this pack; choose another file")
        if header.get("version") != self.version:
            raise self.error(
                f"its format has version {header.get('version')}, this pack reads {self.version}; update the pack"
            )
        return header

    def size(self, weights: Mapping[str, torch.Tensor], name: str, axis: int = 0) -> int:
        """A side of the tensor `name`, which must be there."""
        if name not in weights or weights[name].ndim <= axis:
            raise self.damaged(name)
        return weights[name].shape[axis]

    def check_shapes(self, weights: Mapping[str, torch.Tensor], network: torch.nn.Module) -> None:
        """Raise where a tensor of `network` is missing or of another shape, or where there is one more."""
        expected = network.state_dict()
        for name in sorted(expected.keys() | weights.keys()):
            if name not in expected or name not in weights or expected[name].shape != weights[name].shape:
                raise self.damaged(name)

    def damaged(self, name: str) -> AdapterError:
        """The error for a tensor that will not do."""
        return self.error(f"its tensor '{name}' is missing or of another shape; download or copy it again")


def adapter_patcher(
    network: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    load: Callable[..., ModelPatcher],
    source: Any,
    disable_dynamic: bool,
) -> ModelPatcher:
    """`network` with `weights` for the host's memory manager to load and offload; `load(source)` is how it gets a copy."""
    kind = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = kind(
        network,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    network.load_state_dict(weights, assign=patcher.is_dynamic())
    network.requires_grad_(False)  # as the host's own models are; a training makes a copy that it asks gradients of
    patcher.cached_patcher_init = (load, (source,))
    return patcher
