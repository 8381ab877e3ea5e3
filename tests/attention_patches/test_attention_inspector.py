"""The attention inspector inside the host's real sampler, against the whole softmax in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.sd
import node_helpers
import numpy as np
import pytest
import torch
from comfy.model_patcher import CoreModelPatcher
from comfy_extras.nodes_flux import FluxKVCache

from comfyui_ensemble.attention_patches import attention_inspector
from comfyui_ensemble.attention_patches.attention_inspector import Observation, Spot, apply_inspector, step_of
from comfyui_ensemble.attention_patches.attention_maps import Group, Shares
from comfyui_ensemble.attention_patches.condition_positions import CCPA, EQUATION_3, apply_condition_positions
from comfyui_ensemble.attention_patches.dam import KEY as DAM
from comfyui_ensemble.attention_patches.dam import apply_dam
from comfyui_ensemble.attention_patches.dam_generator import DAMConfig, DAMGenerators, fresh_dam
from comfyui_ensemble.attention_patches.europe import EUROPE, apply_europe
from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference, token_grid
from comfyui_ensemble.attention_patches.recording import Recording

STEPS = 3
SIZE = (8, 11)  # pixels of the latent: 4 x 6 tokens, one column of them half empty
LAYOUT = Layout((Reference("subject", (3, 4), "alice"), Reference("subject", (2, 5), "bob"), Reference("pose", (4, 6))))
OTHER = Layout((Reference("subject", (3, 3), "carol"),))
SPANS = {"alice": [(1, 3)], "bob": [(4, 5)]}
SPOTS = [Spot("double", 0, 0), Spot("double", 1, 1), Spot("single", 0, 2), Spot("single", 5, 1)]
CONFIG = DAMConfig(model_width=256, width=32, double_blocks=2, single_blocks=6)


@pytest.fixture(scope="module")
def dam() -> CoreModelPatcher:
    cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(100)
    generators = DAMGenerators(CONFIG, torch.float32, cpu, comfy.ops.manual_cast)
    weights = fresh_dam(CONFIG, 0)
    generators.load_state_dict(
        {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    )
    return CoreModelPatcher(generators, load_device=cpu, offload_device=cpu)


def cond(clip, text: str, layout: Layout | None = None, **options: Any):
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if layout is not None:
        generator = torch.Generator().manual_seed(7)
        latents = [torch.randn(1, 16, 2 * h, 2 * w, generator=generator) for h, w in layout.grids]
        options = {"reference_latents": latents, LAYOUT_KEY: layout, **options}
    return node_helpers.conditioning_set_values(encoded, options)


def run(model, positive, negative, size=SIZE, cfg=2.0, batch=1, seed=3, sampler="euler") -> torch.Tensor:
    latent = torch.zeros(batch, 16, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, STEPS, cfg, sampler, "simple", positive, negative, latent, seed=seed)


class Attentions:
    """An attention override placed by somebody else: writes down what really reaches the host's attention."""

    def __init__(self, model) -> None:
        self.calls: list[dict] = []
        model.model_options["transformer_options"]["optimized_attention_override"] = self.attend

    def attend(self, attention, q, k, v, heads, **kwargs):
        options = kwargs["transformer_options"]
        dam = options.get(DAM)
        self.calls.append(
            {
                "block": (options["block_type"], options["block_index"]),
                "rows": options["cond_or_uncond"],
                "sigma": float(options["sigmas"][0]),
                "q": q.double().numpy(),
                "k": k.double().numpy(),
                "mask": kwargs.get("mask"),
                "f": None if dam is None else dam.temperature.double().numpy(),
            }
        )
        return attention(q, k, v, heads, **kwargs)

    def at(self, spot: Spot, rows: list[int]) -> dict:
        """The call at a spot that has exactly these rows."""
        sigmas = sorted({call["sigma"] for call in self.calls}, reverse=True)
        block = (spot.block_type, spot.block_index)
        (found,) = [
            call
            for call in self.calls
            if call["block"] == block and call["sigma"] == sigmas[spot.step] and call["rows"] == rows
        ]
        return found


