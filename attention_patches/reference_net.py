"""The simplified ReferenceNet: an SDXL U-Net that only looks (AnyStory, section 3.2, Eq. 3 and Table 1).

ReferenceNet reads a subject's picture as the denoising U-Net reads its canvas, so its hidden states speak the language of
the U-Net's own self-attention (Hu, "Animate Anyone", 2024). AnyStory's needs no text: every cross-attention and its norm are
left out, which takes SDXL's 2,567,463,684 parameters to 2,021,626,884, the paper's 2.57 and 2.02 billion; the mask channel
at the input adds 2,880.

What is fed in, where the paper is silent:

- the latent as it is, without noise, at timestep 0
- for SDXL's vector condition no text, that is zeros for the pooled text, and the picture's own size as original and target
  size, uncropped. The paper's 2.57 billion includes the layers that read it, so the network keeps them.

What comes out, {G^l}, is the hidden state that enters each self-attention: the state after the block's first norm, which is
what that attention makes its queries, keys and values from. Nothing behind the entry of the last self-attention is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    TimestepEmbedSequential,
    UNetModel,
    forward_timestep_embed,
)
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

from .unet_layers import attention_modules

SIZE_WIDTH = 256  # of each of SDXL's six size conditions
SIZES = 6  # original height and width, crop, target height and width
LATENT_FACTOR = 8
# What makes one U-Net of SDXL's kind another: these arguments of the host's class.
UNET_SIZES = (
    "in_channels",
    "out_channels",
    "model_channels",
    "channel_mult",
    "num_res_blocks",
    "transformer_depth",
    "transformer_depth_middle",
    "transformer_depth_output",
    "context_dim",
    "adm_in_channels",
    "num_heads",
    "num_head_channels",
)
_SDXL_KIND: dict[str, Any] = {
    "image_size": 32,
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}
_STATES = "ensemble_states"  # where the blocks of one forward put what enters their self-attention


def unet_sizes(unet_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a host model's `unet_config`, as they stand in an AnyStory checkpoint."""
    sizes = {name: unet_config[name] for name in UNET_SIZES}
    return {name: list(value) if isinstance(value, (list, tuple)) else value for name, value in sizes.items()}


def build_unet(sizes: Mapping[str, Any], dtype: Any, device: Any, operations: Any) -> UNetModel:
    """The host's U-Net of these sizes, without weights."""
    return UNetModel(**_SDXL_KIND, **sizes, dtype=dtype, device=device, operations=operations)


