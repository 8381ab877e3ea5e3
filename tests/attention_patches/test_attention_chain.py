"""Steps on one attention compose with each other and with foreign replacements, whatever came first."""

from __future__ import annotations

import itertools

import torch

from comfyui_ensemble.attention_patches.attention_chain import INFUSED, OBSERVED, ROUTED, add_steps

BLOCK = ("middle", 0, 1)
EXTRA = {"n_heads": 2, "attn_precision": None}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, length, 8, generator=generator) for length in (5, 7, 7)]


def oracle(q, k, v):
    """Attention of two heads of four, written out in float64."""
    result = torch.zeros(q.shape, dtype=torch.float64)
    for row, head in itertools.product(range(len(q)), range(2)):
        part = slice(4 * head, 4 * head + 4)
        scores = q[row, :, part].double() @ k[row, :, part].double().T / 2
        result[row, :, part] = scores.softmax(-1) @ v[row, :, part].double()
    return result


def chain(options):
    return options["patches_replace"]["attn1"][BLOCK]


def labelled(name, log):
    def step(attend, q, k, v, extra):
        log.append(name)
        return attend(q, k, v) + len(name)

    return step


def test_a_step_that_does_nothing_is_the_hosts_attention():
    options = add_steps({}, "attn1", {BLOCK: lambda attend, q, k, v, extra: attend(q, k, v)}, ROUTED)
    q, k, v = tensors()
    torch.testing.assert_close(chain(options)(q, k, v, EXTRA).double(), oracle(q, k, v), rtol=1e-5, atol=1e-5)


def test_ranks_decide_the_order_whatever_was_added_first():
    results = []
    for order in itertools.permutations([("bbb", INFUSED), ("cc", OBSERVED), ("a", ROUTED)]):
        log, options = [], {}
        for name, rank in order:
            options = add_steps(options, "attn1", {BLOCK: labelled(name, log)}, rank)
        results.append(chain(options)(*tensors(), EXTRA))
        assert log == ["cc", "bbb", "a"]  # the outermost is called first
    assert all(torch.equal(results[0], result) for result in results)


def test_a_foreign_replacement_runs_innermost_and_once():
    calls = []

    def foreign(q, k, v, extra):
        calls.append(extra)
        return q * 3

    for name in (BLOCK, BLOCK[:2]):  # the host takes both spellings
        calls.clear()
        options = {"patches_replace": {"attn1": {name: foreign}}, "sigmas": 1}
        for rank in (INFUSED, ROUTED):
            options = add_steps(options, "attn1", {BLOCK: labelled("xx", [])}, rank)
        q, k, v = tensors()
        assert torch.equal(chain(options)(q, k, v, EXTRA), q * 3 + 2 + 2)
        assert calls == [EXTRA]


def test_what_was_given_stays_as_it_is():
    foreign = object()
    replaced = {"attn1": {BLOCK: foreign}, "attn2": {BLOCK: foreign}}
    options = {"patches_replace": replaced}
    changed = add_steps(options, "attn1", {BLOCK: labelled("x", [])}, ROUTED)
    assert options == {"patches_replace": {"attn1": {BLOCK: foreign}, "attn2": {BLOCK: foreign}}}
    assert changed["patches_replace"]["attn2"][BLOCK] is foreign


def test_a_step_may_use_fewer_queries_and_more_keys():
    def step(attend, q, k, v, extra):
        return torch.cat((attend(q[:, :2], k.repeat(1, 2, 1), v.repeat(1, 2, 1)), attend(q[:, 2:], k, v)), dim=1)

    q, k, v = tensors()
    result = chain(add_steps({}, "attn1", {BLOCK: step}, ROUTED))(q, k, v, EXTRA)
    # Doubled keys change no softmax.
    torch.testing.assert_close(result.double(), oracle(q, k, v), rtol=1e-5, atol=1e-5)