def token_sets(layout: Layout, spans, text: int, canvas: int, copies=()) -> dict[Group, list[int]]:
    sets: dict[Group, list[int]] = {}
    start = text + canvas
    for reference in [*layout.references, *(layout.references[index] for index in copies)]:
        stop = start + math.prod(reference.grid)
        sets.setdefault(Group(reference.role, reference.name), []).extend(range(start, stop))
        start = stop
    described = set()
    for name, ranges in spans.items():
        sets[Group("words", name)] = [token for first, last in ranges for token in range(first, last)]
        described.update(sets[Group("words", name)])
    sets[Group("canvas")] = list(range(text, text + canvas))
    sets[Group("text")] = [token for token in range(text) if token not in described]
    return sets


def oracle(call, row: int, sets, text: int, canvas: int, with_dam: bool) -> dict[Group, np.ndarray]:
    """The whole softmax in float64, mean over heads: each canvas token's share for every group."""
    q, k = call["q"][row], call["k"][row]
    if not with_dam:
        q = q * call["f"][row][None, :, None]
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    if call["mask"] is not None:
        scores = scores + call["mask"].double().expand(len(call["q"]), *scores.shape)[row].numpy()
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=0)[text : text + canvas]
    return {group: weights[:, tokens].sum(axis=1) for group, tokens in sets.items()}


def check(shares: Shares, call, rows: list[int], sets, text: int, tolerance: float = 1e-4) -> None:
    canvas = math.prod(shares.canvas)
    assert set(shares.groups) == set(sets)
    for with_dam, values in ((True, shares.shares), (False, shares.without_dam)):
        if values is None:
            continue
        assert values.shape == (len(rows), canvas, len(sets)) and values.dtype == torch.float32
        np.testing.assert_allclose(values.sum(dim=-1).numpy(), 1, atol=1e-5)
        for picture, row in enumerate(rows):
            expected = oracle(call, row, sets, text, canvas, with_dam)
            for number, group in enumerate(shares.groups):
                np.testing.assert_allclose(values[picture, :, number].numpy(), expected[group], atol=tolerance)


def seen(recording: Recording[Observation], samples: torch.Tensor) -> Shares:
    (observation,) = recording.find(samples)
    shares = observation.first()
    assert shares is not None
    return shares


def test_steps_are_told_by_the_noise():
    schedule = [1.0, 0.75, 0.5, 0.25, 0.0]
    levels = {1.2: 0, 1.0: 0, 0.9: 0, 0.75: 1, 0.7500001: 1, 0.7499999: 1, 0.5: 2, 0.3: 2, 0.25: 3, 0.1: 3, 0.0: 4}
    assert {level: step_of(level, schedule) for level in levels} == levels


@pytest.mark.parametrize("spot", SPOTS)
@pytest.mark.parametrize("with_dam", [True, False])
def test_shares_equal_the_whole_softmax(flux, clip, dam, spot, with_dam):
    model = apply_dam(flux, dam, 1.0) if with_dam else flux.clone()
    model, recording = apply_inspector(apply_europe(model, LAYOUT, EUROPE), LAYOUT, spot)
    attentions = Attentions(model)
    positive = cond(clip, "alice and bob dance", LAYOUT, **{SPANS_KEY: SPANS})
    samples = run(model, positive, cond(clip, "a longer prompt with nothing in it"))
    text, canvas = positive[0][0].shape[1], 24
    shares = seen(recording, samples)
    assert (shares.without_dam is not None) == with_dam
    check(shares, attentions.at(spot, [0]), [0], token_sets(LAYOUT, SPANS, text, canvas), text)
    if shares.without_dam is not None:
        assert not torch.allclose(shares.shares, shares.without_dam, atol=1e-3)


@pytest.mark.parametrize("spot", SPOTS[1:3])
def test_the_picture_is_bit_identical(flux, clip, dam, spot):
    positive, negative = cond(clip, "a duel", LAYOUT), cond(clip, "")
    for plain in (flux, apply_dam(flux, dam, 1.0)):
        expected = run(plain, positive, negative)
        inspected, recording = apply_inspector(plain, LAYOUT, spot)
        samples = run(inspected, positive, negative)
        assert torch.equal(expected, samples) and seen(recording, samples)
        assert torch.equal(expected, run(plain, positive, negative))


