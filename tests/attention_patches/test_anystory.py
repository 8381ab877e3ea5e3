"""AnyStory inside the host's real sampler, against loops written from the paper."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import comfy.controlnet
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import node_helpers
import numpy as np
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import Guider_PerpNeg
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel

from comfyui_ensemble.attention_patches.anystory import KEY, apply_anystory
from comfyui_ensemble.attention_patches.anystory_call import NO_REFERENCES, Settings
from comfyui_ensemble.attention_patches.anystory_routing import ROUTING_KEY, shares
from comfyui_ensemble.attention_patches.attention_chain import INFUSED, OBSERVED, add_steps
from comfyui_ensemble.attention_patches.unet_layers import attention_layers
from comfyui_ensemble.models_info.registry import TINY_CONTROLNET, TINY_SDXL
from comfyui_ensemble.models_info.tiny_sdxl import load_tiny_sdxl

STEPS = 2
BOTH = Settings(eta=0.7, gamma=0.5)
OFF = Settings(eta=0.0, gamma=NO_REFERENCES)
NEAR_TIE = 1e-3  # of two logits, which float32 may order otherwise


@pytest.fixture(scope="module")
def layers(sdxl):
    return attention_layers(sdxl.model.diffusion_model)


def prompt(seed: int, tokens: int = 7, **options):
    generator = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, tokens, 384, generator=generator), torch.randn(1, 384, generator=generator)
    return [[text, {"pooled_output": pooled, **options}]]


def run(model, positive=None, negative=None, size=(16, 16), cfg=2.0, batch=1, guider=None, steps=STEPS) -> torch.Tensor:
    """Euler steps of the host's sampler on a latent of `size` pixels."""
    if guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive or prompt(1), negative or prompt(2))
        guider.set_cfg(cfg)
    latent = torch.zeros(batch, 4, *size)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    noise = comfy.sample.prepare_noise(latent, 3)
    return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), sigmas, seed=3)


def story(model, subjects, settings=BOTH):
    return apply_anystory(model, subjects, settings)[0]


class Watcher:
    """Writes down what enters and leaves every attention, outside of all that AnyStory does, call by call."""

    def __init__(self, model, layers) -> None:
        self.calls: list[dict[Any, Any]] = []
        self.layers = layers
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watcher", self.wrap)

    def wrap(self, executor, x, timesteps, context, y, control, options, **kwargs):
        call: dict[Any, Any] = {
            "prompts": options["cond_or_uncond"],
            "sigma": float(options["sigmas"][0]),
            "rows": len(x),
        }
        self.calls.append(call)

        def step(kind, layer):
            def watch(attend, q, k, v, extra):
                routing = extra.get(ROUTING_KEY)
                before = routing.latest if routing is not None else None
                out = attend(q, k, v)
                call[kind, layer.name] = {"q": q, "k": k, "v": v, "out": out, "before": before, "extra": extra}
                if kind == "attn2":
                    call[kind, layer.name] |= {"z": call["entering"], "map": routing.latest if routing else None}
                return out

            return watch

        def enter(n, context, value, extra):
            call["entering"] = n
            return n, context, value

        patches = options.get("patches", {})
        patches = {**patches, "attn2_patch": [*patches.get("attn2_patch", []), enter]}
        options = {**options, "patches": patches}
        for kind in ("attn1", "attn2"):
            steps = {layer.block: step(kind, layer) for layer in self.layers}
            options = add_steps(options, kind, steps, OBSERVED)
        return executor(x, timesteps, context, y, control, options, **kwargs)


def wide(value: torch.Tensor) -> np.ndarray:
    return value.double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    parts = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return parts / parts.sum(axis=-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, bias: float | np.ndarray = 0.0) -> np.ndarray:
    """Softmax attention of one row over all keys, a head at a time; bias (pixels, keys)."""
    out = np.zeros_like(q)
    size = q.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        out[:, part] = softmax(q[:, part] @ k[:, part].T / math.sqrt(size) + bias) @ v[:, part]
    return out


