"""AnyStory's Eq. 5-8 against loops written from the paper."""

from __future__ import annotations

import itertools
import math

import comfy.ops
import numpy as np
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from comfyui_ensemble.attention_patches.anystory_injection import (
    AnyStoryInjection,
    add_references,
    fresh_injection,
    injection_from_base,
    reference_attention,
    subject_attention,
)
from comfyui_ensemble.attention_patches.anystory_network import SDXL_ANYSTORY, base_layers
from comfyui_ensemble.attention_patches.anystory_routing import split_by_owner
from comfyui_ensemble.attention_patches.unet_layers import attention_layers

HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE
ROWS, PIXELS = 2, 11


class HostAttention:
    """The host's attention, which counts the pairs of query and key, and the masks, it is given."""

    def __init__(self) -> None:
        self.pairs = self.masks = 0

    def __call__(self, q, k, v, mask):
        self.pairs += q.shape[0] * q.shape[1] * k.shape[1]
        self.masks += mask is not None
        return optimized_attention(q, k, v, HEADS, mask=mask)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(count: int, tokens: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(random(tokens + n, WIDTH, seed=seed + n), random(tokens + n, WIDTH, seed=-seed - n)) for n in range(count)]


NOBODY = pairs(1, 4, seed=77)[0]


def random_owners(entries: int, rows: int = ROWS, pixels: int = PIXELS) -> torch.Tensor:
    """Of every pixel; the second entry has none."""
    owners = torch.randint(0, entries, (rows, pixels), generator=torch.Generator().manual_seed(entries))
    return owners.masked_fill(owners == 1, 0)


def attended(query, keys, values, biases) -> np.ndarray:
    """One pixel's softmax attention, a head at a time; a bias of minus infinity leaves a key out."""
    out = np.zeros(WIDTH)
    for head in range(HEADS):
        part = slice(head * SIZE, (head + 1) * SIZE)
        logits = [
            query[part] @ key[part] / math.sqrt(SIZE) + bias if bias != -math.inf else -math.inf
            for key, bias in zip(keys, biases, strict=True)
        ]
        top = max(logits)
        shares = [math.exp(logit - top) for logit in logits]
        out[part] = sum(share * value[part] for share, value in zip(shares, values, strict=True)) / sum(shares)
    return out


def oracle_eq5(q, owners, entries) -> np.ndarray:
    out = np.zeros((ROWS, PIXELS, WIDTH))
    for row, pixel in itertools.product(range(ROWS), range(PIXELS)):
        for entry, (keys, values) in enumerate(entries):
            sigma = 1.0 if owners[row, pixel] == entry else 0.0
            found = attended(q[row, pixel].numpy(), keys.numpy(), values.numpy(), [0.0] * len(keys))
            out[row, pixel] += sigma * found
    return out


def oracle_eq6(q, k, v, owners, references, gamma, routed_rows) -> np.ndarray:
    """Over all keys there are, with the whole bias of Eq. 7 and 8."""
    out = np.zeros((ROWS, PIXELS, WIDTH))
    for row, pixel in itertools.product(range(ROWS), range(PIXELS)):
        keys, values, biases = list(k[row].numpy()), list(v[row].numpy()), [0.0] * PIXELS
        for entry, reference in enumerate(references):
            if reference is None or row not in routed_rows:
                continue
            g = 0.0 if owners[row, pixel] == entry else -math.inf
            keys += list(reference[0].numpy())
            values += list(reference[1].numpy())
            biases += [g + gamma] * len(reference[0])
        out[row, pixel] = attended(q[row, pixel].numpy(), keys, values, biases)
    return out


@pytest.mark.parametrize("entries", [2, 3, 13])
def test_eq_5(entries):
    q, owners, tokens = random(ROWS, PIXELS, WIDTH, seed=1), random_owners(entries), pairs(entries, 5, seed=2)
    members = dict(enumerate(split_by_owner(owners, entries)))
    out = subject_attention(HostAttention(), q, members, tokens, NOBODY)
    np.testing.assert_allclose(out.numpy(), oracle_eq5(q, owners, tokens), rtol=1e-9, atol=1e-9)


def test_eq_5_of_a_row_without_subjects_sees_the_empty_picture():
    """As if the zero image were the only entry, for every pixel."""
    q, owners, tokens = random(ROWS, PIXELS, WIDTH, seed=1), random_owners(3), pairs(3, 5, seed=2)
    out = subject_attention(HostAttention(), q, {1: split_by_owner(owners, 3)[1]}, tokens, NOBODY)
    np.testing.assert_allclose(out[1].numpy(), oracle_eq5(q, owners, tokens)[1], rtol=1e-9, atol=1e-9)
    alone = oracle_eq5(q, torch.zeros_like(owners), [NOBODY])
    np.testing.assert_allclose(out[0].numpy(), alone[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, -1.5, 2.0])
@pytest.mark.parametrize("subjects", [1, 2, 12])
@pytest.mark.parametrize("background", [False, True])
def test_eq_6_to_8(subjects, gamma, background):
    q, k, v = (random(ROWS, PIXELS, WIDTH, seed=seed) for seed in (1, 2, 3))
    owners = random_owners(subjects + 1)
    references = [*pairs(subjects, 4, seed=5), pairs(1, 6, seed=9)[0] if background else None]
    attention = HostAttention()
    members = dict(enumerate(split_by_owner(owners, subjects + 1)))
    out = reference_attention(attention, q, k, v, members, references, gamma)
    expected = oracle_eq6(q, k, v, owners, references, gamma, range(ROWS))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert bool(attention.masks) == (gamma != 0)  # every fused kernel serves where there is none


