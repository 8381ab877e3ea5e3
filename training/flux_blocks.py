"""FLUX's blocks for training: the host's own modules, added up without writing over what gradients need.

The host's blocks add their residuals in place, `img += ...`, to tensors that a LayerNorm has kept for the way back. Plain
autograd then refuses, and under gradient checkpointing it is not noticed at all: the gradients are silently wrong. These
classes have the same modules and the same arithmetic, with a new tensor for every sum. They are put in the place of a
model's blocks by class, so that whatever replaces or wraps a block through the host's hooks, DSM's offsets or another
pack's, calls them where it would call the host's.

Without gradients the host's own code runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, SelfAttention, SingleStreamBlock
from comfy.ldm.flux.math import _apply_rope1, attention
from comfy.ldm.flux.model import Flux
from torch import Tensor, nn

from .checkpointing import recomputed

Rows = Sequence[Sequence[int]] | None  # (start, stop, which modulation) by tokens, where not all have the same


class Turned(torch.autograd.Function):
    """The host's RoPE with a way back of its own: the opposite turn, which is one product, where autograd takes a dozen steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pe: Tensor) -> Tensor:
        """Queries or keys (B, heads, L, d), turned by the host's rotations (B, 1, L, d / 2, 2, 2)."""
        ctx.save_for_backward(pe)
        return _apply_rope1(x, pe)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (pe,) = gradients, ctx.saved_tensors
        back = torch.view_as_complex(pe[:, :, : gradient.shape[2], :, :, 0].contiguous()).conj()  # cos - i sin
        pairs = torch.view_as_complex(gradient.to(pe.dtype).unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * back).flatten(-2).type_as(gradient), None


class TrainedDoubleBlock(DoubleStreamBlock):
    """A double block; `checkpointing` is set from outside."""

    checkpointing: bool

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Any,
        pe: Tensor | None,
        attn_mask: Tensor | None = None,
        modulation_dims_img: Rows = None,
        modulation_dims_txt: Rows = None,
        transformer_options: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        options = {} if transformer_options is None else transformer_options
        rows = {"img_rows": modulation_dims_img, "txt_rows": modulation_dims_txt}
        if not torch.is_grad_enabled():
            host: Any = super()
            return host.forward(img, txt, vec, pe, attn_mask, modulation_dims_img, modulation_dims_txt, options)
        if not self.checkpointing:
            return self._run(options, img, txt, vec, pe, attn_mask, **rows)
        return recomputed(self._run, options, img, txt, vec, pe, attn_mask, **rows)

    def _run(
        self,
        options: Mapping[str, Any],
        img: Tensor,
        txt: Tensor,
        vec: Any,
        pe: Tensor | None,
        attn_mask: Tensor | None,
        img_rows: Rows,
        txt_rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        (img_mod1, img_mod2), (txt_mod1, txt_mod2) = (self.img_mod(vec), self.txt_mod(vec)) if self.modulation else vec
        length = txt.shape[1]
        of_txt = _queries_keys_values(self.txt_attn, _modulate(self.txt_norm1(txt), txt_mod1, txt_rows), self.num_heads)
        of_img = _queries_keys_values(self.img_attn, _modulate(self.img_norm1(img), img_mod1, img_rows), self.num_heads)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(of_txt, of_img, strict=True))
        extra = {**options, "img_slice": [length, q.shape[2]]}
        attended = _attend(q, k, v, pe, attn_mask, options, extra)
        img = img + _gate(self.img_attn.proj(attended[:, length:]), img_mod1, img_rows)
        img = img + _gate(self.img_mlp(_modulate(self.img_norm2(img), img_mod2, img_rows)), img_mod2, img_rows)
        txt = txt + _gate(self.txt_attn.proj(attended[:, :length]), txt_mod1, txt_rows)
        txt = txt + _gate(self.txt_mlp(_modulate(self.txt_norm2(txt), txt_mod2, txt_rows)), txt_mod2, txt_rows)
        return img, _finite(txt)


