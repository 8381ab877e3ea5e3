"""An AnyStory checkpoint: written by training, read by Load AnyStory.

One safetensors file whose metadata has the one key ``anystory``, a JSON object: ``format`` "ensemble-anystory", ``version``
"1", ``base`` (family of the base model, "sdxl"), and every size of `AnyStoryConfig`: ``text_width`` (d_c), ``clip_width``,
``clip_depth``, ``queries`` (m), ``qformer_width`` (w), ``qformer_heads``, ``qformer_layers``, ``router_width`` (d_r),
``reference_size`` (pixels), ``unet`` (an object: the arguments of the host's `UNetModel` listed in `UNET_SIZES`).

Tensors, with Q one of ``encoder`` (m queries, out = d_c) and ``router_encoder`` (1 query, out = d_r), N a QFormer layer and L
a layer of the U-Net, such as ``input_4_0`` or ``middle_0_3``, of width C:

==================================================================  ========================================================
tensor (and ``.bias`` where one is said)                            shape
==================================================================  ========================================================
``Q.queries.weight``                                                (m or 1, w)
``Q.feature_norm.weight``, bias                                     (d_clip,)
``Q.layers.N.self_norm.weight``, bias; also cross_norm, feed_norm   (w,)
``Q.layers.N.self_attention.to_q.weight``, to_k, to_v               (w, w)
``Q.layers.N.self_attention.to_out.0.weight``, bias                 (w, w)
``Q.layers.N.cross_attention.to_q.weight``                          (w, w)
``Q.layers.N.cross_attention.to_k.weight``, to_v                    (w, d_clip)
``Q.layers.N.cross_attention.to_out.0.weight``, bias                (w, w)
``Q.layers.N.feed.net.0.0.weight``, bias                            (4 w, w)
``Q.layers.N.feed.net.2.weight``, bias                              (w, 4 w)
``Q.to_out.weight``, bias                                           (out, w)
``Q.out_norm.weight``, bias                                         (out,)
``reference_net.*``                                                 the host's U-Net names without attn2 and its norm2;
                                                                    ``input_blocks.0.0.weight`` has one more input channel
``injection.subject.L.to_k.weight``, to_v                           (C, d_c), every layer
``injection.reference.L.to_k.weight``, to_v                         (C, C), every layer but the first
``routers.L.coarse_subject.weight``, refine_query,
refine_out, fine_subject                                            (d_r, d_r)
``routers.L.coarse_latent.weight``, refine_key, fine_latent         (C, d_r): stored transposed
``routers.L.refine_value.weight``                                   (d_r, C)
==================================================================  ========================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from .adapter_file import AdapterError, AdapterFormat, adapter_patcher
from .anystory_keys import own_names
from .anystory_network import SDXL, AnyStoryConfig, AnyStoryEncoding, AnyStoryInjecting, AnyStoryNetwork
from .outline import Outline
from .reference_net import LATENT_FACTOR

HEADER = "anystory"


class AnyStoryError(AdapterError):
    """An AnyStory checkpoint that cannot be used."""


FILE = AdapterFormat(
    header=HEADER, name="ensemble-anystory", version="1", noun="AnyStory checkpoint", error=AnyStoryError
)


@dataclass(frozen=True)
class AnyStory:
    """A loaded checkpoint, for the host's memory manager to load and offload half by half.

    Attributes:
        config: its sizes.
        encoding: its `.model` is an `AnyStoryEncoding`; needed while a cast is encoded.
        injecting: its `.model` is an `AnyStoryInjecting`; needed while a picture is sampled.
    """

    config: AnyStoryConfig
    encoding: ModelPatcher
    injecting: ModelPatcher


def write_anystory(path: Path, weights: Mapping[str, torch.Tensor], config: AnyStoryConfig) -> None:
    """Write a checkpoint, whole or not at all."""
    FILE.write(path, weights, dataclasses.asdict(config))


def anystory_metadata(config: AnyStoryConfig) -> dict[str, str]:
    """The metadata that a checkpoint of these sizes has."""
    return FILE.metadata(dataclasses.asdict(config))


def read_anystory(path: Path) -> tuple[dict[str, torch.Tensor], AnyStoryConfig]:
    """The weights of an `AnyStoryNetwork` and its sizes, as `write_anystory` takes them.

    Raises:
        AnyStoryError: the file is no AnyStory checkpoint, is for another base model, or is damaged.
    """
    config = _read_config(FILE.read_header(path))
    network = _outline(config)
    weights: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
    weights = dict(own_names(weights, config))
    FILE.check_shapes(weights, network)
    return weights, config


def load_anystory(path: Path) -> AnyStory:
    """The checkpoint in a file; raises as `read_anystory`."""
    weights, config = read_anystory(path)
    return AnyStory(
        config,
        _half(AnyStoryEncoding, weights, config, load_encoding, path),
        _half(AnyStoryInjecting, weights, config, load_injecting, path),
    )


def make_anystory(weights: Mapping[str, torch.Tensor], config: AnyStoryConfig) -> AnyStory:
    """As `load_anystory` of a file with these weights, those of an `AnyStoryNetwork`; they are kept, not copied."""
    encoding, injecting = (
        _half(kind, weights, config, partial(_remade, kind, config), weights)
        for kind in (AnyStoryEncoding, AnyStoryInjecting)
    )
    return AnyStory(config, encoding, injecting)


def _remade(
    kind: type[AnyStoryEncoding | AnyStoryInjecting],
    config: AnyStoryConfig,
    weights: Mapping[str, torch.Tensor],
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """One half again, which is how the host makes a copy of it."""
    return _half(kind, weights, config, partial(_remade, kind, config), weights, disable_dynamic)


def load_encoding(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The encoding half alone, which is how the host makes a copy of it."""
    return _half(AnyStoryEncoding, *read_anystory(path), load_encoding, path, disable_dynamic)