def test_the_order_of_nodes_does_not_matter(flux, clip, dam):
    """What is seen comes after RoPE and after every patch on the queries, wherever these were applied."""
    made: dict[str, Any] = {
        "dam": lambda model: apply_dam(model, dam, 1.0),
        "europe": lambda model: apply_europe(model, LAYOUT, EUROPE),
        "other": lambda model: model.clone(),
    }

    def stretch(q, k, v, pe, attn_mask, extra_options):
        return {"q": 1.5 * q}

    found, positive, negative = [], cond(clip, "a duel", LAYOUT), cond(clip, "")
    for order in ([*made, "look"], ["look", *made], ["europe", "look", "other", "dam"]):
        model, recording = flux, None
        for name in order:
            if name == "look":
                model, recording = apply_inspector(model, LAYOUT, SPOTS[1])
            else:
                model = made[name](model)
            if name == "other":
                model.set_model_patch(stretch, "attn1_patch")
        assert recording is not None
        attentions = Attentions(model)
        samples = run(model, positive, negative, cfg=1.0)
        shares = seen(recording, samples)
        text = positive[0][0].shape[1]
        check(shares, attentions.at(SPOTS[1], [0]), [0], token_sets(LAYOUT, {}, text, 24), text)
        found.append(shares)
    for other in found[1:]:
        assert torch.equal(found[0].shares, other.shares) and torch.equal(found[0].without_dam, other.without_dam)


@pytest.mark.parametrize("sizes", ["LL", "BLL", "B1LL", "11LL", "BHLL", "B11L"])
def test_masks_of_other_patches_hold(flux, clip, dam, sizes):
    """A mask that another patch adds to the scores, in every form in which the host's attention takes one."""

    def hide(q, k, v, pe, attn_mask, extra_options):
        sides = {"B": len(q), "H": q.shape[1], "L": q.shape[2], "1": 1}
        mask = torch.randn([sides[side] for side in sizes], generator=torch.Generator().manual_seed(3))
        return {"attn_mask": mask}

    model, recording = apply_inspector(apply_dam(flux, dam, 1.0), LAYOUT, SPOTS[0])
    model.set_model_patch(hide, "attn1_patch")
    attentions, positive = Attentions(model), cond(clip, "two tall dancers", LAYOUT)
    shares = seen(recording, run(model, positive, cond(clip, "one old wizard", LAYOUT), batch=2))
    text, first = positive[0][0].shape[1], attentions.calls[0]
    if sizes == "BLL":  # what the oracle's expansion needs said
        first["mask"] = first["mask"][:, None]
    place = 2 * first["rows"].index(0)
    check(shares, first, [place, place + 1], token_sets(LAYOUT, {}, text, 24), text)


def test_another_override_of_attention_keeps_its_place(flux, clip):
    """Every attention of every block still goes through it, the one that is looked at too."""
    model, _ = apply_inspector(flux, LAYOUT, SPOTS[0])
    attentions = Attentions(model)
    run(model, cond(clip, "a duel", LAYOUT), cond(clip, ""), cfg=1.0)
    assert len(attentions.calls) == 8 * STEPS


def test_a_dress_that_is_given_twice_counts_once(flux, clip):
    """References that the placement adds belong to the subject that they show."""
    layout = Layout((Reference("subject", (2, 3), "dress", "dress"), Reference("subject", (3, 2), "alice", "face")))
    positive = cond(clip, "alice dances", layout)
    placed = apply_condition_positions(flux, layout, [(2, 3), (1,)], CCPA, EQUATION_3)
    text = positive[0][0].shape[1]
    for before in (True, False):
        model, recording = apply_inspector(placed if before else flux, layout, SPOTS[2])
        if not before:
            model = apply_condition_positions(model, layout, [(2, 3), (1,)], CCPA, EQUATION_3)
        attentions = Attentions(model)
        shares = seen(recording, run(model, positive, cond(clip, "")))
        check(shares, attentions.at(SPOTS[2], [0]), [0], token_sets(layout, {}, text, 24, copies=[0]), text)