class TrainedSingleBlock(SingleStreamBlock):
    """A single block; `checkpointing` is set from outside."""

    checkpointing: bool

    def forward(
        self,
        x: Tensor,
        vec: Any,
        pe: Tensor | None,
        attn_mask: Tensor | None = None,
        modulation_dims: Rows = None,
        transformer_options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        if not torch.is_grad_enabled():
            host: Any = super()
            return host.forward(x, vec, pe, attn_mask, modulation_dims, options)
        if not self.checkpointing:
            return self._run(options, x, vec, pe, attn_mask, rows=modulation_dims)
        return recomputed(self._run, options, x, vec, pe, attn_mask, rows=modulation_dims)

    def _run(
        self,
        options: Mapping[str, Any],
        x: Tensor,
        vec: Any,
        pe: Tensor | None,
        attn_mask: Tensor | None,
        rows: Rows,
    ) -> Tensor:
        mod = self.modulation(vec)[0] if self.modulation else vec
        entering = self.linear1(_modulate(self.pre_norm(x), mod, rows))
        qkv, mlp = entering.split([3 * self.hidden_size, self.mlp_hidden_dim_first], dim=-1)
        q, k, v = _heads(qkv, self.num_heads)
        q, k = self.norm(q, k, v)
        attended = _attend(q, k, v, pe, attn_mask, options, dict(options))
        if self.yak_mlp:
            half = self.mlp_hidden_dim_first // 2
            mlp = self.mlp_act(mlp[..., half:]) * mlp[..., :half]
        else:
            mlp = self.mlp_act(mlp)
        return _finite(x + _gate(self.linear2(torch.cat((attended, mlp), dim=2)), mod, rows))


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(B, L, 3 * heads * d) -> queries, keys and values (B, heads, L, d)."""
    return tuple(qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4))


def _queries_keys_values(layer: SelfAttention, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _heads(layer.qkv(tokens), heads)
    q, k = layer.norm(q, k, v)
    return q, k, v


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pe: Tensor | None,
    mask: Tensor | None,
    options: Mapping[str, Any],
    extra: dict[str, Any],
) -> Tensor:
    """The block's attention with the host's two patches around it: (B, heads, L, d) -> (B, L, heads * d)."""
    patches = options.get("patches", {})
    for patch in patches.get("attn1_patch", ()):
        changed = patch(q, k, v, pe=pe, attn_mask=mask, extra_options=extra)
        q, k, v = changed.get("q", q), changed.get("k", k), changed.get("v", v)
        pe, mask = changed.get("pe", pe), changed.get("attn_mask", mask)
    if pe is not None:
        q, k = Turned.apply(q, pe), Turned.apply(k, pe)  # type: ignore[misc]
    attended = attention(q, k, v, pe=None, mask=mask, transformer_options=options)  # type: ignore[arg-type]
    for patch in patches.get("attn1_output_patch", ()):
        attended = patch(attended, extra)
    return attended


def _modulate(tokens: Tensor, mod: Any, rows: Rows) -> Tensor:
    """tokens (1 + scale) + shift, each (B, 1, d), or (B, n, d) of which `rows` says who has which."""
    if rows is None:
        return torch.addcmul(mod.shift, tokens, 1 + mod.scale)
    return tokens * (1 + _by_rows(mod.scale, rows)) + _by_rows(mod.shift, rows)


def _gate(tokens: Tensor, mod: Any, rows: Rows) -> Tensor:
    return tokens * (mod.gate if rows is None else _by_rows(mod.gate, rows))


def _by_rows(values: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, n, d) -> (B, L, d)."""
    parts = [
        values[:, which : which + 1].expand(-1, stop - start, -1) for start, stop, which in sorted(rows, key=tuple)
    ]
    return torch.cat(parts, dim=1)


def _finite(tokens: Tensor) -> Tensor:
    if tokens.dtype == torch.float16:
        return torch.nan_to_num(tokens, nan=0.0, posinf=65504, neginf=-65504)
    return tokens


_TRAINED: dict[type[nn.Module], type[nn.Module]] = {
    DoubleStreamBlock: TrainedDoubleBlock,
    SingleStreamBlock: TrainedSingleBlock,
    TrainedDoubleBlock: TrainedDoubleBlock,
    TrainedSingleBlock: TrainedSingleBlock,
}


def train_flux_blocks(flux: Flux, checkpointing: bool) -> None:
    """Let every block of a FLUX, which must be nobody else's, be one that gradients can go through.

    Raises:
        ValueError: a block is of a class of somebody else's.
    """
    for block in (*flux.double_blocks, *flux.single_blocks):
        if type(block) not in _TRAINED:
            raise ValueError("another pack has put blocks of its own into it; connect the model as the host loads it")
        block.__class__ = _TRAINED[type(block)]
        block.checkpointing = checkpointing  # type: ignore[assignment]
