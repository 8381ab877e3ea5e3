"""Segment Anything as a host model: read from its published checkpoint, in the hands of the host's memory management.

The image encoder, nearly all of the weights, is this pack's own in the host's layers (`sam_encoder`); prompt encoder and
mask decoder are the library's (package segment-anything, optional). All sizes come from the weights. Half precision means
bfloat16: ViT-H's activations overflow float16. The decoder's four million weights stay in single precision.

Source: Kirillov et al., "Segment Anything", ICCV 2023.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from safetensors import SafetensorError

from .sam_encoder import EncoderConfig, ImageEncoder

ENCODER = "image_encoder."
# What readers of damaged and of foreign files stumble over.
_UNREADABLE = (SafetensorError, OSError, EOFError, ValueError, RuntimeError, LookupError, AttributeError, TypeError)

DECODER_HEADS = 8  # the one size that no weight tells; the same in all published models


class SAMError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence fit for an artist."""


@dataclass(frozen=True)
class SAMConfig:
    """All sizes of a SAM.

    Attributes:
        encoder: those of the image encoder.
        mask_channels: of the prompt encoder's reading of masks.
        decoder_layers, decoder_mlp_width: of the mask decoder's transformer.
        masks: masks given to an ambiguous prompt.
        quality_layers, quality_width: of the head that judges masks.
    """

    encoder: EncoderConfig
    mask_channels: int
    decoder_layers: int
    decoder_mlp_width: int
    masks: int
    quality_layers: int
    quality_width: int


class SAMNetwork(torch.nn.Module):
    """A SAM whose tensors are named as in the published checkpoints."""

    def __init__(self, config: SAMConfig, dtype: torch.dtype, device: Any, operations: Any) -> None:
        """The image encoder's weights are of `dtype`; all are yet to be loaded."""
        from segment_anything.modeling import (  # pyright: ignore[reportMissingImports]
            MaskDecoder,
            PromptEncoder,
            TwoWayTransformer,
        )

        super().__init__()
        self.config, self.dtype = config, dtype
        width, grid = config.encoder.out_width, config.encoder.grid
        self.image_encoder = ImageEncoder(config.encoder, dtype, device, operations)
        with torch.device(device):
            self.prompt_encoder = PromptEncoder(
                embed_dim=width,
                image_embedding_size=(grid, grid),
                input_image_size=(config.encoder.image_size, config.encoder.image_size),
                mask_in_chans=config.mask_channels,
            )
            transformer = TwoWayTransformer(config.decoder_layers, width, DECODER_HEADS, config.decoder_mlp_width)
            self.mask_decoder = MaskDecoder(
                transformer_dim=width,
                transformer=transformer,
                num_multimask_outputs=config.masks,
                iou_head_depth=config.quality_layers,
                iou_head_hidden_dim=config.quality_width,
            )

    def forward(
        self,
        features: torch.Tensor,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        several: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `decode`."""
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
        return self.mask_decoder(
            image_embeddings=features,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
        )

    def decode(
        self,
        features: torch.Tensor,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        several: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks for P prompts on one picture.

        Args:
            features: (1, width, grid, grid) from the image encoder, float32.
            points: (P, N, 2) x, y in pixels of the encoder's picture, and (P, N) 1 for "this", 0 for "not this"; or None.
            boxes: (P, 4) left, top, right, bottom; or None.
            several: `config.masks` masks a prompt, for ambiguous ones, instead of one.

        Returns:
            logits (P, masks, 4 grid, 4 grid), and how good the model takes each mask to be (P, masks).
        """
        # Plain layers of the library, which may have been left on the offload device: their few weights are brought along.
        weights = {
            name: value.to(features.device) for name, value in self.state_dict().items() if not name.startswith(ENCODER)
        }
        return torch.func.functional_call(self, weights, (features, points, boxes, several))


def load_sam(path: Path, disable_dynamic: bool = False) -> ModelPatcher:
    """The SAM in a file, for the host's memory manager to load and offload; `.model` is its `SAMNetwork`.

    Raises:
        SAMError: the file is no SAM, or is damaged.
    """
    weights = _read(path)
    config = _read_config(weights)
    device = comfy.model_management.get_torch_device()
    parameters = comfy.utils.calculate_parameters(weights)
    half = comfy.model_management.should_use_bf16(device, model_params=parameters)
    dtype = torch.bfloat16 if half else torch.float32
    network = SAMNetwork(config, dtype, "meta", comfy.ops.manual_cast)
    _check_shapes(weights, network)
    for name, value in weights.items():
        weights[name] = value.to(dtype if name.startswith(ENCODER) else torch.float32)
    network.load_state_dict(weights, assign=True)
    kind = ModelPatcher if disable_dynamic else CoreModelPatcher
    patcher = kind(network, load_device=device, offload_device=comfy.model_management.unet_offload_device())
    patcher.cached_patcher_init = (load_sam, (path,))
    return patcher


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; a pickle is read for tensors alone."""
    try:
        weights: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
    except pickle.UnpicklingError:
        raise SAMError(
            "it is no checkpoint of weights alone and was not opened; download it again from its source"
        ) from None
    except _UNREADABLE:
        raise SAMError("it is no whole checkpoint; download or copy it again") from None
    if not isinstance(weights, Mapping):
        raise SAMError("it holds no weights; choose another file")
    return dict(weights)


def _read_config(weights: Mapping[str, Any]) -> SAMConfig:
    def size(name: str, axis: int = 0) -> int:
        value = weights.get(name)
        if not isinstance(value, torch.Tensor) or value.ndim <= axis:
            raise _another_network(name)
        return value.shape[axis]

    def count(start: str, end: str) -> int:
        """How many layers there are with tensors named start + number + end."""
        return sum(name.startswith(start) and name.endswith(end) for name in weights)

    table = ENCODER + "blocks.{}.attn.rel_pos_h"
    windows = tuple(
        (size(table.format(block)) + 1) // 2 for block in range(count(ENCODER + "blocks.", ".norm1.weight"))
    )
    encoder = EncoderConfig(
        width=size(ENCODER + "patch_embed.proj.weight"),
        mlp_width=size(ENCODER + "blocks.0.mlp.lin1.weight"),
        out_width=size(ENCODER + "neck.0.weight"),
        head_width=size(table.format(0), 1),
        patch=size(ENCODER + "patch_embed.proj.weight", 2),
        grid=size(ENCODER + "pos_embed", 1),
        windows=windows,
    )
    quality = "mask_decoder.iou_prediction_head.layers."
    return SAMConfig(
        encoder=encoder,
        mask_channels=size("prompt_encoder.mask_downscaling.3.weight"),
        decoder_layers=count("mask_decoder.transformer.layers.", ".norm1.weight"),
        decoder_mlp_width=size("mask_decoder.transformer.layers.0.mlp.lin1.weight"),
        masks=size("mask_decoder.mask_tokens.weight") - 1,
        quality_layers=count(quality, ".weight"),
        quality_width=size(quality + "0.weight"),
    )


def _check_shapes(weights: Mapping[str, Any], network: SAMNetwork) -> None:
    expected = network.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in expected or name not in weights or expected[name].shape != weights[name].shape:
            raise _another_network(name)


def _another_network(name: str) -> SAMError:
    return SAMError(
        f"its tensor '{name}' is not as in the original SAM; HQ, Mobile, SAM 2, SAM 3 and Transformers' conversions are"
        " other networks, so take one of the files named in this node's help"
    )
