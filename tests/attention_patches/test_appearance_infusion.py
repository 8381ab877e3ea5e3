"""Gate, top-k and blend against loops written from the paper, and the schedules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from comfyui_ensemble.attention_patches import appearance_infusion
from comfyui_ensemble.attention_patches.appearance_infusion import (
    AVERAGED,
    CONCATENATED,
    CONSTANT,
    COSINE,
    LINEAR,
    SCHEDULES,
    SIMILARITIES,
    STEP,
    Offer,
    Schedule,
    infuse,
    match,
)
from comfyui_ensemble.attention_patches.appearance_tokens import LayerTokens, Tokens

HEADS, WIDTH = 3, 12


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / math.sqrt((one @ one) * (other @ other)))


def similarity_of(query: np.ndarray, key: np.ndarray, similarity: str) -> float:
    if similarity == CONCATENATED:
        return cosine(query, key)
    parts = [slice(start, start + WIDTH // HEADS) for start in range(0, WIDTH, WIDTH // HEADS)]
    return sum(cosine(query[part], key[part]) for part in parts) / HEADS


def oracle_match(query: np.ndarray, keys: np.ndarray, values: np.ndarray, top_k: int, similarity: str):
    """(sim_i, A_app,i), float64, one token at a time."""
    found = [similarity_of(query, key, similarity) for key in keys]
    best = sorted(range(len(keys)), key=lambda index: -found[index])[:top_k]
    size = WIDTH // HEADS
    appearance = np.zeros(WIDTH)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        logits = np.array([query[part] @ keys[index][part] / math.sqrt(size) for index in best])
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        appearance[part] = sum(share * values[index][part] for share, index in zip(shares, best, strict=True))
    return max(found), appearance


def oracle(base, q, offers, tau, delta, top_k, similarity):
    """A and who gave to each token; offers are (keys, values, share of every token)."""
    out, owners = base.double().numpy().copy(), []
    for row, query in enumerate(q.double().numpy()):
        winner, owner, best = None, 0, -math.inf
        for number, (keys, values, share) in enumerate(offers, start=1):
            if share[row] == 0:
                continue
            sim, appearance = oracle_match(query, keys.double().numpy(), values.double().numpy(), top_k, similarity)
            if sim >= tau and sim > best:
                winner, owner, best = (appearance, float(share[row])), number, sim
        if winner is not None:
            appearance, share = winner
            out[row] = (out[row] + delta * share * appearance) / (1 + delta * share)
        owners.append(owner)
    return out, owners


def offer(keys, values, share=None) -> Offer:
    tokens = LayerTokens(Tokens.of(keys, values))
    if share is None:
        return Offer(tokens)
    rows = torch.nonzero(share)[:, 0]
    return Offer(tokens, rows, share[rows])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("top_k", [1, 2, 7, 50])
@pytest.mark.parametrize("tau", [-1.0, 0.3, 0.6])
def test_one_appearance_equals_the_loop(similarity, top_k, tau):
    base, q, keys, values = numbers(0, 40, WIDTH), numbers(1, 40, WIDTH), 3 * numbers(2, 9, WIDTH), numbers(3, 9, WIDTH)
    expected, owners = oracle(base, q, [(keys, values, torch.ones(40))], tau, 3.0, top_k, similarity)
    infused = infuse(base, q, [offer(keys, values)], HEADS, tau, 3.0, top_k, similarity)
    np.testing.assert_allclose(infused.attention.double().numpy(), expected, atol=1e-5)
    assert infused.number.tolist() == owners
    if tau > -1:
        assert 0 < sum(owners) < 40  # some pass the gate, some do not
    gated = torch.tensor(owners) == 0
    assert torch.equal(infused.attention[gated], base[gated])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("top_k", [1, 3])
def test_several_appearances_with_masks_equal_the_loop(similarity, top_k):
    base, q = numbers(0, 60, WIDTH), numbers(1, 60, WIDTH)
    shares = [torch.ones(60), (numbers(7, 60) > 0).float(), numbers(8, 60).clamp(0, 1), torch.zeros(60)]
    offers = [(numbers(10 + n, 5 + n, WIDTH), numbers(20 + n, 5 + n, WIDTH), share) for n, share in enumerate(shares)]
    expected, owners = oracle(base, q, offers, 0.25, 2.0, top_k, similarity)
    given = [offer(keys, values, None if share.all() else share) for keys, values, share in offers]
    infused = infuse(base, q, given, HEADS, 0.25, 2.0, top_k, similarity)
    np.testing.assert_allclose(infused.attention.double().numpy(), expected, atol=1e-5)
    assert infused.number.tolist() == owners and set(owners) == {0, 1, 2, 3}


def test_the_result_lies_between_base_and_one_appearance_and_moves_with_delta():
    base, q = numbers(0, 50, WIDTH), numbers(1, 50, WIDTH)
    offers = [offer(numbers(n, 8, WIDTH), numbers(n + 9, 8, WIDTH), numbers(n, 50).clamp(0, 1)) for n in (2, 3)]
    far = infuse(base, q, offers, HEADS, -1, 1e9).attention  # all of it, where there is any share
    distances = []
    for delta in (0.0, 0.5, 3.0, 100.0):
        out = infuse(base, q, offers, HEADS, -1, delta).attention
        assert ((out >= torch.minimum(base, far) - 1e-5) & (out <= torch.maximum(base, far) + 1e-5)).all()
        distances.append((out - far).abs())
        if delta == 0:
            assert torch.equal(out, base)
    assert all((nearer <= further + 1e-6).all() for further, nearer in itertools.pairwise(distances))


def test_delta_three_makes_three_quarters_the_appearances():
    base, values = torch.zeros(1, WIDTH), torch.full((1, WIDTH), 4.0)
    key = numbers(1, 1, WIDTH)
    assert infuse(base, key, [offer(key, values)], HEADS, 0.99, 3.0).attention.eq(3.0).all()


def test_a_cosine_of_one_passes_a_tau_of_almost_one_and_none_passes_above():
    base, q, values = numbers(0, 20, WIDTH), numbers(1, 20, WIDTH), numbers(2, 20, WIDTH)
    assert infuse(base, q, [offer(5 * q, values)], HEADS, 0.9999, 3.0).number.all()
    assert torch.equal(infuse(base, q, [offer(5 * q, values)], HEADS, 1.001, 3.0).attention, base)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_of_its_own_keys_every_token_finds_its_own_value_exactly(similarity):
    keys, values = numbers(1, 64, WIDTH), numbers(2, 64, WIDTH)
    sim, found = match(keys, Tokens.of(keys, values), HEADS, 1, similarity)
    assert torch.equal(found, values)
    torch.testing.assert_close(sim, torch.ones(64))


@pytest.mark.parametrize("top_k", [1, 4])
def test_chunks_change_nothing(monkeypatch, top_k):
    q, tokens = numbers(1, 100, WIDTH), Tokens.of(numbers(2, 30, WIDTH), numbers(3, 30, WIDTH))
    whole = match(q, tokens, HEADS, top_k)
    for scores in (1, 70, 1000):
        monkeypatch.setattr(appearance_infusion, "SCORES", scores)
        for one, other in zip(match(q, tokens, HEADS, top_k), whole, strict=True):
            torch.testing.assert_close(one, other)


def test_similarities_are_never_all_there_at_once():
    """Of 4,096 queries and keys at most `SCORES` products exist, a quarter of all."""
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    q = numbers(1, 4096, 32)
    tokens = Tokens.of(numbers(2, 4096, 32), q)
    with Largest():
        match(q, tokens, HEADS - 1)
    assert largest == appearance_infusion.SCORES < 4096 * 4096


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype, wrong", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_finds_neighbours_as_good_as_the_best(dtype, wrong, similarity):
    """At SDXL's width: the cosine that is found, and that of the key that is chosen, differ from the best by a rounding."""
    q, keys = numbers(1, 200, 640).to(dtype), numbers(2, 300, 640).to(dtype)
    index = torch.arange(300.0)[:, None].expand(-1, 640)  # values that say whose they are
    tokens = Tokens.of(keys, index.to(torch.float32))
    sim, found = match(q, tokens, 10, 1, similarity)
    one, other = q.double(), keys.double()
    if similarity == AVERAGED:
        one, other = (
            torch.nn.functional.normalize(x.unflatten(-1, (10, -1)), dim=-1).flatten(-2) for x in (one, other)
        )
    cosines = torch.nn.functional.normalize(one, dim=-1) @ torch.nn.functional.normalize(other, dim=-1).T
    chosen = cosines.gather(1, found[:, :1].long())[:, 0]
    best = cosines.amax(1)
    assert (best - chosen).max() <= wrong * best.max()
    assert (sim.double() - best).abs().max() <= wrong * best.max()


