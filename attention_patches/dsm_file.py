"""The DSM adapter's file: written by training, read by Load DSM.

One safetensors file whose metadata has the one key ``dsm``, a JSON object: ``format`` "ensemble-dsm", ``version`` "1",
``base`` (the family of the model it was made for, "flux"), ``heads`` (attention heads), ``clip_depth`` (layers of the
vision encoder), ``clip_layers`` (list, counted from 0, of the layers read). All other sizes are those of its tensors, d
being the trunk's width:

=============================================  ==============================================================
tensor (and ``.bias`` where one is said)       shape
=============================================  ==============================================================
``text_norm.weight``, bias                     (d_txt,)
``feature_norms.N.weight``, bias               (d_clip,), one N a layer read
``feature_projections.N.weight``, bias         (d, d_clip)
``layer_embedding.weight``                     (layers read, d)
``subject_embedding.weight``                   (most subjects, d)
``to_query.weight``                            (d, d_txt)
``to_key.weight``, ``to_value.weight``         (d, d)
``to_out.weight``, bias                        (d, d)
``mlp_norm.weight``, bias                      (d,)
``mlp_in.weight``, bias                        (4 d, d)
``mlp_out.weight``, bias                       (d, 4 d)
``trunk_norm.weight``, bias                    (d,)
``global_head.weight``                         (d_txt, d)
``double_heads.B.weight``                      (d_model, d), one B a double block
``single_heads.B.weight``                      (d_model, d), one B a single block
=============================================  ==============================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..models_info.files import whole_file
from .dsm_adapter import HEADS, DSMAdapter, DSMConfig

HEADER = "dsm"  # one key, because several are written in random order
FORMAT = "ensemble-dsm"
VERSION = "1"


class DSMError(ValueError):
    """An adapter file that cannot be used; the message is one sentence fit for an artist."""


def write_dsm(path: Path, weights: Mapping[str, torch.Tensor], config: DSMConfig) -> None:
    """Write an adapter's file, whole or not at all."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "base": config.base,
        "heads": config.heads,
        "clip_depth": config.clip_depth,
        "clip_layers": config.clip_layers,
    }
    tensors = {name: value.contiguous() for name, value in weights.items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header)})


def load_dsm(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The adapter in a file, for the host's memory manager to load and offload; `.model` is its `DSMAdapter`.

    Raises:
        DSMError: the file is no DSM adapter, or is damaged.
    """
    header = _read_header(path)
    weights: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
    config = _read_config(weights, header)
    _check_shapes(weights, config)
    offload_device = comfy.model_management.unet_offload_device()
    adapter = DSMAdapter(config, weights["to_query.weight"].dtype, offload_device, comfy.ops.manual_cast)
    kind = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = kind(adapter, load_device=comfy.model_management.get_torch_device(), offload_device=offload_device)
    adapter.load_state_dict(weights, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_dsm, (path,))
    return patcher


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError):
        raise DSMError("it is no whole safetensors file; download or copy it again") from None
    if header.get("format") != FORMAT:
        raise DSMError("it is no DSM adapter of this pack; choose another file")
    if header.get("version") != VERSION:
        raise DSMError(f"its format has version {header.get('version')}, this pack reads {VERSION}; update the pack")
    return header


def _read_config(weights: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> DSMConfig:
    def rows(name: str) -> int:
        if name not in weights or weights[name].ndim == 0:
            raise _damaged(name)
        return weights[name].shape[0]

    double, single = (len([name for name in weights if name.startswith(head)]) for head in HEADS[1:])
    try:
        heads, depth = int(header["heads"]), int(header["clip_depth"])
        layers = tuple(int(layer) for layer in header["clip_layers"])
    except (KeyError, TypeError, ValueError):
        raise DSMError("its metadata is damaged; download or copy it again") from None
    config = DSMConfig(
        text_width=rows("text_norm.weight"),
        width=rows("to_query.weight"),
        heads=heads,
        clip_width=rows("feature_norms.0.weight"),
        clip_depth=depth,
        clip_layers=layers,
        subjects=rows("subject_embedding.weight"),
        model_width=rows("double_heads.0.weight" if double else "single_heads.0.weight"),
        double_blocks=double,
        single_blocks=single,
        base=header.get("base", ""),
    )
    if heads < 1 or config.width % heads or not all(0 <= layer < depth for layer in layers):
        raise DSMError("its metadata does not fit its tensors; download or copy it again")
    return config


def _check_shapes(weights: Mapping[str, torch.Tensor], config: DSMConfig) -> None:
    expected = DSMAdapter(config, torch.float32, "meta", comfy.ops.disable_weight_init).state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in expected or name not in weights or expected[name].shape != weights[name].shape:
            raise _damaged(name)


def _damaged(name: str) -> DSMError:
    return DSMError(f"its tensor '{name}' is missing or of another shape; download or copy it again")
