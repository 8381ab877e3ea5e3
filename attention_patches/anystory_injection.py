"""How AnyStory's subjects enter the picture (section 3.3, "Routing-guided subject information injection").

With sigma(M_i) the 0-1 map of entry i (the N subjects and, last, the background; exactly one owns each pixel):

- Eq. 5, cross-attention: Z = attn(Q, K, V) + eta * sum over i of sigma(M_i) * softmax(Q K_i^T / sqrt d) V_i,
  K_i and V_i made from the subject's tokens E_i by matrices of their own
- Eq. 6-8, self-attention: keys [own ; of the references 1..N], logits biased by 0 for the own keys and by g(M_i) + gamma
  for those of reference i, where g is 0 on i's pixels and minus infinity elsewhere; K_i and V_i made from the ReferenceNet's
  hidden state G_i by matrices of their own

Since a pixel has one owner, everything is computed for an owner's pixels with that owner's keys alone. No mask of pixels by
keys is made, and a subject costs as much as its area, however many others there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from .outline import Outline
from .unet_layers import AttentionLayer, attention_modules

# (1, n, heads * d) queries, (1, S, heads * d) keys and values, (1, 1, S) additive mask or None -> (1, n, heads * d)
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
KeysValues = tuple[torch.Tensor, torch.Tensor]  # (S, heads * d) each
# Row -> for every entry the pixels it owns, (n,) int64; together each pixel of the row once.
Members = Mapping[int, Sequence[torch.Tensor]]

SUBJECT, REFERENCE = "subject", "reference"


def subject_attention(
    attention: Attention,
    q: torch.Tensor,
    members: Members,
    entries: Sequence[KeysValues],
    nobody: KeysValues,
) -> torch.Tensor:
    """The sum of Eq. 5, without eta: every pixel attends to the tokens of the entry that owns it.

    Args:
        attention: softmax attention.
        q: (B, hw, heads * d).
        members: who owns which pixel, in the rows that have subjects.
        entries: K_i and V_i of every entry.
        nobody: those of the zero image, for all pixels of the other rows.

    Returns:
        (B, hw, heads * d).
    """
    out = torch.empty_like(q)
    for row in range(len(q)):
        if row not in members:
            out[row] = attention(q[row : row + 1], nobody[0][None], nobody[1][None], None)[0]
            continue
        for pixels, (key, value) in zip(members[row], entries, strict=True):
            if len(pixels):
                out[row, pixels] = attention(q[row, pixels][None], key[None], value[None], None)[0]
    return out


def reference_attention(
    attention: Attention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    members: Members,
    references: Sequence[KeysValues | None],
    gamma: float,
) -> torch.Tensor:
    """Eq. 6-8: pixels of entry i attend to [own keys ; reference i], or to the own keys where it has no reference.

    Args:
        attention: softmax attention.
        q, k, v: (B, hw, heads * d).
        members: who owns which pixel, in the rows that have subjects; the other rows attend to their own keys.
        references: keys and values of every entry's reference; None for the background, unless it has a picture.

    Returns:
        (B, hw, heads * d).
    """
    out = torch.empty_like(q)
    for row in range(len(q)):
        keys, values = k[row : row + 1], v[row : row + 1]
        if row not in members:
            out[row] = attention(q[row : row + 1], keys, values, None)[0]
            continue
        for pixels, reference in zip(members[row], references, strict=True):
            if len(pixels):
                found = _with_reference(attention, q[row, pixels][None], keys, values, reference, gamma)
                out[row, pixels] = found[0]
    return out


def add_references(
    attention: Attention,
    base: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    members: Members,
    references: Sequence[KeysValues | None],
    gamma: float,
) -> torch.Tensor:
    """`base`, whatever attention it comes from, plus what Eq. 6-8 would change in a plain one; other arguments as above."""
    out = base.clone()
    for row, owned in members.items():
        for pixels, reference in zip(owned, references, strict=True):
            if reference is not None and len(pixels):
                queries, keys, values = q[row, pixels][None], k[row : row + 1], v[row : row + 1]
                joint = _with_reference(attention, queries, keys, values, reference, gamma)
                out[row, pixels] += (joint - attention(queries, keys, values, None))[0]
    return out


def _with_reference(
    attention: Attention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    reference: KeysValues | None,
    gamma: float,
) -> torch.Tensor:
    """Attention to [own keys ; the reference's], those biased by gamma: (1, n, heads * d)."""
    if reference is None:
        return attention(q, k, v, None)
    keys, values = (torch.cat((own, other[None]), dim=1) for own, other in zip((k, v), reference, strict=True))
    bias = None  # adding 0 needs no mask, and without one every fused kernel serves
    if gamma != 0:
        bias = q.new_zeros(1, 1, keys.shape[1])
        bias[..., k.shape[1] :] = gamma
    return attention(q, keys, values, bias)


class KeyValue(torch.nn.Module):
    """The two matrices that make keys and values; the host's `operations` cast and offload them."""

    def __init__(
        self, columns: int, rows: int, dtype: torch.dtype, device: torch.device | str, operations: Any
    ) -> None:
        super().__init__()
        self.to_k = operations.Linear(columns, rows, bias=False, dtype=dtype, device=device)
        self.to_v = operations.Linear(columns, rows, bias=False, dtype=dtype, device=device)

    def forward(self, tokens: torch.Tensor) -> KeysValues:
        """(..., S, columns) -> keys and values (..., S, rows)."""
        return self.to_k(tokens), self.to_v(tokens)


class AnyStoryInjection(torch.nn.Module):
    """The new key and value matrices of all layers, under the layers' names.

    Args:
        layers: of the U-Net, in execution order. The first self-attention has no reference matrices: no router comes
            before it.
        text_width: d_c, of the subjects' tokens.
    """

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        text_width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        operations: Any,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)

        def per_layer(used: Sequence[tuple[AttentionLayer, int]]) -> torch.nn.ModuleDict:
            return torch.nn.ModuleDict(
                {layer.name: KeyValue(columns, layer.width, dtype, device, operations) for layer, columns in used}
            )

        self.subject = per_layer([(layer, text_width) for layer in layers if layer.context_width is not None])
        self.reference = per_layer([(layer, layer.width) for layer in layers[1:]])


def fresh_injection(layers: Sequence[AttentionLayer], text_width: int, seed: int) -> dict[str, torch.Tensor]:
    """Random matrices of variance 1 / fan-in, float32."""
    generator = torch.Generator().manual_seed(seed)
    shapes = AnyStoryInjection(layers, text_width, torch.float32, "meta", Outline).state_dict()
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        for name, shape in sorted((name, value.shape) for name, value in shapes.items())
    }


def injection_from_base(unet: UNetModel) -> dict[str, torch.Tensor]:
    """The matrices with which training starts: copies of the base model's own, those of its text and its self-attention."""
    weights = {}
    for number, (layer, block) in enumerate(attention_modules(unet)):
        sources = {REFERENCE: block.attn1 if number else None, SUBJECT: block.attn2}
        for kind, attention in sources.items():
            if attention is not None:
                for matrix in ("to_k", "to_v"):
                    weight = getattr(attention, matrix).weight
                    weights[f"{kind}.{layer.name}.{matrix}.weight"] = weight.detach().clone()
    return weights
