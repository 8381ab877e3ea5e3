"""Condition positions against loops written from Eq. 2 and 3, and inside the host's real sampler."""

from __future__ import annotations

import itertools
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import node_helpers
import numpy as np
import pytest
import torch
from comfy.model_patcher import CoreModelPatcher

from comfyui_ensemble.attention_patches.condition_positions import (
    CCPA,
    CONDITION_IDS,
    EQUATION_3,
    INDEX_EMBEDDINGS,
    ITEM_ANCHORS,
    SCHEMES,
    SLOT_CENTRE,
    VIRTUAL_TIME,
    apply_condition_positions,
    item_ids,
    item_slots,
    slot_ids,
    slot_size,
)
from comfyui_ensemble.attention_patches.condition_slots import CATEGORY_SLOTS, assign_slots
from comfyui_ensemble.attention_patches.dsm import KEY as DSM_KEY
from comfyui_ensemble.attention_patches.dsm import apply_dsm, modulate
from comfyui_ensemble.attention_patches.dsm_adapter import DSMAdapter, DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.europe import EUROPE, MODES, SYMMETRIC_ROPE, SYMMETRIC_UNOPE, apply_europe
from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference, token_grid
from comfyui_ensemble.attention_patches.reference_positions import KEY

STEPS = 2
PAPER = {"anna": ("face", (4, 3)), "coat": ("upper garment", (4, 3)), "skirt": ("lower garment", (4, 3))}
SIZES = [(4, 3), (5, 2), (1, 6), (3, 3), (2, 5), (6, 1), (4, 4)]
CATEGORIES = ["face", "upper garment", "lower garment", "bag", "other", "hat", "shoes"]  # condition ids 1 to 7


def make_layout(cast, pose=None) -> Layout:
    subjects = [Reference("subject", grid, name, category) for name, (category, grid) in cast.items()]
    return Layout((*subjects, *([Reference("pose", pose)] if pose else [])))


def oracle(canvas, cast, slots, scheme, pose=None) -> np.ndarray:
    """Ids of every reference token, Eq. 2, float64, one token at a time; second copies come last."""
    height = max((grid[0] for _, grid in cast.values()), default=0)
    width = max((grid[1] for _, grid in cast.values()), default=0)
    rows = []

    def add(grid, k):
        for y, x in itertools.product(range(grid[0]), range(grid[1])):
            rows.append(
                {
                    INDEX_EMBEDDINGS: (0.0, 0.0, 0.0),
                    VIRTUAL_TIME: (float(k), y, x),
                }.get(scheme, (1.0, y + k * height, x + k * width))
            )

    for (_, grid), own in zip(cast.values(), slots, strict=True):
        add(grid, own[0])
    high, wide = pose or (0, 0)
    for y, x in itertools.product(range(high), range(wide)):
        rows.append((0.0, (y + 0.5) * canvas[0] / high - 0.5, (x + 0.5) * canvas[1] / wide - 0.5))
    for (_, grid), own in zip(cast.values(), slots, strict=True):
        for k in own[1:]:
            add(grid, k)
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def text_oracle(length, cast, slots, spans, anchor) -> np.ndarray:
    """Ids of every text token, Eq. 3, float64, one token at a time."""
    height, width = (max(grid[axis] for _, grid in cast.values()) for axis in (0, 1))
    ids = dict(zip(cast, slots, strict=True))
    rows = np.zeros((length, 3))
    for token in range(length):
        described = [
            k for name, ranges in spans.items() if any(a <= token < b for a, b in ranges) for k in ids.get(name, ())
        ]
        if described:
            k = sum(described) / len(described)
            centre = ((k + 0.5) * height - 0.5, (k + 0.5) * width - 0.5)
            rows[token] = (1.0, *((k * height / 2, k * width / 2) if anchor == EQUATION_3 else centre))
    return rows


def apply(model, layout, scheme=CCPA, anchor=EQUATION_3) -> Any:
    return apply_condition_positions(model, layout, assign_slots(layout.references), scheme, anchor)


