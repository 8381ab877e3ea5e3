"""SAM's image encoder in the host's own layers, so that it is loaded, offloaded and cast like any other model of the host.

A plain vision transformer: most blocks attend within windows, a few over the whole picture. Every logit q k^T / sqrt(d) has
two learned terms more, q r_y and q r_x, for the vertical and the horizontal distance of query and key. They are a product of
queries and keys too: with e_y and e_x the key's row and column as one-hot vectors,

    q k^T / sqrt(d) + q r_y + q r_x = [q / sqrt(d) ; q R_y ; q R_x] [k ; e_y ; e_x]^T

so any fused attention kernel serves and the logits of 4,096 x 4,096 tokens are never written down.

Modules and parameters are named as in the published checkpoints. Source: Kirillov et al., "Segment Anything", ICCV 2023;
Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet), ECCV 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention

EPS = 1e-6
ALIGNMENT = 8  # fused kernels take head widths that are multiples of this


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an image encoder, all of which its weights tell.

    Attributes:
        width, mlp_width, out_width: of a token, inside a block's MLP, of the result.
        head_width: width / heads.
        patch: pixels along a token's side.
        grid: tokens along the picture's side.
        windows: of each block, tokens along the side of what it attends within; `grid` for the whole picture.
    """

    width: int
    mlp_width: int
    out_width: int
    head_width: int
    patch: int
    grid: int
    windows: tuple[int, ...]

    @property
    def image_size(self) -> int:
        """Pixels along the side of the square picture it sees."""
        return self.patch * self.grid


def distance_terms(table: torch.Tensor) -> torch.Tensor:
    """The learned vector of every pair of places on one axis.

    Args:
        table: (2 n - 1, d), one vector a distance query - key from 1 - n to n - 1.

    Returns:
        (n queries, n keys, d)
    """
    size = (len(table) + 1) // 2
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]


