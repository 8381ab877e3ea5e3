"""The QFormer: a few learned queries that read a picture's CLIP features (AnyStory, section 3.2, Eq. 2).

Every layer lets the queries look at each other, then at the features, then through a feed-forward network; each of the
three is normalised at its entry and added to what entered (Li et al., "BLIP-2", 2023). AnyStory uses two of them: one with
64 queries for what a subject looks like, E_i = QFormer(F_clip), and one with a single query for where it may be, R_i.

The features are normalised once, because hidden states in the middle of a CLIP model have no norm of their own and some of
their channels are a hundred times larger than others; so are the tokens that come out, whatever their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.modules.attention import CrossAttention, FeedForward


class QFormerLayer(torch.nn.Module):
    """Self-attention, cross-attention to the features, feed-forward network: (B, m, w) -> (B, m, w)."""

    def __init__(self, width: int, heads: int, clip_width: int, dtype: Any, device: Any, operations: Any) -> None:
        super().__init__()
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        attention: dict[str, Any] = {"heads": heads, "dim_head": width // heads, "operations": operations, **place}
        self.self_norm = operations.LayerNorm(width, **place)
        self.self_attention = CrossAttention(width, **attention)
        self.cross_norm = operations.LayerNorm(width, **place)
        self.cross_attention = CrossAttention(width, clip_width, **attention)
        self.feed_norm = operations.LayerNorm(width, **place)
        self.feed = FeedForward(width, operations=operations, **place)

    def forward(self, tokens: torch.Tensor, features: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        """Tokens (B, m, w) after they have read the features (B, P, d_clip)."""
        tokens = tokens + self.self_attention(self.self_norm(tokens), transformer_options=options)
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), features, transformer_options=options)
        return tokens + self.feed(self.feed_norm(tokens))


class QFormer(torch.nn.Module):
    """Eq. 2 of AnyStory; the host's `operations` cast and offload its weights.

    Args:
        queries: m, tokens that come out.
        width: w, of the layers.
        heads: of every attention, a divisor of `width`.
        layers: 4 in the paper.
        clip_width: d_clip, of the features.
        out_width: of the tokens that come out.
    """

    def __init__(
        self,
        queries: int,
        width: int,
        heads: int,
        layers: int,
        clip_width: int,
        out_width: int,
        dtype: Any,
        device: Any,
        operations: Any,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        self.queries = operations.Embedding(queries, width, **place)
        self.feature_norm = operations.LayerNorm(clip_width, **place)
        self.layers = torch.nn.ModuleList(
            [QFormerLayer(width, heads, clip_width, dtype, device, operations) for _ in range(layers)]
        )
        self.to_out = operations.Linear(width, out_width, **place)
        self.out_norm = operations.LayerNorm(out_width, **place)

    def forward(self, features: torch.Tensor, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """CLIP features (B, P, d_clip) -> tokens (B, m, out_width), in the features' dtype.

        Args:
            options: transformer options for the host's attention.
        """
        numbers = torch.arange(self.queries.num_embeddings, device=features.device)
        tokens = self.queries(numbers, out_dtype=features.dtype).expand(features.shape[0], -1, -1)  # (B, m, w)
        features = self.feature_norm(features)
        for layer in self.layers:
            tokens = layer(tokens, features, dict(options or {}))
        return self.out_norm(self.to_out(tokens))