def latents_for(layout: Layout, seed: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 16, 2 * h, 2 * w, generator=generator) for h, w in layout.grids]


def cond(clip, text: str, layout: Layout | None = None, spans=None, seed: int = 7):
    """A prompt as Item Prompt and Reference Latents leave it."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    options = {} if layout is None else {"reference_latents": latents_for(layout, seed), LAYOUT_KEY: layout}
    return node_helpers.conditioning_set_values(encoded, options | ({SPANS_KEY: spans} if spans is not None else {}))


def run(model, positive, negative, size=(16, 16), cfg=2.0, batch=1, seed=3) -> torch.Tensor:
    """Two Euler steps of the host's sampler on a latent of `size` pixels."""
    latent = torch.zeros(batch, 16, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, STEPS, cfg, "euler", "simple", positive, negative, latent, seed=seed)


class Recorder:
    """A `post_input` patch placed after ours: what the blocks will really see."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, args):
        ids = {name: args[name].clone() for name in ("img_ids", "txt_ids")}
        rows = args["transformer_options"]["cond_or_uncond"]
        self.calls.append(ids | {"tokens": args["img"].shape[1], "rows": rows})
        return args


def watched(model) -> tuple:
    recorder = Recorder()
    model = model.clone()
    model.set_model_post_input_patch(recorder)
    return model, recorder


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("pose", [None, (8, 10), (5, 7)])
def test_ids_follow_equation_2(flux, scheme, count, pose):
    cast = {f"s{i}": (CATEGORIES[i], SIZES[i]) for i in range(count)}
    slots = tuple((i + 1,) for i in range(count))
    layout = make_layout(cast, pose)
    patch = apply(flux, layout, scheme).get_attachment(KEY)
    (placement,) = patch.placements
    ids = torch.cat(placement.reference_ids((8, 10), ("subject", "pose"), torch.device("cpu")))
    np.testing.assert_allclose(ids.numpy(), oracle((8, 10), cast, slots, scheme, pose), atol=1e-5)
    assert ids.dtype == torch.float32


def test_slots_never_overlap():
    """Not even for a full cast of unequal sizes: no id twice, none on the canvas."""
    references = [Reference("subject", SIZES[i % 7], str(i), list(CATEGORY_SLOTS)[i % 10]) for i in range(32)]
    size = slot_size(references)
    ids = [
        tuple(row)
        for reference, own in zip(references, assign_slots(references), strict=True)
        for slot in own
        for row in slot_ids(reference.grid, slot, size, CONDITION_IDS).tolist()
    ]
    assert size == (6, 6) and len(set(ids)) == len(ids) and all(row[0] == 1 for row in ids)


@pytest.mark.parametrize("anchor", ITEM_ANCHORS)
def test_item_ids_follow_equation_3(anchor):
    """A word for two, a dress, a subject the layout does not know, and words of nobody."""
    cast = {"anna": ("face", (4, 3)), "gown": ("dress", (5, 2)), "bag": ("bag", (1, 1))}
    slots = ((1,), (2, 3), (4,))
    spans = {"anna": [(1, 3), (7, 8)], "gown": [(4, 7)], "bag": [(7, 9)], "nobody": [(0, 1), (10, 11)]}
    ids = item_ids(item_slots(spans, dict(zip(cast, slots, strict=True)), 12), (5, 3), anchor)
    expected = text_oracle(12, cast, slots, {name: spans[name] for name in cast}, anchor)
    np.testing.assert_allclose(ids.numpy(), expected, atol=1e-6)
    assert ids[5].tolist() == ([1.0, 6.25, 3.75] if anchor == EQUATION_3 else [1.0, 14.5, 8.5])  # between 2 and 3
    assert not ids[[0, 3, 9, 10, 11]].any()


def test_the_slot_centre_is_the_centre_of_equation_2():
    for slot, size in itertools.product((1, 4, 9), ((4, 3), (1, 1), (7, 6))):
        centre = slot_ids(size, slot, size, CCPA).mean(dim=0)
        torch.testing.assert_close(item_ids(torch.tensor([float(slot)]), size, SLOT_CENTRE)[0], centre)


@pytest.mark.parametrize("scheme, anchor", [(CCPA, EQUATION_3), (CCPA, SLOT_CENTRE), (CONDITION_IDS, EQUATION_3)])
@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
@pytest.mark.parametrize("count, pose", [(1, None), (3, (9, 12)), (7, (4, 5))])
def test_ids_seen_by_the_blocks_in_the_sampler(flux, clip, scheme, anchor, size, count, pose):
    canvas = token_grid(torch.empty(size))
    cast = {f"s{i}": (CATEGORIES[i], SIZES[i]) for i in range(count)}
    slots, layout = tuple((i + 1,) for i in range(count)), make_layout(cast, pose)
    spans = {f"s{i}": [(i + 1, i + 2), (i + 9, i + 10)] for i in range(count)}
    positive = cond(clip, "a woman in a hat and a red coat carries her shoes in a very large bag", layout, spans)
    model, recorder = watched(apply(flux, layout, scheme, anchor))
    run(model, positive, cond(clip, "blurry", spans={"s0": [(0, 1)]}), size)

    tokens, length = canvas[0] * canvas[1], positive[0][0].shape[1]
    expected_canvas = [[0.0, y, x] for y in range(canvas[0]) for x in range(canvas[1])]
    assert sorted(call["rows"] for call in recorder.calls) == [[0]] * STEPS + [[1]] * STEPS
    for call in recorder.calls:
        assert call["img_ids"][0, :tokens].tolist() == expected_canvas
        assert call["img_ids"].shape[1] == call["tokens"]
        if call["rows"] == [1]:  # the negative has no references, so its words stay where they are
            assert call["tokens"] == tokens and not call["txt_ids"].any()
            continue
        np.testing.assert_allclose(
            call["img_ids"][0, tokens:].numpy(), oracle(canvas, cast, slots, scheme, pose), atol=1e-5
        )
        words = text_oracle(length, cast, slots, spans if scheme == CCPA else {}, anchor)
        np.testing.assert_allclose(call["txt_ids"][0].numpy(), words, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dress_is_given_twice(flux, clip, scheme):
    """Its latent once more after all references, in slot 3; the conditioning itself is left as it was."""
    cast = {"gown": ("dress", (5, 3)), "anna": ("face", (4, 4))}
    layout = make_layout(cast, pose=(8, 8))
    positive = cond(clip, "anna in a long red gown", layout, {"gown": [(3, 6)]})
    model, recorder = watched(apply(flux, layout, scheme))
    given = []

    def note(executor, *args, **kwargs):
        given.append(args[5])
        return executor(*args, **kwargs)

    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, note)
    run(model, positive, cond(clip, ""), cfg=1.0)
    assert len(recorder.calls) == STEPS and recorder.calls[0]["tokens"] == 64 + 15 + 16 + 64 + 15
    assert [tuple(latent.shape[2:]) for latent in given[0]] == [(10, 6), (8, 8), (16, 16), (10, 6)]
    assert torch.equal(given[0][0], given[0][3])
    expected = oracle((8, 8), cast, ((2, 3), (1,)), scheme, (8, 8))
    np.testing.assert_allclose(recorder.calls[0]["img_ids"][0, 64:].numpy(), expected, atol=1e-5)
    words = text_oracle(positive[0][0].shape[1], cast, ((2, 3), (1,)), {"gown": [(3, 6)]}, EQUATION_3)
    np.testing.assert_allclose(recorder.calls[0]["txt_ids"][0].numpy(), words if scheme == CCPA else 0, atol=1e-5)
    assert len(positive[0][1]["reference_latents"]) == 3


def test_the_host_reckons_with_the_second_copy(flux, clip, monkeypatch):
    """Its estimate of the memory a run takes, which decides what stays loaded, is that of the tokens there really are."""
    seen = []
    shapes = flux.model.extra_conds_shapes

    def note(**options):
        seen.append(shapes(**options))
        return seen[-1]

    monkeypatch.setattr(flux.model, "extra_conds_shapes", note)
    layout = make_layout({"gown": ("dress", (5, 3))})
    run(apply(flux, layout), cond(clip, "a gown", layout), cond(clip, ""), cfg=1.0)
    assert {"ref_latents": [1, 16, 2 * 10 * 6]} in seen


def test_equals_the_hosts_own_index_positions(flux, clip):
    """The host's method "index" is t = k for face, upper and lower garment in this order: an independent implementation."""
    layout = make_layout(PAPER)
    positive = cond(clip, "a woman", layout)
    ours = run(apply(flux, layout, VIRTUAL_TIME), positive, cond(clip, ""))
    theirs = node_helpers.conditioning_set_values(positive, {"reference_latents_method": "index"})
    assert torch.equal(ours, run(flux, theirs, cond(clip, "")))


