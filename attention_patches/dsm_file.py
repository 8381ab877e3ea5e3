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
from .dsm_adapter import HEADS, DSMAdapter, DSMConfig
from .outline import Outline

HEADER = "dsm"


class DSMError(AdapterError):
    """A DSM adapter's file that cannot be used."""


FILE = AdapterFormat(header=HEADER, name="ensemble-dsm", version="1", noun="DSM adapter", error=DSMError)


def write_dsm(path: Path, weights: Mapping[str, torch.Tensor], config: DSMConfig) -> None:
    """Write an adapter's file, whole or not at all."""
    FILE.write(path, weights, _header(config))


def dsm_metadata(config: DSMConfig) -> dict[str, str]:
    """The metadata that an adapter's file of these sizes has."""
    return FILE.metadata(_header(config))


def _header(config: DSMConfig) -> dict[str, Any]:
    return {
        "base": config.base,
        "heads": config.heads,
        "clip_depth": config.clip_depth,
        "clip_layers": config.clip_layers,
    }


def load_dsm(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The adapter in a file, for the host's memory manager to load and offload; `.model` is its `DSMAdapter`.

    Raises:
        DSMError: the file is no DSM adapter, or is damaged.
    """
    header = FILE.read_header(path)
    weights: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
    config = _read_config(weights, header)
    FILE.check_shapes(weights, DSMAdapter(config, torch.float32, "meta", Outline))
    return adapter_patcher(_network(weights, config), weights, load_dsm, path, disable_dynamic)


def make_dsm(weights: Mapping[str, torch.Tensor], config: DSMConfig, disable_dynamic: bool = False) -> ModelPatcher:
    """As `load_dsm` of a file with these weights; they are kept, not copied."""
    again = partial(make_dsm, config=config)
    return adapter_patcher(_network(weights, config), weights, again, weights, disable_dynamic)


def _network(weights: Mapping[str, torch.Tensor], config: DSMConfig) -> DSMAdapter:
    device = comfy.model_management.unet_offload_device()
    return DSMAdapter(config, weights["to_query.weight"].dtype, device, comfy.ops.manual_cast)


def _read_config(weights: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> DSMConfig:
    def rows(name: str) -> int:
        return FILE.size(weights, name)

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