def reference_weights(unet: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ReferenceNet's first weights: those of the U-Net it belongs to, in the host's names, and zero for the mask."""
    kept = {name: value for name, value in unet.items() if ".attn2." not in name and ".norm2." not in name}
    entry = kept["input_blocks.0.0.weight"]  # (model_channels, in_channels, 3, 3)
    kept["input_blocks.0.0.weight"] = torch.cat((entry, torch.zeros_like(entry[:, :1])), dim=1)
    return kept


class ReferenceBlock(BasicTransformerBlock):
    """The host's transformer block without cross-attention, which writes down what its self-attention receives."""

    def __init__(self, model: BasicTransformerBlock, last: bool, dtype: Any, device: Any, operations: Any) -> None:
        super().__init__(
            model.attn1.to_q.in_features,
            model.n_heads,
            model.d_head,
            disable_temporal_crossattention=True,  # the host's word for having no attn2 at all
            dtype=dtype,
            device=device,
            operations=operations,
        )
        self.last = last

    def forward(self, x: torch.Tensor, context: None, transformer_options: dict[str, Any]) -> torch.Tensor:
        """(B, T, C) -> (B, T, C). The host's own forward would add the self-attention's result a second time."""
        state = self.norm1(x)
        transformer_options[_STATES].append(state)
        if self.last:
            return x
        x = x + self.attn1(state, transformer_options=transformer_options)
        return x + self.ff(self.norm3(x))


class ReferenceNet(UNetModel):
    """Eq. 3 of AnyStory on the host's own U-Net; the host's `operations` cast and offload its weights."""

    def __init__(self, sizes: Mapping[str, Any], dtype: Any, device: Any, operations: Any) -> None:
        """`sizes`: of the U-Net it belongs to, as `unet_sizes` gives them.

        Raises:
            ValueError: the U-Net is not of SDXL's kind: its last transformer is not in its output part, or its vector
                has no room for the size conditions.
        """
        widened = {**sizes, "in_channels": sizes["in_channels"] + 1}  # and the subject mask
        super().__init__(**_SDXL_KIND, **widened, dtype=dtype, device="meta", operations=operations)
        self.text_width = sizes["adm_in_channels"] - SIZES * SIZE_WIDTH
        if self.text_width < 0:
            raise ValueError(f"a vector of {sizes['adm_in_channels']} has no room for SDXL's size conditions")
        last_layer, last = list(attention_modules(self))[-1]
        if last_layer.block[0] != "output":
            raise ValueError(f"the last transformer is in the {last_layer.block[0]} part")
        self.last_output = last_layer.block[1]
        transformers = [module for module in self.modules() if isinstance(module, SpatialTransformer)]
        for transformer in transformers:
            originals: Any = transformer.transformer_blocks
            blocks = [ReferenceBlock(block, block is last, dtype, "meta", operations) for block in originals]
            transformer.transformer_blocks = torch.nn.ModuleList(blocks)
        # Memory is asked for only now, when the cross-attention is gone.
        if torch.device(device).type != "meta":
            self.to_empty(device=device)

    def forward(
        self, latent: torch.Tensor, mask: torch.Tensor, options: Mapping[str, Any] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """What enters each self-attention, in the order in which a forward runs through them.

        Args:
            latent: the segmented subject in the U-Net's own scale, (B, channels, h, w).
            mask: (B, 1, h, w), 1 where the subject is.
            options: transformer options for the host's attention.

        Returns:
            One (B, T_l, C_l) for every transformer block, the first included.
        """
        call: dict[str, Any] = {**(options or {}), _STATES: []}
        state = torch.cat((latent, mask), dim=1)  # (B, channels + 1, h, w): F_vae
        embedding = self._embedding(state)
        skips = []
        for module in self.input_blocks:
            state = forward_timestep_embed(module, state, embedding, None, call)
            skips.append(state)
        state = forward_timestep_embed(self.middle_block, state, embedding, None, call)
        for module in self._output_up_to_last():
            state = torch.cat((state, skips.pop()), dim=1)
            shape = skips[-1].shape if skips else None  # of the level above: odd sizes come back exactly
            state = forward_timestep_embed(module, state, embedding, None, call, shape)
        return tuple(call[_STATES])

    def unread(self) -> Iterator[torch.nn.Parameter]:
        """The weights behind the entry of the last self-attention, on which nothing that comes out depends."""
        last: Any = self.output_blocks[self.last_output]
        end = max(number for number, child in enumerate(last) if isinstance(child, SpatialTransformer))
        transformer = last[end]
        block = transformer.transformer_blocks[-1]
        behind = [block.attn1, block.norm3, block.ff, transformer.proj_out, *last[end + 1 :], self.out]
        for module in [*behind, *list(self.output_blocks)[self.last_output + 1 :]]:
            yield from module.parameters()

    def _embedding(self, state: torch.Tensor) -> torch.Tensor:
        """Timestep 0, no text, the picture's own size: (B, 4 * model_channels)."""
        batch, _, height, width = state.shape
        time = timestep_embedding(torch.zeros(batch, device=state.device), self.model_channels).to(state.dtype)
        size = [LATENT_FACTOR * height, LATENT_FACTOR * width]
        sizes = timestep_embedding(torch.tensor([*size, 0, 0, *size], device=state.device), SIZE_WIDTH).flatten()
        vector = torch.nn.functional.pad(sizes, (self.text_width, 0)).to(state.dtype).expand(batch, -1)
        return self.time_embed(time) + self.label_emb(vector)

    def _output_up_to_last(self) -> list[TimestepEmbedSequential]:
        """The output blocks up to the last transformer, the last of them cut off behind it."""
        blocks: Any = self.output_blocks
        *whole, last = blocks[: self.last_output + 1]
        end = max(number for number, child in enumerate(last) if isinstance(child, SpatialTransformer))
        return [*whole, last[: end + 1]]