def refined_map(router, features: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Logits (pixels, entries) of one row, in the paper's order of operations."""
    w = {name: wide(weight) for name, weight in router.state_dict().items()}
    coarse = (features @ w["coarse_subject.weight"].T) @ (z @ w["coarse_latent.weight"]).T  # (entries, pixels)
    best = coarse.argmax(axis=0)
    query, key = features @ w["refine_query.weight"].T, z @ w["refine_key.weight"]
    value, size = z @ w["refine_value.weight"].T, 64
    found = np.zeros_like(features)
    for entry in range(len(features)):
        own = best == entry if (best == entry).any() else np.ones(len(z), bool)
        for head in range(features.shape[1] // size):
            part = slice(head * size, (head + 1) * size)
            shares = softmax(query[entry, part] @ key[own][:, part].T / math.sqrt(size))
            found[entry, part] = shares @ value[own][:, part]
    refined = features + found @ w["refine_out.weight"].T
    return ((refined @ w["fine_subject.weight"].T) @ (z @ w["fine_latent.weight"]).T).T


def to_cast(routed, order: list[int]) -> np.ndarray:
    """A map's owners as indices of the cast, the background being the last."""
    return np.array([*order, len(order)])[routed.owners.numpy()]


def check_call(call, layers, subjects, settings, negative=1, tolerance=2e-4) -> None:
    """Every attention of a call: the map, Eq. 5, Eq. 6-8, each from what entered it."""
    network = subjects.network.model
    count, rows = len(subjects.names), call["rows"]
    pictures = rows // len(call["prompts"])
    negatives = [number == negative for number in call["prompts"] for _ in range(pictures)]
    order = sorted(range(count), key=lambda subject: subjects.router[subject].tolist())
    for number, layer in enumerate(layers):
        seen, heads = call["attn1", layer.name], layer.heads
        q, k, v = (wide(seen[name]) for name in "qkv")
        grid = seen["extra"]["activations_shape"][-2:]
        for row in range(rows):
            keys, values, bias = k[row], v[row], np.zeros((len(q[row]), len(k[row])))
            if number and not negatives[row] and settings.gamma != NO_REFERENCES:
                owners = to_cast(seen["before"], order)[row].reshape(seen["before"].grid)
                picked = [
                    ((np.arange(new) + 0.5) * old / new).astype(int)
                    for new, old in zip(grid, owners.shape, strict=True)
                ]
                owners = owners[picked[0]][:, picked[1]].flatten()
                pair = network.injection.reference[layer.name]
                for subject in range(count):
                    g = wide(subjects.hidden[number][subject])
                    keys = np.concatenate((keys, g @ wide(pair.to_k.weight).T))
                    values = np.concatenate((values, g @ wide(pair.to_v.weight).T))
                    allowed = np.where(owners == subject, 0.0, -np.inf)[:, None] + settings.gamma
                    bias = np.concatenate((bias, allowed.repeat(len(g), axis=1)), axis=1)
            expected = attention(q[row], keys, values, heads, bias)
            assert np.abs(wide(seen["out"])[row] - expected).max() < tolerance * np.abs(expected).max()
        check_cross_attention(call, layer, subjects, settings, negatives, order, tolerance)


def check_cross_attention(call, layer, subjects, settings, negatives, order, tolerance) -> None:
    network, count = subjects.network.model, len(subjects.names)
    seen = call["attn2", layer.name]
    owners, features = to_cast(seen["map"], order), wide(subjects.router)
    pair = network.injection.subject[layer.name]
    for row, negative in enumerate(negatives):
        logits = refined_map(network.routers[layer.name], features, wide(seen["z"])[row])
        ranked = np.sort(logits, axis=1)
        clear = ranked[:, -1] - ranked[:, -2] > NEAR_TIE
        assert clear.mean() > 0.8 and (logits.argmax(axis=1) == owners[row])[clear].all()
        q = wide(seen["q"])[row]
        expected = attention(q, wide(seen["k"])[row], wide(seen["v"])[row], layer.heads)
        entries = [subjects.null_tokens] if negative else list(subjects.tokens)
        for entry, tokens in enumerate(entries):
            k, v = (wide(tokens) @ wide(matrix.weight).T for matrix in (pair.to_k, pair.to_v))
            sigma = np.ones(len(q)) if negative else (owners[row] == entry).astype(float)
            expected += settings.eta * sigma[:, None] * attention(q, k, v, layer.heads)
        assert np.abs(wide(seen["out"])[row] - expected).max() < tolerance * np.abs(expected).max()
    assert owners.max() <= count


@pytest.mark.parametrize(
    "count, size, batch, settings",
    [
        (1, (16, 16), 1, BOTH),
        (2, (17, 23), 2, BOTH),
        (3, (16, 16), 1, Settings(1.0, 0.0)),
        (3, (12, 16), 1, Settings(1.3, NO_REFERENCES)),
        (2, (16, 12), 1, Settings(0.0, -1.0)),
        (12, (16, 16), 1, BOTH),
    ],
)
def test_every_formula_in_the_sampler(sdxl, layers, make_subjects, count, size, batch, settings):
    subjects = make_subjects(count)
    model = story(sdxl, subjects, settings)
    watcher = Watcher(model, layers)
    assert torch.isfinite(run(model, size=size, batch=batch)).all()
    assert [sorted(call["prompts"]) for call in watcher.calls] == [[0, 1]] * STEPS
    for call in watcher.calls:
        check_call(call, layers, subjects, settings)


@pytest.mark.parametrize("batch", [1, 2])
def test_neutral_is_bit_identical(sdxl, make_subjects, batch):
    plain = run(sdxl, batch=batch)
    model, maps = apply_anystory(sdxl, make_subjects(2), OFF)
    neutral = run(model, batch=batch)
    assert torch.equal(plain, neutral)
    assert len(maps.recording.find(neutral)) == STEPS  # the routers have looked all the same


@pytest.mark.parametrize("kind, settings", [("attn2", Settings(0.0, 0.5)), ("attn1", Settings(0.7, NO_REFERENCES))])
def test_each_half_alone_leaves_the_other_bit_identical(sdxl, layers, make_subjects, kind, settings):
    model = story(sdxl, make_subjects(2), settings)
    watcher = Watcher(model, layers)
    run(model)
    other = {"attn1": "attn2", "attn2": "attn1"}[kind]
    for call in watcher.calls:
        for name, same in ((kind, True), (other, False)):
            equal = []
            for layer in layers:
                seen = call[name, layer.name]
                plain = optimized_attention(seen["q"], seen["k"], seen["v"], layer.heads)
                equal.append(torch.equal(plain, seen["out"]))
            assert all(equal) == same


@pytest.mark.parametrize("start, end, steps", [(0.6, 1.0, [2]), (0.0, 0.3, [1]), (0.9, 0.95, []), (0.0, 1.0, [1, 2])])
def test_works_in_its_range_only(sdxl, layers, make_subjects, start, end, steps):
    """Two steps, at the start and at half the run."""
    subjects = make_subjects(2)
    model, maps = apply_anystory(sdxl, subjects, dataclasses.replace(BOTH, start_percent=start, end_percent=end))
    watcher = Watcher(model, layers)
    out = run(model)
    for number, call in enumerate(watcher.calls, start=1):
        if number in steps:
            check_call(call, layers, subjects, BOTH)
        else:
            assert call["attn2", "middle_0_0"]["map"] is None
    assert [record.step for record in maps.recording.find(out)] == steps
    assert torch.equal(out, run(sdxl)) == (not steps)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_maps_share_the_picture_out_at_every_layer(sdxl, layers, make_subjects, count):
    model, maps = apply_anystory(sdxl, make_subjects(count), BOTH)
    watcher = Watcher(model, layers)
    out = run(model, size=(20, 16))
    records = maps.recording.find(out)
    assert maps.layers == tuple(layer.name for layer in layers) and maps.names[0] == "subject 1"
    for record, call in zip(records, watcher.calls, strict=True):
        for layer, routed in zip(layers, record.maps, strict=True):
            state = call["attn2", layer.name]["extra"][ROUTING_KEY]
            where = [state.entry_of[entry] for entry in range(count + 1)]
            shared = [call["attn2", layer.name]["map"].owners == index for index in where]  # (N + 1, rows, pixels)
            assert torch.equal(torch.stack(shared).sum(dim=0), torch.ones_like(shared[0], dtype=torch.int64))
            row = call["prompts"].index(0)
            for entry, owned in enumerate(shared):
                assert torch.equal(routed[0, 0].flatten() == entry, owned[row])


def permuted(subjects, order: list[int]):
    rows = [*order, -1]
    return dataclasses.replace(
        subjects,
        names=tuple(subjects.names[number] for number in order),
        tokens=subjects.tokens[rows],
        router=subjects.router[rows],
        hidden=tuple(None if state is None else state[order] for state in subjects.hidden),
    )


@pytest.mark.parametrize("tied", [False, True])
def test_the_order_of_the_cast_permutes_the_maps_and_not_a_bit_of_the_picture(sdxl, make_subjects, tied):
    """Even where subjects claim every pixel equally, as those with one and the same routing feature do."""
    subjects = make_subjects(3)
    if tied:
        router = subjects.router[[0, 0, 0, 3]]
        subjects = dataclasses.replace(subjects, router=router)
    model, maps = apply_anystory(sdxl, subjects, BOTH)
    expected = run(model)
    for order in ([1, 0, 2], [2, 0, 1]):
        other, its_maps = apply_anystory(sdxl, permuted(subjects, order), BOTH)
        out = run(other)
        assert torch.equal(expected, out)
        there = torch.tensor([*(order.index(subject) for subject in range(3)), 3])
        for record, its_record in zip(maps.recording.find(expected), its_maps.recording.find(out), strict=True):
            for routed, its_routed in zip(record.maps, its_record.maps, strict=True):
                assert torch.equal(there[routed.long()], its_routed.long())


def test_a_background_picture_is_one_more_reference(sdxl, layers, make_subjects):
    """Pixels of the background attend to its reference, and those of the subjects do as before."""
    subjects = make_subjects(2)
    behind = tuple(None if state is None else state[:1].flip(1) for state in subjects.hidden)
    model = story(sdxl, dataclasses.replace(subjects, background_hidden=behind))
    watcher = Watcher(model, layers)
    run(model)
    layer, call = layers[1], watcher.calls[0]
    seen, row = call["attn1", layer.name], call["prompts"].index(0)
    order = sorted(range(2), key=lambda subject: subjects.router[subject].tolist())
    owners = to_cast(seen["before"], order)[row]
    q, k, v = (wide(seen[name][row]) for name in "qkv")
    pair = subjects.network.model.injection.reference[layer.name]
    assert behind[1] is not None
    for entry, state in enumerate([*subjects.hidden[1], behind[1][0]]):
        keys = np.concatenate((k, wide(state) @ wide(pair.to_k.weight).T))
        values = np.concatenate((v, wide(state) @ wide(pair.to_v.weight).T))
        bias = np.array([0.0] * len(k) + [BOTH.gamma] * len(state))
        expected = attention(q, keys, values, layer.heads, bias)[owners == entry]
        found = wide(seen["out"])[row][owners == entry]
        assert len(found) and np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_model_given_is_untouched(sdxl, make_subjects):
    before = run(sdxl)
    changed = run(story(sdxl, make_subjects(2)))
    assert not torch.equal(before, changed)
    assert torch.equal(before, run(sdxl))
    assert sdxl.get_attachment(KEY) is None and not sdxl.get_additional_models_with_key(KEY)


def test_batches_mixed_and_split(sdxl, layers, make_subjects, monkeypatch):
    """Two positive prompts and a negative, two pictures: in one call, and, short of memory, in one call each."""
    subjects = make_subjects(2)
    model = story(sdxl, subjects)
    watcher = Watcher(model, layers)
    positive = prompt(1) + prompt(4)
    together = run(model, positive, batch=2)
    assert [sorted(call["prompts"]) for call in watcher.calls] == [[0, 0, 1]] * STEPS
    monkeypatch.setattr(sdxl.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = run(model, positive, batch=2)
    assert [len(call["prompts"]) for call in watcher.calls[STEPS:]] == [1] * 3 * STEPS
    torch.testing.assert_close(together, split, atol=2e-3, rtol=1e-3)
    for call in watcher.calls:
        check_call(call, layers, subjects, BOTH)


def test_unequal_prompts(sdxl, layers, make_subjects):
    subjects = make_subjects(2)
    model = story(sdxl, subjects)
    watcher = Watcher(model, layers)
    run(model, prompt(1, 7), prompt(2, 20))
    assert [call["prompts"] for call in watcher.calls] != [[0, 1]] * STEPS
    for call in watcher.calls:
        check_call(call, layers, subjects, BOTH)


def test_areas_and_masks(sdxl, layers, make_subjects):
    """A prompt for a half, its opposite for the negative, a masked prompt, one for the first step only."""
    subjects = make_subjects(2)
    model, maps = apply_anystory(sdxl, subjects, BOTH)
    watcher = Watcher(model, layers)
    mask = torch.zeros(1, 16, 16)
    mask[:, :9] = 1
    positive = (
        prompt(1)
        + prompt(4, area=(16, 8, 0, 8), strength=1.0)
        + node_helpers.conditioning_set_values(prompt(5), {"mask": mask, "mask_strength": 0.8})
        + prompt(6, start_percent=0.0, end_percent=0.4)
    )
    out = run(model, positive)
    sizes = {tuple(call["attn2", "input_4_0"]["extra"]["original_shape"][-2:]) for call in watcher.calls}
    assert sizes == {(16, 16), (16, 8)}
    for call in watcher.calls:
        check_call(call, layers, subjects, BOTH)
    # A cutting's place is not known, so only maps of the whole picture are kept.
    assert {record.maps[0].shape[1:] for record in maps.recording.find(out)} == {(1, 8, 8)}


def dual(model):
    guider = Guider_DualCFG(model)
    guider.set_conds(prompt(1), prompt(4), prompt(2))
    guider.set_cfg(2.0, 1.5)
    return guider, [0]


def perp_negative(model):
    guider = Guider_PerpNeg(model)
    guider.set_conds(prompt(1), prompt(2), prompt(3))
    guider.set_cfg(2.0, 1.0)
    return guider, [1, 2]


@pytest.mark.parametrize("make", [dual, perp_negative])
def test_guiders_with_other_orders_of_prompts(sdxl, layers, make_subjects, make):
    """The host's Dual CFG asks for the negative first, Perp-Neg for two negatives."""
    subjects = make_subjects(2)
    model = story(sdxl, subjects)
    watcher = Watcher(model, layers)
    guider, negatives = make(model)
    run(model, guider=guider)
    for call in watcher.calls:
        numbers = [1 if number in negatives else 0 for number in call["prompts"]]
        check_call({**call, "prompts": numbers}, layers, subjects, BOTH)


def test_a_lone_negative_is_known_by_its_list(sdxl, layers, make_subjects):
    """Self-Attention Guidance runs the negative once more, as the only prompt of its call."""
    subjects = make_subjects(2)
    model = story(SelfAttentionGuidance().execute(sdxl, 0.5, 2.0)[0], subjects)
    watcher = Watcher(model, layers)
    assert torch.isfinite(run(model, size=(48, 48), steps=1)).all()
    lone = [call for call in watcher.calls if call["prompts"] == [0]]
    assert lone
    for call in lone:
        check_cross_attention({**call}, layers[4], subjects, BOTH, [True], [0, 1], 1e-3)


def halved(q, k, v, extra):
    """What another pack may put in an attention's place: wants all queries, and gives something of its own."""
    height, width = extra["activations_shape"][-2:]
    assert q.shape[1] == height * width
    return 0.5 * optimized_attention(q, k, v, extra["n_heads"]) + 0.1


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_a_foreign_replacement_is_kept(sdxl, layers, make_subjects, kind, before):
    """What it gives is the base, and AnyStory's own part is added, whichever was applied first."""
    subjects = make_subjects(2)
    model = sdxl.clone() if before else story(sdxl, subjects)
    model.set_model_attn1_replace(halved, "middle", 0) if kind == "attn1" else model.set_model_attn2_replace(
        halved, "middle", 0, 1
    )
    model = story(model, subjects) if before else model
    watcher = Watcher(model, layers)
    run(model)
    layer = next(layer for layer in layers if layer.name == "middle_0_1")
    for call in watcher.calls:
        seen = call[kind, layer.name]
        plain = optimized_attention(seen["q"], seen["k"], seen["v"], layer.heads)
        as_plain = {**seen, "out": seen["out"] - halved(seen["q"], seen["k"], seen["v"], seen["extra"]) + plain}
        assert not torch.allclose(as_plain["out"], seen["out"])
        check_call({**call, (kind, layer.name): as_plain}, [*layers[:1], layer], _only(subjects, layers, layer), BOTH)


def _only(subjects, layers, layer):
    """Features as if `layer` were the second one."""
    return dataclasses.replace(subjects, hidden=(None, subjects.hidden[layers.index(layer)]))


def test_perturbed_attention_guidance(sdxl, layers, make_subjects):
    model = story(PerturbedAttentionGuidance.execute(sdxl, 1.0)[0], make_subjects(2))
    watcher = Watcher(model, layers)
    assert torch.isfinite(run(model)).all()
    assert [call["prompts"] for call in watcher.calls if len(call["prompts"]) == 1] == [[0]] * STEPS


@pytest.mark.parametrize("before", [True, False])
def test_a_patch_that_cuts_the_picture_up_is_refused(sdxl, make_subjects, before):
    def cut_up(model):
        return HyperTile.execute(model, 32, 2, 1, False)[0]

    subjects = make_subjects(2)
    model = story(cut_up(sdxl), subjects) if before else cut_up(story(sdxl, subjects))
    with pytest.raises(ValueError, match="another patch of this model merges or cuts up the picture"):
        run(model, size=(64, 64), steps=1)
    routed = story(cut_up(sdxl), subjects, OFF)
    assert torch.isfinite(run(routed, size=(64, 64), steps=1)).all()  # it does so in self-attention alone


def test_a_grid_that_changes_during_the_run(sdxl, layers, make_subjects):
    """The host's Deep Shrink halves the picture behind an input block in the first step."""
    subjects = make_subjects(2)
    shrunk = PatchModelAddDownscale.execute(sdxl, 4, 2.0, 0.0, 0.4, True, "bicubic", "bicubic")[0]
    model, maps = apply_anystory(shrunk, subjects, BOTH)
    watcher = Watcher(model, layers)
    out = run(model)
    for call in watcher.calls:
        check_call(call, layers, subjects, BOTH)
    grids = [record.maps[3].shape[2:] for record in maps.recording.find(out)]
    assert grids == [(2, 2), (4, 4)]
    assert shares(maps.recording.find(out), range(12), 0, 3).shape == (3, 8, 8)


def test_token_merging_spares_sdxls_attention(sdxl, make_subjects):
    model = story(sdxl, make_subjects(2))
    assert torch.equal(run(model), run(TomePatchModel.execute(model, 0.5)[0]))


@pytest.mark.parametrize("before", [True, False])
def test_hidden_state_patches_are_seen_by_the_router(sdxl, layers, make_subjects, before):
    """The queries' own hidden state is routed, after every patch that changes it."""

    def shift(n, context, value, extra):
        return n * 1.5, context, value

    subjects = make_subjects(2)
    model = sdxl.clone() if before else story(sdxl, subjects)
    model.set_model_attn2_patch(shift)
    model = story(model, subjects) if before else model
    watcher = Watcher(model, layers)
    run(model)
    for call in watcher.calls:
        check_call(call, layers, subjects, BOTH)


def test_later_steps_may_ask_whose_a_pixel_is(sdxl, layers, make_subjects):
    """As SeAl's infusion does in self-attention: nothing before the first router, then its latest map on any grid."""
    answers = []

    def wrap(executor, x, timesteps, context, y, control, options, **kwargs):
        def ask(attend, q, k, v, extra):
            grid = tuple(extra["activations_shape"][-2:])
            answers.append([options[ROUTING_KEY].owned(subject, grid) for subject in range(2)])
            return attend(q, k, v)

        options = add_steps(options, "attn1", {layer.block: ask for layer in layers}, INFUSED)
        return executor(x, timesteps, context, y, control, options, **kwargs)

    model = story(sdxl, make_subjects(2))
    expected = run(model)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "asker", wrap)
    watcher = Watcher(model, layers)
    assert torch.equal(expected, run(model))
    for call, asked in zip(watcher.calls, [answers[: len(layers)], answers[len(layers) :]], strict=True):
        assert asked[0] == [None, None]
        for layer, owned in zip(layers[1:], asked[1:], strict=True):
            seen = call["attn1", layer.name]
            latest = seen["before"].resized(tuple(seen["extra"]["activations_shape"][-2:]))
            for subject, found in enumerate(owned):
                entry = seen["extra"][ROUTING_KEY].entry_of[subject]
                assert found.dtype == torch.bool and torch.equal(found, latest.owners == entry)


@pytest.mark.parametrize(
    "dtype, network_dtype, tolerance",
    [
        (torch.float32, torch.float16, 2e-4),
        (torch.bfloat16, torch.bfloat16, 0.06),
        (torch.bfloat16, torch.float32, 0.06),
        (torch.float16, torch.float16, 0.01),
        (torch.float16, torch.bfloat16, 0.01),
    ],
)
def test_every_precision(tiny_models, layers, make_subjects, dtype, network_dtype, tolerance):
    """Model and network in different precisions; the stream keeps the model's."""
    model = load_tiny_sdxl(tiny_models / TINY_SDXL.folder / TINY_SDXL.name)
    model.set_model_compute_dtype(dtype)  # on a CPU the host computes in float32 unless told
    subjects = make_subjects(2, dtype=network_dtype)
    model = story(model, subjects)
    watcher = Watcher(model, layers)
    assert torch.isfinite(run(model, steps=1)).all()
    assert watcher.calls[0]["attn1", "middle_0_0"]["out"].dtype == dtype
    check_call(watcher.calls[0], layers[:4], subjects, BOTH, tolerance=tolerance)


def test_low_memory_loading(sdxl, make_subjects):
    """Weights of model and network left on the offload device and cast layer by layer give the same picture."""
    model = story(sdxl, make_subjects(2))
    whole = run(model)
    lowvram, seen = model.clone(), []

    def unload_partly(patcher):
        for part in (patcher, *patcher.get_additional_models_with_key(KEY)):
            part.detach()
            part.load(part.load_device, lowvram_model_memory=1)

    def note(h, options):
        seen.append(lowvram.model.model_lowvram)
        return h

    lowvram.set_model_input_block_patch(note)
    lowvram.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, unload_partly)
    assert torch.equal(whole, run(lowvram))
    assert seen and all(seen)


def test_the_host_loads_the_network_with_the_model_and_frees_it(sdxl, make_subjects):
    subjects = make_subjects(2)
    comfy.model_management.unload_all_models()
    run(story(sdxl, subjects))
    loaded = comfy.model_management.loaded_models()
    assert any(model.is_clone(subjects.network) for model in loaded) and any(model.is_clone(sdxl) for model in loaded)
    comfy.model_management.unload_all_models()
    assert subjects.network.loaded_size() == 0


def test_state_after_an_interrupt(sdxl, make_subjects):
    """An interrupted run leaves nothing behind: the next picture is the same as ever."""
    model, maps = apply_anystory(sdxl, make_subjects(2), BOTH)
    expected = run(model)
    interrupted = model.clone()

    def stop(h, options):
        raise comfy.model_management.InterruptProcessingException()

    interrupted.set_model_output_block_patch(lambda h, hsp, options: stop(h, options))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(interrupted)
    patch: Any = model.get_attachment(KEY)
    assert patch.run is None and maps.recording.current is None
    assert set(vars(patch)) == {"features", "settings", "layers", "maps", "run"}
    assert "patches_replace" not in model.model_options["transformer_options"]
    assert torch.equal(expected, run(model))
    assert len(maps.recording.find(expected)) == STEPS


def test_what_is_computed_once_a_run(sdxl, make_subjects):
    """Keys and values of the subjects: one projection a layer, however many steps."""
    subjects = make_subjects(2)
    model = story(sdxl, subjects)
    calls = []
    matrix = subjects.network.model.injection.reference["middle_0_0"]
    handle = matrix.register_forward_hook(lambda *_: calls.append(1))
    run(model, steps=4)
    assert len(calls) == 2  # a subject each
    run(model, steps=4)
    assert len(calls) == 4  # nothing outlives the run
    handle.remove()


def test_controlnet_and_lora(sdxl, layers, make_subjects, tiny_models):
    subjects = make_subjects(2)
    control_net: Any = comfy.controlnet.load_controlnet(
        str(tiny_models / TINY_CONTROLNET.folder / TINY_CONTROLNET.name)
    )
    control = control_net.copy().set_cond_hint(torch.rand(1, 3, 128, 128), 1.0, (0.0, 1.0))
    controlled = {"control": control, "control_apply_to_uncond": False}
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight"
    pictures = []
    for lora_first in (True, False):
        model = sdxl.clone() if lora_first else story(sdxl, subjects)
        model.add_patches({key: ("diff", (0.1 * torch.ones(64, 64),))}, 1.0)
        model = story(model, subjects) if lora_first else model
        watcher = Watcher(model, layers)
        pictures.append(run(model, prompt(1, **controlled)))
        for call in watcher.calls:
            check_call(call, layers, subjects, BOTH)
    assert torch.equal(*pictures)
    assert not torch.equal(pictures[0], run(story(sdxl, subjects), prompt(1, **controlled)))
    assert not torch.equal(pictures[0], run(model, prompt(1)))


def test_it_is_there_once_and_for_its_own_model(sdxl, make_subjects):
    subjects = make_subjects(2)
    with pytest.raises(ValueError, match="went through AnyStory before"):
        apply_anystory(story(sdxl, subjects), subjects, BOTH)
    other = make_subjects(1)
    other.network.model.injection.layers = other.network.model.injection.layers[1:]
    with pytest.raises(ValueError, match="not those the AnyStory weights were made for"):
        apply_anystory(sdxl, other, BOTH)


def test_runs_are_told_apart(sdxl, make_subjects):
    """A graph that works through a list samples twice before the first maps are shown."""
    model, maps = apply_anystory(sdxl, make_subjects(2), BOTH)
    small, large = run(model, size=(8, 8)), run(model, prompt(8), size=(16, 16))
    assert maps.recording.find(small)[0].maps[0].shape == (1, 1, 4, 4)
    assert maps.recording.find(large)[0].maps[0].shape == (1, 1, 8, 8)