def load_injecting(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The injecting half alone, which is how the host makes a copy of it."""
    return _half(AnyStoryInjecting, *read_anystory(path), load_injecting, path, disable_dynamic)


def _half(
    kind: type[AnyStoryEncoding | AnyStoryInjecting],
    weights: Mapping[str, torch.Tensor],
    config: AnyStoryConfig,
    load: Any,
    source: Any,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    device = comfy.model_management.unet_offload_device()
    half = kind(config, weights["encoder.queries.weight"].dtype, device, comfy.ops.manual_cast)
    parts = {name for name, _ in half.named_children()}
    own = {name: value for name, value in weights.items() if name.partition(".")[0] in parts}
    return adapter_patcher(half, own, load, source, disable_dynamic)


def _read_config(header: Mapping[str, Any]) -> AnyStoryConfig:
    base = header.get("base")
    if base != SDXL:
        raise AnyStoryError(f"it was made for the base model '{base}', not for SDXL; choose a checkpoint for SDXL")
    names = [field.name for field in dataclasses.fields(AnyStoryConfig)]
    if not all(name in header for name in names):
        raise _damaged_metadata()
    config = AnyStoryConfig(**{name: header[name] for name in names})
    sizes = [header[name] for name in names if name not in ("unet", "base")]
    if not all(isinstance(size, int) and size > 0 for size in sizes) or not isinstance(config.unet, dict):
        raise _damaged_metadata()
    if config.qformer_width % config.qformer_heads or config.reference_size % LATENT_FACTOR or config.clip_depth < 2:
        raise _damaged_metadata()
    return config


def _outline(config: AnyStoryConfig) -> AnyStoryNetwork:
    """A network of these sizes without weights; they come from a file, so the host may not be able to build it."""
    try:
        network = AnyStoryNetwork(config, torch.float32, "meta", Outline)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        raise _damaged_metadata() from None
    if config.unet.get("context_dim") != config.text_width:
        raise _damaged_metadata()
    return network


def _damaged_metadata() -> AnyStoryError:
    return AnyStoryError("its metadata is damaged; download or copy it again")