def test_no_references_is_bit_identical(flux, clip):
    positive, negative = cond(clip, "a juggler", spans={"anna": [(1, 3)]}), cond(clip, "")
    layout = make_layout(PAPER)
    assert torch.equal(run(flux, positive, negative), run(apply(flux, layout), positive, negative))


def test_without_item_spans_ccpa_is_condition_ids(flux, clip):
    layout = make_layout(PAPER)
    positive, negative = cond(clip, "a woman in a coat", layout), cond(clip, "")
    pictures = [run(apply(flux, layout, scheme), positive, negative) for scheme in (CCPA, CONDITION_IDS)]
    assert torch.equal(*pictures)


def test_schemes_differ_and_what_was_given_is_untouched(flux, clip):
    cast = PAPER | {"gown": ("dress", (4, 3))}
    layout = make_layout(cast, pose=(8, 8))
    positive, negative = cond(clip, "a woman in a coat", layout, {"coat": [(4, 6)]}), cond(clip, "")
    before, options = run(flux, positive, negative), dict(positive[0][1])
    pictures = [run(apply(flux, layout, scheme), positive, negative) for scheme in SCHEMES]
    pictures += [run(apply(flux, layout, anchor=SLOT_CENTRE), positive, negative)]
    for one, other in itertools.combinations([before, *pictures], 2):
        assert not torch.equal(one, other) and torch.isfinite(other).all()
    assert positive[0][1] == options and torch.equal(before, run(flux, positive, negative))


