"""Shares of attention against the whole softmax in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches import attention_maps
from comfyui_ensemble.attention_patches.attention_maps import Group, attention_shares, key_groups
from comfyui_ensemble.attention_patches.layout import Reference
from devtools.tensor_memory import TensorMemory

HEADS, QUERIES, KEYS, SIZE, GROUPS = 3, 13, 29, 8, 4
SCALE = 1 / math.sqrt(SIZE)


def tensors(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(HEADS, count, SIZE, generator=generator) for count in (QUERIES, KEYS))
    parts = torch.rand(KEYS, GROUPS, generator=generator)
    f = torch.rand(QUERIES, generator=generator) + 0.5
    return q, k, parts / parts.sum(dim=1, keepdim=True), f


def oracle(q, k, parts, allowed=None, bias=None, f=None) -> np.ndarray:
    """Sums of softmax weights, one head, query and key at a time."""
    q, k, parts = (tensor.double().numpy() for tensor in (q, k, parts))
    out = np.zeros((QUERIES, GROUPS))
    for head, query in np.ndindex(HEADS, QUERIES):
        exponents = np.zeros(KEYS)
        for key in range(KEYS):
            exponents[key] = q[head, query] @ k[head, key] / math.sqrt(SIZE) * (1 if f is None else float(f[query]))
            if bias is not None:
                exponents[key] += float(bias[head, query, key])
            if allowed is not None and not allowed[head, query, key]:
                exponents[key] = -np.inf
        weights = np.exp(exponents - exponents.max())
        for key, weight in enumerate(weights / weights.sum()):
            out[query] += weight * parts[key] / HEADS
    return out


@pytest.mark.parametrize("scores", [1, KEYS * 5, 1 << 20])
def test_shares_follow_the_whole_softmax(monkeypatch, scores):
    monkeypatch.setattr(attention_maps, "SCORES", scores)  # chunks of one query, of five, and all at once
    q, k, parts, f = tensors()
    given, plain = attention_shares(q, k, parts, SCALE, None, f)
    np.testing.assert_allclose(given.numpy(), oracle(q, k, parts), atol=1e-6)
    assert plain is not None
    np.testing.assert_allclose(plain.numpy(), oracle(q, k, parts, f=f), atol=1e-6)
    np.testing.assert_allclose(given.sum(dim=1).numpy(), 1, atol=1e-6)
    alone, none = attention_shares(q, k, parts, SCALE)
    assert torch.equal(alone, given) and none is None


@pytest.mark.parametrize("shape", [(1, 1, KEYS), (1, QUERIES, KEYS), (HEADS, QUERIES, KEYS), (HEADS, 1, KEYS)])
def test_masks(monkeypatch, shape):
    monkeypatch.setattr(attention_maps, "SCORES", KEYS * 5)
    q, k, parts, f = tensors()
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(shape, generator=generator) > 0.4
    allowed[..., 0] = True
    bias = torch.randn(shape, generator=generator)
    whole = (HEADS, QUERIES, KEYS)
    for mask, described in ((allowed, {"allowed": allowed.expand(whole)}), (bias, {"bias": bias.expand(whole)})):
        given, plain = attention_shares(q, k, parts, SCALE, mask, f)
        np.testing.assert_allclose(given.numpy(), oracle(q, k, parts, **described), atol=1e-6)
        assert plain is not None
        np.testing.assert_allclose(plain.numpy(), oracle(q, k, parts, f=f, **described), atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-6), (torch.float16, 1e-6)])
def test_half_precision_is_looked_at_in_float32(dtype, tolerance):
    q, k, parts, f = tensors()
    q, k = q.to(dtype), k.to(dtype)
    given, _ = attention_shares(q, k, parts, SCALE, None, f)
    assert given.dtype == torch.float32
    np.testing.assert_allclose(given.numpy(), oracle(q, k, parts), atol=tolerance)


def test_memory_does_not_grow_with_the_scores(monkeypatch):
    """All scores of a head would take 16 MB here; a chunk takes a quarter of a megabyte."""
    monkeypatch.setattr(attention_maps, "SCORES", 1 << 16)
    q, k = torch.randn(2, 2048, 16), torch.randn(2, 2048, 16)
    parts, f = torch.full((2048, 5), 0.2), torch.ones(2048)
    with TensorMemory() as memory:
        attention_shares(q, k, parts, 0.25, None, f)
    assert memory.peak < 4 * 4 * (1 << 16)


def test_every_key_is_counted_once():
    """Text of 6, a canvas of 4, alice with two references, bob, a pose map, and two tokens of somebody else's."""
    references = [
        Reference("subject", (1, 2), "alice"),
        Reference("subject", (3, 1), "bob"),
        Reference("pose", (2, 2)),
        Reference("subject", (1, 2), "alice"),
    ]
    spans = {"alice": [(1, 3)], "bob": [(2, 4), (5, 9)], "nobody": []}
    groups, parts = key_groups(6, 4, references, spans, 6 + 4 + 2 + 3 + 4 + 2 + 2)
    alice, bob = Group("subject", "alice"), Group("subject", "bob")
    expected = {
        Group("words", "alice"): {1: 1, 2: 0.5},
        Group("words", "bob"): {2: 0.5, 3: 1, 5: 1},  # what goes on behind the text's end is not text
        Group("text"): {0: 1, 4: 1},
        Group("canvas"): dict.fromkeys(range(6, 10), 1),
        alice: dict.fromkeys([10, 11, 19, 20], 1),
        bob: dict.fromkeys([12, 13, 14], 1),
        Group("pose"): dict.fromkeys([15, 16, 17, 18], 1),
        Group("other"): dict.fromkeys([21, 22], 1),
    }
    assert set(groups) == set(expected) and groups[:3] == (alice, bob, Group("pose"))
    for number, group in enumerate(groups):
        column = [expected[group].get(key, 0) for key in range(len(parts))]
        assert parts[:, number].tolist() == column
    assert parts.sum(dim=1).tolist() == [1] * len(parts)


def test_groups_without_keys_are_left_out():
    groups, parts = key_groups(0, 3, [Reference("subject", (1, 1), "a")], {}, 4)
    assert groups == (Group("subject", "a"), Group("canvas")) and parts.shape == (4, 2)