def with_distances(
    q: torch.Tensor, k: torch.Tensor, vertical: torch.Tensor, horizontal: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys whose scaled product holds the distance terms, as in the module's docstring.

    Args:
        q, k: (B, heads, h * w, d), tokens in reading order.
        vertical: (h, h, d), horizontal: (w, w, d), from `distance_terms`.

    Returns:
        q and k of width D, a multiple of `ALIGNMENT`; q is scaled for attention that divides logits by sqrt(D).
    """
    batch, heads, tokens, width = q.shape
    height, breadth = len(vertical), len(horizontal)
    grid = q.view(batch, heads, height, breadth, width)
    rows = torch.einsum("bnyxd,ykd->bnyxk", grid, vertical).reshape(batch, heads, tokens, height)
    columns = torch.einsum("bnyxd,xkd->bnyxk", grid, horizontal).reshape(batch, heads, tokens, breadth)
    wider = -(-(width + height + breadth) // ALIGNMENT) * ALIGNMENT
    wide_q = q.new_zeros((batch, heads, tokens, wider))
    torch.cat([q * width**-0.5, rows, columns], dim=-1, out=wide_q[..., : width + height + breadth])
    wide_k = k.new_zeros((batch, heads, tokens, wider))
    wide_k[..., :width] = k
    place = wide_k[..., width : width + height + breadth].view(batch, heads, height, breadth, height + breadth)
    place[..., :height] = torch.eye(height, device=k.device, dtype=k.dtype)[:, None]
    place[..., height:] = torch.eye(breadth, device=k.device, dtype=k.dtype)
    return wide_q * wider**0.5, wide_k


class Attention(torch.nn.Module):
    """Self-attention of a grid of tokens with distance terms."""

    def __init__(self, config: EncoderConfig, size: int, place: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.heads, self.head_width = config.width // config.head_width, config.head_width
        self.qkv = operations.Linear(config.width, 3 * config.width, **place)
        self.proj = operations.Linear(config.width, config.width, **place)
        self.rel_pos_h = torch.nn.Parameter(torch.empty(2 * size - 1, config.head_width, **place))
        self.rel_pos_w = torch.nn.Parameter(torch.empty(2 * size - 1, config.head_width, **place))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, h, w, width) -> the same."""
        batch, height, breadth, _ = x.shape
        tokens = height * breadth
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        tables = (comfy.ops.cast_to_input(table, x) for table in (self.rel_pos_h, self.rel_pos_w))
        q, k = with_distances(q, k, *map(distance_terms, tables))
        wider = q.shape[-1]
        v = torch.nn.functional.pad(v, (0, wider - self.head_width))
        out = optimized_attention(q, k, v, self.heads, skip_reshape=True)  # (B, tokens, heads * D)
        out = out.view(batch, height, breadth, self.heads, wider)[..., : self.head_width]
        return self.proj(out.flatten(3))


class MLP(torch.nn.Module):
    def __init__(self, config: EncoderConfig, place: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.lin1 = operations.Linear(config.width, config.mlp_width, **place)
        self.lin2 = operations.Linear(config.mlp_width, config.width, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin2(torch.nn.functional.gelu(self.lin1(x)))


class Block(torch.nn.Module):
    """A transformer block that attends within windows of `window` x `window` tokens."""

    def __init__(self, config: EncoderConfig, window: int, place: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.window = window
        self.norm1 = operations.LayerNorm(config.width, eps=EPS, **place)
        self.attn = Attention(config, window, place, operations)
        self.norm2 = operations.LayerNorm(config.width, eps=EPS, **place)
        self.mlp = MLP(config, place, operations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, h, w, width) -> the same."""
        height, breadth = x.shape[1:3]
        windows = into_windows(self.norm1(x), self.window)
        x = x + out_of_windows(self.attn(windows), self.window, height, breadth)
        return x + self.mlp(self.norm2(x))


def into_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """(B, h, w, d) -> (B * windows, window, window, d); zeros are added at the right and below where it does not divide."""
    batch, height, breadth, width = x.shape
    x = torch.nn.functional.pad(x, (0, 0, 0, -breadth % window, 0, -height % window))
    x = x.view(batch, x.shape[1] // window, window, x.shape[2] // window, window, width)
    return x.transpose(2, 3).reshape(-1, window, window, width)


def out_of_windows(x: torch.Tensor, window: int, height: int, breadth: int) -> torch.Tensor:
    """The reverse of `into_windows`, for a grid of height x breadth tokens."""
    down, across = -(-height // window), -(-breadth // window)
    x = x.view(-1, down, across, window, window, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, down * window, across * window, x.shape[-1])[:, :height, :breadth]


class PatchEmbed(torch.nn.Module):
    def __init__(self, config: EncoderConfig, place: dict[str, Any], operations: Any) -> None:
        super().__init__()
        self.proj = operations.Conv2d(3, config.width, config.patch, stride=config.patch, **place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, h, w, width)"""
        return self.proj(x).movedim(1, -1)


class ImageEncoder(torch.nn.Module):
    """A normalised square picture (B, 3, S, S) to its features (B, out_width, grid, grid)."""

    def __init__(self, config: EncoderConfig, dtype: torch.dtype, device: Any, operations: Any) -> None:
        super().__init__()
        place = {"dtype": dtype, "device": device}
        out = config.out_width
        self.patch_embed = PatchEmbed(config, place, operations)
        self.pos_embed = torch.nn.Parameter(torch.empty(1, config.grid, config.grid, config.width, **place))
        self.blocks = torch.nn.ModuleList(Block(config, window, place, operations) for window in config.windows)
        self.neck = torch.nn.ModuleList(
            [
                operations.Conv2d(config.width, out, 1, bias=False, **place),
                operations.LayerNorm(out, eps=EPS, **place),
                operations.Conv2d(out, out, 3, padding=1, bias=False, **place),
                operations.LayerNorm(out, eps=EPS, **place),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        x = x + comfy.ops.cast_to_input(self.pos_embed, x)
        for block in self.blocks:
            x = block(x)
        for layer in self.neck:  # convolutions have the channels first, norms last
            x = layer(x.movedim(-1, 1)).movedim(1, -1) if isinstance(layer, torch.nn.Conv2d) else layer(x)
        return x.movedim(-1, 1)