def test_an_appearance_without_tokens_to_change_is_passed_over():
    base, q = numbers(0, 6, WIDTH), numbers(1, 6, WIDTH)
    nowhere = offer(q, q, torch.zeros(6))
    assert torch.equal(infuse(base, q, [nowhere], HEADS, -1, 3.0).attention, base)


def test_what_was_given_stays_as_it_is():
    base, q, keys = numbers(0, 6, WIDTH), numbers(1, 6, WIDTH), numbers(2, 4, WIDTH)
    copies = [value.clone() for value in (base, q, keys)]
    infuse(base, q, [offer(keys, keys), offer(keys, keys, torch.ones(6))], HEADS, -1, 3.0)
    assert all(torch.equal(value, copy) for value, copy in zip((base, q, keys), copies, strict=True))


@pytest.mark.parametrize(
    "kind, expected",
    [
        (CONSTANT, [1, 1, 1, 1, 1]),
        (LINEAR, [0, 0.25, 0.5, 0.75, 1]),
        (COSINE, [0, 0.5 - math.sqrt(0.125), 0.5, 0.5 + math.sqrt(0.125), 1]),
        (STEP, [0, 0, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("start, end", [(0.0, 1.0), (0.2, 0.6)])
def test_schedules(kind, expected, start, end):
    schedule = Schedule(0.5, 0.15, 0.0, 3.0, kind, start, end)
    for quarter, share in enumerate(expected):
        tau, delta = schedule.at(start + (end - start) * quarter / 4)
        assert tau == pytest.approx(0.5 - 0.35 * share) and delta == pytest.approx(3 * share)
    for outside in (start - 0.01, end + 0.01):
        assert schedule.at(outside)[1] == 0
    assert kind in SCHEDULES