def test_a_row_without_subjects_is_plain_attention():
    q, k, v = (random(ROWS, PIXELS, WIDTH, seed=seed) for seed in (1, 2, 3))
    owners, references = random_owners(3), [*pairs(2, 4, seed=5), None]
    attention, members = HostAttention(), {1: split_by_owner(owners, 3)[1]}
    out = reference_attention(attention, q, k, v, members, references, 0.5)
    expected = oracle_eq6(q, k, v, owners, references, 0.5, [1])
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(out[:1], attention(q[:1], k[:1], v[:1], None))


def test_what_another_attention_gave_is_kept():
    """On a plain base the sum is Eq. 6 itself; on any other base the difference is the same."""
    q, k, v = (random(ROWS, PIXELS, WIDTH, seed=seed) for seed in (1, 2, 3))
    owners, references = random_owners(3), [*pairs(2, 4, seed=5), None]
    attention, members = HostAttention(), dict(enumerate(split_by_owner(owners, 3)))
    plain, foreign = attention(q, k, v, None), random(ROWS, PIXELS, WIDTH, seed=4)
    direct = reference_attention(attention, q, k, v, members, references, -0.5)
    torch.testing.assert_close(add_references(attention, plain, q, k, v, members, references, -0.5), direct)
    kept = foreign.clone()
    added = add_references(attention, foreign, q, k, v, members, references, -0.5) - foreign
    torch.testing.assert_close(added, direct - plain)
    assert not added[owners == 2].any() and torch.equal(foreign, kept)


@pytest.mark.parametrize("area", [0, 4, 10])
def test_work_is_that_of_the_routed_area_whatever_the_cast(area):
    """Pairs of query and key: all own, the area's with one reference, every pixel with one entry's tokens."""
    q, k, v = (random(1, PIXELS, WIDTH, seed=seed) for seed in (1, 2, 3))
    for subjects in (1, 2, 5, 12):
        owners = torch.full((1, PIXELS), subjects)
        owners[0, :area] = torch.arange(area) % subjects
        members, attention = dict(enumerate(split_by_owner(owners, subjects + 1))), HostAttention()
        references = [(random(7, WIDTH, seed=n), random(7, WIDTH, seed=n)) for n in range(subjects)]
        reference_attention(attention, q, k, v, members, [*references, None], 0.0)
        assert attention.pairs == PIXELS * PIXELS + area * 7
        tokens = random(5, WIDTH, seed=0)
        subject_attention(attention, q, members, [(tokens, tokens)] * (subjects + 1), NOBODY)
        assert attention.pairs == PIXELS * PIXELS + area * 7 + PIXELS * 5


def test_matrices_at_sdxls_size():
    layers = base_layers(SDXL_ANYSTORY)
    injection = AnyStoryInjection(layers, 2048, torch.float16, "meta", comfy.ops.manual_cast)
    assert (len(injection.subject), len(injection.reference)) == (70, 69)
    assert sum(weight.numel() for weight in injection.subject.parameters()) == 2 * 2048 * (10 * 640 + 60 * 1280)
    assert sum(weight.numel() for weight in injection.reference.parameters()) == 2 * (9 * 640**2 + 60 * 1280**2)
    assert layers[0].name not in injection.reference


def test_training_starts_from_the_base_models_matrices(sdxl):
    unet = sdxl.model.diffusion_model
    layers = attention_layers(unet)
    weights = injection_from_base(unet)
    injection = AnyStoryInjection(layers, 384, torch.float32, "cpu", comfy.ops.manual_cast)
    injection.load_state_dict(weights)
    assert weights.keys() == fresh_injection(layers, 384, 0).keys()
    block = unet.middle_block[1].transformer_blocks[1]
    tokens, hidden = torch.randn(3, 384), torch.randn(3, 64)
    key, value = injection.subject["middle_0_1"](tokens)
    torch.testing.assert_close(key, block.attn2.to_k(tokens))
    torch.testing.assert_close(value, block.attn2.to_v(tokens))
    key, value = injection.reference["middle_0_1"](hidden)
    torch.testing.assert_close(key, block.attn1.to_k(hidden))
    torch.testing.assert_close(value, block.attn1.to_v(hidden))
    weights["subject.middle_0_1.to_k.weight"].zero_()
    assert block.attn2.to_k.weight.any()  # a copy


def test_fresh_matrices_keep_the_tokens_variance(sdxl):
    layers = attention_layers(sdxl.model.diffusion_model)
    weights, again = fresh_injection(layers, 384, 1), fresh_injection(layers, 384, 1)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    injection = AnyStoryInjection(layers, 384, torch.float32, "cpu", comfy.ops.manual_cast)
    injection.load_state_dict(weights)
    key, value = injection.subject["middle_0_0"](torch.randn(200, 384))
    assert 0.9 < key.std() < 1.1 and 0.9 < value.std() < 1.1