def test_batches_mixed_and_split(flux, clip, dam, monkeypatch):
    """Two pictures, two prompts with the references and a negative with them: the first prompt's rows, in one call or alone."""
    model, recording = apply_inspector(apply_dam(flux, dam, 1.0), LAYOUT, SPOTS[2])
    attentions = Attentions(model)
    positive = cond(clip, "two tall dancers", LAYOUT) + cond(clip, "four red dragons", LAYOUT)
    negative, text = cond(clip, "one old wizard", LAYOUT), positive[0][0].shape[1]
    together = seen(recording, run(model, positive, negative, batch=2))
    call = next(call for call in attentions.calls if sorted(call["rows"]) == [0, 0, 1])
    assert len(call["q"]) == 6
    (observation,) = recording.find(torch.zeros(1))
    assert len(observation.prompts) == len(observation.shares) == 2
    (call,) = [
        call
        for call in attentions.calls
        if call["block"] == ("single", 0) and call["sigma"] == min(c["sigma"] for c in attentions.calls)
    ]
    sets = token_sets(LAYOUT, {}, text, 24)
    places = [2 * place for place, row in enumerate(call["rows"]) if row == 0]
    matching = []
    for place in places:
        expected = oracle(call, place, sets, text, 24, True)[Group("canvas")]
        column = together.groups.index(Group("canvas"))
        matching.append(np.allclose(together.shares[0, :, column].numpy(), expected, atol=1e-4))
    assert sum(matching) == 1
    place = places[matching.index(True)]
    check(together, call, [place, place + 1], sets, text)

    monkeypatch.setattr(flux.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = seen(recording, run(model, positive, negative, batch=2, seed=4))
    again = seen(recording, run(model, positive, negative, batch=2, seed=3))
    assert not torch.allclose(split.shares, together.shares, atol=1e-3)
    torch.testing.assert_close(again.shares, together.shares, atol=1e-3, rtol=1e-2)


def test_the_prompt_with_the_layouts_references_is_looked_at(flux, clip):
    """Not the negative, not one of another cast of the same sizes, not one without references."""
    alike = Layout((Reference("subject", (3, 4), "zoe"), *LAYOUT.references[1:]))
    model, recording = apply_inspector(flux, LAYOUT, SPOTS[0])
    ours = cond(clip, "a duel", LAYOUT)
    others = cond(clip, "a crowd", alike) + cond(clip, "a town") + cond(clip, "a forest", OTHER)
    samples = run(model, others + ours, cond(clip, "rain", LAYOUT))
    (observation,) = recording.find(samples)
    assert len(observation.prompts) == len(observation.shares) == 1 and not observation.areas
    # Without the note of what they are, as from another pack's node, the sizes have to do.
    unknown = cond(clip, "a crowd", alike)
    del unknown[0][1][LAYOUT_KEY]
    unknown[0][1]["reference_latents"] = [*unknown[0][1]["reference_latents"], torch.randn(1, 16, 4, 4)]
    shares = seen(recording, run(model, unknown, cond(clip, ""), seed=5))
    assert Group("other") in shares.groups  # what was added behind the layout's


def test_what_cannot_be_seen(flux, clip):
    positive, negative = cond(clip, "a duel", LAYOUT), cond(clip, "")
    model, recording = apply_inspector(flux, LAYOUT, Spot("double", 0, 7))
    (observation,) = recording.find(run(model, positive, negative, cfg=1.0))
    assert observation.first() is None and observation.prompts and observation.steps == STEPS
    assert observation.canvas == token_grid(torch.zeros(SIZE))
    model, recording = apply_inspector(flux, LAYOUT, Spot("double", 0, 0))
    (observation,) = recording.find(run(model, cond(clip, "a duel"), negative, cfg=1.0))
    assert observation.first() is None and not observation.prompts
    half = node_helpers.conditioning_set_values(positive, {"area": (4, 4, 0, 0), "strength": 1.0})
    (observation,) = recording.find(run(model, half + cond(clip, "a town"), negative, cfg=1.0, seed=4))
    assert observation.first() is None and observation.areas
    late = node_helpers.conditioning_set_values(positive, {"start_percent": 0.5, "end_percent": 1.0})
    (observation,) = recording.find(run(model, late + cond(clip, "a town"), negative, cfg=1.0, seed=5))
    assert observation.first() is None and observation.prompts and not observation.areas


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m_sde", "uni_pc"])
def test_samplers_that_ask_more_than_once_a_step(flux, clip, sampler):
    model, recording = apply_inspector(flux, LAYOUT, Spot("single", 2, 1))
    shares = seen(recording, run(model, cond(clip, "a duel", LAYOUT), cond(clip, ""), cfg=1.0, sampler=sampler))
    np.testing.assert_allclose(shares.shares.sum(dim=-1).numpy(), 1, atol=1e-5)


def test_two_inspectors_on_one_model(flux, clip):
    model, first = apply_inspector(flux, LAYOUT, SPOTS[0])
    model, second = apply_inspector(model, LAYOUT, SPOTS[3])
    attentions = Attentions(model)
    positive = cond(clip, "a duel", LAYOUT)
    samples, text = run(model, positive, cond(clip, ""), cfg=1.0), positive[0][0].shape[1]
    for recording, spot in ((first, SPOTS[0]), (second, SPOTS[3])):
        check(seen(recording, samples), attentions.at(spot, [0]), [0], token_sets(LAYOUT, {}, text, 24), text)


def test_references_from_the_hosts_cache(flux, clip):
    """The host's KV cache takes references out of the queries after the first step and appends their keys."""
    executed: Any = FluxKVCache.execute(flux)
    model = executed.result[0]
    model, recording = apply_inspector(model, LAYOUT, Spot("double", 1, 2))
    attentions = Attentions(model)
    positive = cond(clip, "a duel", LAYOUT, reference_latents_method="index")
    shares, text = seen(recording, run(model, positive, cond(clip, ""), cfg=1.0)), positive[0][0].shape[1]
    call = attentions.at(Spot("double", 1, 2), [0])
    assert call["q"].shape[2] == text + 24 < call["k"].shape[2]
    check(shares, call, [0], token_sets(LAYOUT, {}, text, 24), text)


def test_low_memory_and_half_precision(tiny_models, clip, dam):
    path = next((tiny_models / "diffusion_models").glob("ensemble_tiny_flux.safetensors"))
    positive = cond(clip, "a duel", LAYOUT)
    for dtype in (torch.bfloat16, torch.float16):
        model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
        model.set_model_compute_dtype(dtype)
        model, recording = apply_inspector(apply_dam(model, dam, 1.0), LAYOUT, SPOTS[0])
        attentions = Attentions(model)
        shares, text = seen(recording, run(model, positive, cond(clip, ""), cfg=1.0)), positive[0][0].shape[1]
        check(shares, attentions.at(SPOTS[0], [0]), [0], token_sets(LAYOUT, {}, text, 24), text)


def test_an_interrupt_leaves_nothing(flux, clip, monkeypatch):
    """Also one that comes while the attention is looked at."""
    model, recording = apply_inspector(flux, LAYOUT, SPOTS[1])
    positive, negative = cond(clip, "a duel", LAYOUT), cond(clip, "")
    expected = run(model, positive, negative)
    before = recording.find(expected)

    def interrupted(*args, **kwargs):
        comfy.model_management.interrupt_current_processing(True)
        return seen_shares(*args, **kwargs)

    seen_shares = attention_inspector.attention_shares
    monkeypatch.setattr(attention_inspector, "attention_shares", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, positive, negative, seed=9)
    monkeypatch.undo()
    assert recording.current is None and recording.find(torch.ones(1, 16, *SIZE)) is before
    options = model.model_options["transformer_options"]
    assert "optimized_attention_override" not in options and not options.get("patches")
    assert torch.equal(expected, run(model, positive, negative))


def test_runs_are_told_apart(flux, clip):
    model, recording = apply_inspector(flux, LAYOUT, SPOTS[0])
    positive, negative = cond(clip, "a duel", LAYOUT), cond(clip, "")
    pictures = [run(model, positive, negative, cfg=1.0, seed=seed) for seed in range(3)]
    shares = [seen(recording, picture).shares for picture in pictures]
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(shares, 2))
