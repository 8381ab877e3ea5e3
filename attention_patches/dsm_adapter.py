"""The DSM adapter, the network (ASTRA, section 3.2, "Disentangled Semantic Modulation").

DSM moves identity out of the picture's own attention and into the words: a semantic offset is distilled from the
subjects' pictures and added to the text. With T the text embeddings and V the features of a CLIP vision encoder:

- Eq. 7: dT = f_DSM(V, T), a cross-attention whose queries are T and whose keys and values are V
- Eq. 8: E' = E + dT, and for every block b of the DiT an offset dT_b on the text stream that enters it

V holds the hidden states of several intermediate layers of every subject, each layer with its own LayerNorm and
projection, plus a learned embedding a layer and a subject. One trunk serves all offsets; the head of the global
offset and the heads of the blocks are single matrices without bias, so a trunk of zeros means no offset. Every head
starts at zero: a fresh adapter is the identity. The trunk takes nothing from T but the attention's weights, so
whatever it says comes from the pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention

from .outline import Outline

MLP_RATIO = 4
HEADS = ("global_head.", "double_heads.", "single_heads.")


@dataclass(frozen=True)
class DSMConfig:
    """The sizes of an adapter.

    Attributes:
        text_width: d_txt, of the text embeddings.
        width: d, of the trunk.
        heads: attention heads of the trunk, a divisor of `width`.
        clip_width: d_clip, of the vision encoder's hidden states.
        clip_depth: layers of the vision encoder.
        clip_layers: the layers read, counted from 0.
        subjects: the most subjects it can tell apart.
        model_width: d_model, of the DiT's text stream.
        double_blocks, single_blocks: of the DiT.
        base: family of the model it is made for.
    """

    text_width: int
    width: int
    heads: int
    clip_width: int
    clip_depth: int
    clip_layers: tuple[int, ...]
    subjects: int
    model_width: int
    double_blocks: int
    single_blocks: int
    base: str = "flux"


# FLUX.1 with the CLIP ViT-L/14 vision encoder; the paper prints no sizes of its own.
FLUX_DSM = DSMConfig(
    text_width=4096,
    width=512,
    heads=8,
    clip_width=1024,
    clip_depth=24,
    clip_layers=(5, 11, 17, 22),
    subjects=32,
    model_width=3072,
    double_blocks=19,
    single_blocks=38,
)


class DSMAdapter(torch.nn.Module):
    """f_DSM of Eq. 7 and the heads of its offsets; the host's `operations` cast and offload its weights."""

    def __init__(self, config: DSMConfig, dtype: torch.dtype, device: torch.device | str, operations: Any) -> None:
        super().__init__()
        self.config = config
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        width, layers = config.width, len(config.clip_layers)

        def linear(columns: int, rows: int, bias: bool = True) -> torch.nn.Module:
            return operations.Linear(columns, rows, bias=bias, **kind)

        def norm(size: int) -> torch.nn.Module:
            return operations.LayerNorm(size, **kind)

        def per(count: int, make: Any, *sizes: Any) -> torch.nn.ModuleList:
            return torch.nn.ModuleList([make(*sizes) for _ in range(count)])

        self.text_norm = norm(config.text_width)
        self.feature_norms = per(layers, norm, config.clip_width)
        self.feature_projections = per(layers, linear, config.clip_width, width)
        self.layer_embedding = operations.Embedding(layers, width, **kind)
        self.subject_embedding = operations.Embedding(config.subjects, width, **kind)
        self.to_query = linear(config.text_width, width, False)
        self.to_key = linear(width, width, False)
        self.to_value = linear(width, width, False)
        self.to_out = linear(width, width)
        self.mlp_norm = norm(width)
        self.mlp_in = linear(width, MLP_RATIO * width)
        self.mlp_out = linear(MLP_RATIO * width, width)
        self.trunk_norm = norm(width)
        self.global_head = linear(width, config.text_width, False)
        self.double_heads = per(config.double_blocks, linear, width, config.model_width, False)
        self.single_heads = per(config.single_blocks, linear, width, config.model_width, False)

    def visual_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        """V of Eq. 7, subject by subject.

        Args:
            hidden: hidden states of S subjects, N layers and P patches, (S, N, P, d_clip) or (B, S, N, P, d_clip).

        Returns:
            (S * N * P, d) or (B, S * N * P, d).
        """
        subjects, layers = hidden.shape[-4:-2]
        pairs = zip(self.feature_norms, self.feature_projections, strict=True)
        layer_tokens = [project(norm(hidden[..., n, :, :])) for n, (norm, project) in enumerate(pairs)]
        tokens = torch.stack(layer_tokens, dim=-3)  # (..., S, N, P, d)
        of_layer = self.layer_embedding(torch.arange(layers, device=hidden.device), out_dtype=hidden.dtype)
        of_subject = self.subject_embedding(torch.arange(subjects, device=hidden.device), out_dtype=hidden.dtype)
        return (tokens + of_layer[:, None] + of_subject[:, None, None]).flatten(-4, -2)

    def trunk(self, text: torch.Tensor, hidden: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
        """What the words find in the pictures, shared by every head.

        Args:
            text: T, (B, L, d_txt).
            hidden: as `visual_tokens` takes it, the same for all texts or one for each.
            allowed: (L, S * N * P) or (B, L, S * N * P) bool, which features a word may look at; None for all. No row may
                be all False.

        Returns:
            (B, L, d).
        """
        features = self.visual_tokens(hidden).expand(text.shape[0], -1, -1)  # (B, S * N * P, d)
        query = self.to_query(self.text_norm(text))
        bias = None
        if allowed is not None:  # additive: not all of the host's attention functions read a mask of booleans
            bias = torch.zeros_like(allowed, dtype=query.dtype).masked_fill_(~allowed, -torch.finfo(query.dtype).max)
        key, value = self.to_key(features), self.to_value(features)
        found = optimized_attention(query, key, value, self.config.heads, mask=bias, low_precision_attention=False)
        found = self.to_out(found)
        found = found + self.mlp_out(torch.nn.functional.gelu(self.mlp_in(self.mlp_norm(found)), approximate="tanh"))
        return self.trunk_norm(found)

    def global_offset(self, trunk: torch.Tensor) -> torch.Tensor:
        """dT of Eq. 8: (B, L, d) -> (B, L, d_txt)."""
        return self.global_head(trunk)


def fresh_dsm(config: DSMConfig, seed: int) -> dict[str, torch.Tensor]:
    """Weights of an untrained adapter, float32: matrices of variance 1 / fan-in, small embeddings, every head zero."""
    generator = torch.Generator().manual_seed(seed)
    shapes = DSMAdapter(config, torch.float32, "meta", Outline).state_dict()
    weights = {}
    for name, shape in sorted((name, value.shape) for name, value in shapes.items()):
        if name.startswith(HEADS) or name.endswith("bias"):
            weights[name] = torch.zeros(shape)
        elif "norm" in name:
            weights[name] = torch.ones(shape)
        else:
            spread = 0.02 if "embedding" in name else 1 / math.sqrt(shape[1])
            weights[name] = torch.randn(shape, generator=generator) * spread
    return weights
