"""DAM's file: written by training, read by Load DAM.

One safetensors file whose metadata has the one key ``dam``, a JSON object: ``format`` "ensemble-dam", ``version`` "1",
``base`` (the family of the model it was made for, "flux") and ``t_min`` (the smallest temperature, 0.01 in the paper).
All sizes are those of its tensors, d_model being the width of the model's queries with all heads, d the generators' own:

=============================================  ==============================================================
tensor                                         shape
=============================================  ==============================================================
``double_blocks.B.mlp_in.weight``, ``.bias``   (d, d_model), (d,), one B a double block
``double_blocks.B.mlp_out.weight``, ``.bias``  (1, d), (1,)
``single_blocks.B.mlp_in.weight``, ``.bias``   (d, d_model), (d,), one B a single block
``single_blocks.B.mlp_out.weight``, ``.bias``  (1, d), (1,)
=============================================  ==============================================================

``mlp_out.bias`` is the bias of Eq. 4's MLP minus softplus^-1(1 - t_min) = ln(e^(1 - t_min) - 1), which is 0.5255 for a
t_min of 0.01. The hidden layer's activation is SiLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from .adapter_file import AdapterError, AdapterFormat, adapter_patcher
from .dam_generator import DOUBLE, SINGLE, DAMConfig, DAMGenerators
from .outline import Outline

HEADER = "dam"


class DAMError(AdapterError):
    """A DAM's file that cannot be used."""


FILE = AdapterFormat(header=HEADER, name="ensemble-dam", version="1", noun="DAM", error=DAMError)


def write_dam(path: Path, weights: Mapping[str, torch.Tensor], config: DAMConfig) -> None:
    """Write a DAM's file, whole or not at all."""
    FILE.write(path, weights, _header(config))


def dam_metadata(config: DAMConfig) -> dict[str, str]:
    """The metadata that a DAM's file of these sizes has."""
    return FILE.metadata(_header(config))


def _header(config: DAMConfig) -> dict[str, Any]:
    return {"base": config.base, "t_min": config.t_min}


def load_dam(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The DAM in a file, for the host's memory manager to load and offload; `.model` is its `DAMGenerators`.

    Raises:
        DAMError: the file is no DAM, or is damaged.
    """
    header = FILE.read_header(path)
    weights: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
    config = _read_config(weights, header)
    FILE.check_shapes(weights, DAMGenerators(config, torch.float32, "meta", Outline))
    return adapter_patcher(_network(weights, config), weights, load_dam, path, disable_dynamic)


def make_dam(weights: Mapping[str, torch.Tensor], config: DAMConfig, disable_dynamic: bool = False) -> ModelPatcher:
    """As `load_dam` of a file with these weights; they are kept, not copied."""
    again = partial(make_dam, config=config)
    return adapter_patcher(_network(weights, config), weights, again, weights, disable_dynamic)


def _network(weights: Mapping[str, torch.Tensor], config: DAMConfig) -> DAMGenerators:
    device = comfy.model_management.unet_offload_device()
    return DAMGenerators(config, next(iter(weights.values())).dtype, device, comfy.ops.manual_cast)


def _read_config(weights: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> DAMConfig:
    double, single = (
        len({name.split(".")[1] for name in weights if name.startswith(f"{kind}.")}) for kind in (DOUBLE, SINGLE)
    )
    first = f"{DOUBLE if double else SINGLE}.0.mlp_in.weight"
    try:
        t_min = float(header["t_min"])
    except (KeyError, TypeError, ValueError):
        t_min = 0.0
    if not 0 < t_min < 1:
        raise DAMError("its metadata is damaged; download or copy it again")
    return DAMConfig(
        model_width=FILE.size(weights, first, axis=1),
        width=FILE.size(weights, first),
        double_blocks=double,
        single_blocks=single,
        t_min=t_min,
        base=header.get("base", ""),
    )