def crowd(clip):
    """Three prompts of equal length, two of them with references of the same sizes in other roles, and none for the last."""
    first = make_layout({"anna": ("face", (4, 3)), "coat": ("upper garment", (4, 3))})
    second = make_layout({"bag": ("bag", (4, 3)), "hat": ("hat", (4, 3))})
    return (
        (first, cond(clip, "two tall dancers", first, {"anna": [(1, 3)]})),
        (second, cond(clip, "one old wizard", second, {"hat": [(2, 4)], "bag": [(1, 2)]}, seed=8)),
        (None, cond(clip, "four red dragons")),
    )


def test_batches_mixed_and_split(flux, clip, monkeypatch):
    """Every row of a call is given the ids of its own references and words, together or, short of memory, one by one."""
    (first, one), (second, other), _ = crowd(clip)
    plain = cond(clip, "four red dragons", first, seed=9)  # the first cast without words
    model, recorder = watched(apply(apply(flux, first), second))
    together = run(model, one + other, plain, batch=2)
    assert [len(call["rows"]) for call in recorder.calls] == [3] * STEPS  # in one call, as without the patch
    cast_one = {"anna": ("face", (4, 3)), "coat": ("upper garment", (4, 3))}
    cast_other = {"bag": ("bag", (4, 3)), "hat": ("hat", (4, 3))}
    length = one[0][0].shape[1]
    kinds = {
        "one": (cast_one, ((1,), (2,)), {"anna": [(1, 3)]}),
        "other": (cast_other, ((4,), (6,)), {"hat": [(2, 4)], "bag": [(1, 2)]}),
        "plain": (cast_one, ((1,), (2,)), {}),
    }
    expected = {
        kind: (oracle((8, 8), cast, slots, CCPA), text_oracle(length, cast, slots, spans, EQUATION_3))
        for kind, (cast, slots, spans) in kinds.items()
    }
    for call in recorder.calls:
        found = []
        for img_ids, txt_ids in zip(call["img_ids"].numpy(), call["txt_ids"].numpy(), strict=True):
            found += [
                kind
                for kind, (references, words) in expected.items()
                if np.allclose(img_ids[64:], references) and np.allclose(txt_ids, words)
            ]
        assert sorted(found) == ["one", "one", "other", "other", "plain", "plain"]
        assert [found[2 * chunk : 2 * chunk + 2] for chunk, row in enumerate(call["rows"]) if row] == [["plain"] * 2]
    monkeypatch.setattr(flux.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = run(model, one + other, plain, batch=2)
    assert [len(call["rows"]) for call in recorder.calls[STEPS:]] == [1] * 3 * STEPS
    torch.testing.assert_close(together, split, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choice", [(0, 1, 0), (0, 0, 2), (0, 1, 2), (0, 2, 1), (2, 2, 2)])
def test_whatever_the_host_puts_together_stays_together(flux, clip, choice):
    """The calls of a run hold the same conditionings as without the patch."""
    prompts = crowd(clip)
    first, second = prompts[0][0], prompts[1][0]
    positive = prompts[choice[0]][1] + prompts[choice[1]][1]
    seen = []
    for model in (flux, apply(apply(flux, first), second)):
        model, recorder = watched(model)
        run(model, positive, prompts[choice[2]][1])
        seen.append([call["rows"] for call in recorder.calls])
    assert seen[0] == seen[1]


def test_areas_and_schedules(flux, clip):
    """References for a half in the first step only; the opposite area the host makes for the negative has none."""
    layout = make_layout(PAPER)
    timed = {"area": (4, 4, 0, 0), "strength": 1.0, "start_percent": 0.0, "end_percent": 0.4}
    local = node_helpers.conditioning_set_values(cond(clip, "one old wizard", layout, {"coat": [(2, 3)]}), timed)
    model, recorder = watched(apply(flux, layout))
    run(model, local + cond(clip, "two tall dancers"), cond(clip, "four red dragons"))
    with_references = [call for call in recorder.calls if call["img_ids"][..., 0].any()]
    assert [call["rows"] for call in with_references] == [[0]]
    tokens = with_references[0]["tokens"] - 3 * 12
    expected = oracle(None, PAPER, ((1,), (2,), (3,)), CCPA)
    np.testing.assert_allclose(with_references[0]["img_ids"][0, tokens:].numpy(), expected, atol=1e-5)
    assert [bool(call["txt_ids"].any()) for call in recorder.calls].count(True) == 1


@pytest.mark.parametrize("mode", MODES)
def test_europe_places_the_pose_and_not_the_subjects(flux, clip, mode):
    """In any order: whose is what depends on the nodes that are there, not on who came first."""
    cast = {"gown": ("dress", (4, 3)), "anna": ("face", (3, 3))}
    layout = make_layout(cast, pose=(6, 5))
    positive, negative = cond(clip, "anna in a gown", layout, {"anna": [(1, 2)]}), cond(clip, "")
    expected = oracle((8, 8), cast, ((2, 3), (1,)), CCPA, (6, 5))
    if mode == SYMMETRIC_UNOPE:  # the pose map is off the canvas, behind the subjects
        expected[21:51] = [(0.0, 8 + 7 + y, 8 + 6 + x) for y, x in itertools.product(range(6), range(5))]
    pictures = []
    for order in itertools.permutations([0, 1]):
        model = flux
        for step in order:
            model = apply(model, layout) if step == 0 else apply_europe(model, layout, mode)
        model, recorder = watched(model)
        pictures.append(run(model, positive, negative))
        placed = [call for call in recorder.calls if call["tokens"] > 64]
        assert len(placed) == STEPS
        for call in placed:
            np.testing.assert_allclose(call["img_ids"][0, 64:].numpy(), expected, atol=1e-5)
            assert call["txt_ids"].any()
    assert torch.equal(*pictures)


def test_europes_limit_is_not_that_of_the_slots(flux, clip):
    """EURoPE takes no subject larger than the canvas; a slot does, with EURoPE there for the pose or not."""
    layout = make_layout({"anna": ("face", (9, 9))}, pose=(8, 8))
    model = apply_europe(apply(flux, layout), layout, EUROPE)
    assert torch.isfinite(run(model, cond(clip, "a duel", layout), cond(clip, ""))).all()


def test_europe_alone_knows_no_second_copy(flux, clip):
    layout = make_layout({"gown": ("dress", (4, 3))})
    model, recorder = watched(apply_europe(flux, layout, EUROPE))
    run(model, cond(clip, "a gown", layout), cond(clip, ""), cfg=1.0)
    assert recorder.calls[0]["tokens"] == 64 + 12


def test_europe_for_another_cast(flux, clip):
    """Two casts in one model, of the same sizes, one for each mechanism."""
    (first, one), (second, other), _ = crowd(clip)
    for ours_first in (True, False):
        model = apply(flux, first) if ours_first else apply_europe(flux, second, SYMMETRIC_ROPE)
        model = apply_europe(model, second, SYMMETRIC_ROPE) if ours_first else apply(model, first)
        model, recorder = watched(model)
        run(model, one, other)
        for call in recorder.calls:
            for row, ids in zip(call["rows"], call["img_ids"], strict=True):
                assert ids[64].tolist() == ([1, 4, 3] if row == 0 else [0, 0, 0])


def dsm_adapter() -> CoreModelPatcher:
    config = DSMConfig(384, 64, 4, 32, 6, (1, 3, 4), 4, 256, 3, 6)
    network, cpu = DSMAdapter(config, torch.float32, "cpu", comfy.ops.manual_cast), torch.device("cpu")
    generator = torch.Generator().manual_seed(5)
    network.load_state_dict(
        {
            name: value + 0.3 * torch.randn(value.shape, generator=generator)
            for name, value in fresh_dsm(config, 0).items()
        }
    )
    return CoreModelPatcher(network, load_device=cpu, offload_device=cpu)


def test_dsm_and_europe_in_every_order(flux, clip):
    adapter, layout = dsm_adapter(), make_layout(PAPER, pose=(8, 8))
    positive, negative = cond(clip, "a woman in a coat", layout, {"coat": [(4, 6)]}), cond(clip, "a much longer prompt")
    made = modulate(
        adapter, positive[0][0], torch.randn(3, 3, 5, 32, generator=torch.Generator().manual_seed(1)), 0, None
    )
    positive[0][1][DSM_KEY] = made.trunk
    steps = {
        "ours": lambda model: apply(model, layout),
        "europe": lambda model: apply_europe(model, layout, EUROPE),
        "dsm": lambda model: apply_dsm(model, adapter),
    }
    pictures = []
    for order in itertools.permutations(steps):
        model = flux
        for step in order:
            model = steps[step](model)
        pictures.append(run(model, positive, negative))
    assert all(torch.equal(pictures[0], picture) for picture in pictures[1:])
    for left_out in ("ours", "dsm"):
        model = flux
        for step in set(steps) - {left_out}:
            model = steps[step](model)
        assert not torch.equal(pictures[0], run(model, positive, negative))


def test_applied_twice_the_last_scheme_holds(flux, clip):
    layout = make_layout(PAPER | {"gown": ("dress", (4, 3))})
    positive, negative = cond(clip, "a duel", layout, {"coat": [(1, 2)]}), cond(clip, "")
    twice = apply(apply(flux, layout, VIRTUAL_TIME), layout, CCPA)
    assert len(twice.get_attachment(KEY).placements) == 1
    assert len(twice.model_options["transformer_options"]["patches"]["post_input"]) == 1
    assert len(twice.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, KEY)) == 1
    assert torch.equal(run(twice, positive, negative), run(apply(flux, layout), positive, negative))


def test_other_patches_keep_their_place(flux, clip):
    """A patch that was there before ours still runs, and one after ours sees our ids."""
    layout = make_layout(PAPER)
    model, before = watched(flux)
    model, after = watched(apply(apply_europe(apply(model, layout), layout, EUROPE), layout))
    run(model, cond(clip, "a duel", layout), cond(clip, ""), cfg=1.0)
    assert len(before.calls) == len(after.calls) == STEPS
    assert before.calls[0]["img_ids"][0, 64].tolist() == [1, 0, 0]  # the host's own method "offset"
    assert after.calls[0]["img_ids"][0, 64].tolist() == [1, 4, 3]


def test_scaled_rope_moves_everything_alike(flux, clip):
    """The pose map keeps the canvas's ids, and words move with their references; other words have no place to move."""
    layout = make_layout(PAPER, pose=(8, 8))
    model = apply(flux, layout, anchor=SLOT_CENTRE)
    model.set_model_rope_options(scale_x=0.5, shift_x=3.0, scale_y=2.0, shift_y=1.0, scale_t=1.0, shift_t=4.0)
    model, recorder = watched(model)
    run(model, cond(clip, "a duel of two", layout, {"coat": [(2, 4)]}), cond(clip, ""), cfg=1.0)
    image, words = recorder.calls[0]["img_ids"][0], recorder.calls[0]["txt_ids"][0]
    torch.testing.assert_close(image[-64:], image[:64])
    scaled = oracle((8, 8), PAPER, ((1,), (2,), (3,)), CCPA) * [1.0, 2.0, 0.5] + [4.0, 1.0, 3.0]
    np.testing.assert_allclose(image[64:100].numpy(), scaled, atol=1e-5)
    np.testing.assert_allclose(words[2].numpy(), scaled[12:24].mean(axis=0), atol=1e-5)
    assert not words[:2].any() and not words[4:].any()


def test_references_of_another_pack_are_known_by_their_sizes(flux, clip):
    """The host's own ReferenceLatent node writes no layout."""
    layout = make_layout(PAPER)
    positive = cond(clip, "a duel", layout)
    expected = run(apply(flux, layout), positive, cond(clip, ""))
    del positive[0][1][LAYOUT_KEY]
    assert torch.equal(expected, run(apply(flux, layout), positive, cond(clip, "")))


def test_the_same_cast_under_another_prompt(flux, clip):
    """Spans are a matter of the prompt: a layout made for one prompt serves the same cast under all."""
    layout = make_layout(PAPER)
    told = Layout(
        tuple(Reference("subject", grid, name, category, ((1, 2),)) for name, (category, grid) in PAPER.items())
    )
    positive = cond(clip, "a duel", layout, {"coat": [(1, 3)]})
    assert torch.equal(
        run(apply(flux, told), positive, cond(clip, "")), run(apply(flux, layout), positive, cond(clip, ""))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision(tiny_models, clip, dtype):
    path = next((tiny_models / "diffusion_models").glob("*.safetensors"))
    cast, slots = (
        {"tower": ("other", (23, 3))},
        ((99,),),
    )  # 2277 and more: odd numbers that half precision does not have
    layout = make_layout(cast)
    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
    model, recorder = watched(apply_condition_positions(model, layout, slots, CCPA, EQUATION_3))
    model.set_model_compute_dtype(dtype)  # on a CPU the host computes in float32 unless told
    positive = cond(clip, "a duel of two", layout, {"tower": [(1, 2)]})
    out = run(model, positive, cond(clip, ""), cfg=1.0)
    assert model.model.get_dtype() == dtype and torch.isfinite(out).all()
    call, length = recorder.calls[0], positive[0][0].shape[1]
    assert (call["img_ids"][0, 64:].double().numpy() == oracle((8, 8), cast, slots, CCPA)).all()
    words = text_oracle(length, cast, slots, {"tower": [(1, 2)]}, EQUATION_3)
    assert (call["txt_ids"][0].double().numpy() == words).all()


def test_low_memory_loading(flux, clip):
    """Weights left on the offload device and cast layer by layer give the same picture."""
    layout = make_layout(PAPER | {"gown": ("dress", (4, 3))}, pose=(8, 8))
    positive, negative = cond(clip, "a duel", layout, {"coat": [(1, 2)]}), cond(clip, "")
    model = apply(flux, layout)
    whole = run(model, positive, negative)
    lowvram, seen = model.clone(), []

    def note(args):
        seen.append(lowvram.model.model_lowvram)
        return args

    def unload_partly(patcher):
        patcher.detach()
        patcher.load(patcher.load_device, lowvram_model_memory=1)

    lowvram.set_model_post_input_patch(note)
    lowvram.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, unload_partly)
    assert torch.equal(whole, run(lowvram, positive, negative))
    assert seen == [True] * 2 * STEPS


def test_state_after_an_interrupt(flux, clip):
    """An interrupted run leaves nothing in the patch, the model or the prompt: the next picture is the same as ever."""
    layout = make_layout(PAPER | {"gown": ("dress", (4, 3))})
    positive, negative = cond(clip, "a duel", layout, {"coat": [(1, 2)]}), cond(clip, "")
    model = apply(flux, layout)
    expected = run(model, positive, negative)
    held, options = dict(vars(model.get_attachment(KEY))), [dict(entry) for _, entry in positive + negative]
    interrupted = model.clone()

    def stop(args):
        raise comfy.model_management.InterruptProcessingException()

    interrupted.set_model_post_input_patch(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(interrupted, positive, negative)
    assert vars(model.get_attachment(KEY)) == held
    assert options == [entry for _, entry in positive + negative]
    assert torch.equal(expected, run(model, positive, negative))


def test_a_layout_of_another_conditioning_is_refused(flux, clip):
    """By its sizes, and where these are the same by who is in it."""
    layout = make_layout(PAPER)
    model = apply(flux, layout)
    other = make_layout({"anna": ("face", (4, 4))})
    with pytest.raises(
        ValueError, match=r"carries references of 4 x 4 tokens, the connected layout describes 4 x 3, 4 x"
    ):
        run(model, cond(clip, "a duel", other), cond(clip, ""))
    other = make_layout({"anna": ("face", (4, 3)), "hat": ("hat", (4, 3)), "skirt": ("lower garment", (4, 3))})
    with pytest.raises(
        ValueError,
        match=r"Condition Positions: .* references of anna \(face\), hat \(hat\), skirt \(lower garment\), the connected"
        r" layout describes anna \(face\), coat \(upper garment\), skirt",
    ):
        run(model, cond(clip, "a duel", other), cond(clip, ""))


@pytest.mark.parametrize("span", [(2, 99), (3, 3), (-1, 2)])
def test_spans_of_another_text_encoder_are_refused(flux, clip, span):
    layout = make_layout(PAPER)
    with pytest.raises(
        ValueError, match=r"Condition Positions: the prompt will not do, its item spans do not fit its \d"
    ):
        run(apply(flux, layout), cond(clip, "a duel", layout, {"coat": [span]}), cond(clip, ""))


def test_a_prompt_that_the_model_pads_is_refused(flux, clip, monkeypatch):
    """As FLUX.2 does, in front, which would shift the words."""
    layout = make_layout(PAPER)
    extra_conds = flux.model.extra_conds

    def padded(**options):
        out = extra_conds(**options)
        out["c_crossattn"].cond = torch.nn.functional.pad(out["c_crossattn"].cond, (0, 0, 20, 0))
        return out

    monkeypatch.setattr(flux.model, "extra_conds", padded)
    with pytest.raises(ValueError, match="this model pads the prompt from"):
        run(apply(flux, layout), cond(clip, "a duel", layout, {"coat": [(1, 2)]}), cond(clip, ""), cfg=1.0)
    run(apply(flux, layout, CONDITION_IDS), cond(clip, "a duel", layout), cond(clip, ""), cfg=1.0)
