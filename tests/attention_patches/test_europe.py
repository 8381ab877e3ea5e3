"""EURoPE against loops written from the paper, and inside the host's real sampler."""

from __future__ import annotations

import itertools

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.sd
import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.europe import (
    EUROPE,
    MODES,
    SYMMETRIC_ROPE,
    SYMMETRIC_UNOPE,
    apply_europe,
    reference_ids,
)
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference, token_grid
from comfyui_ensemble.attention_patches.reference_positions import KEY

GRIDS = [(8, 8), (5, 9), (7, 3), (1, 4), (6, 6), (3, 11)]
STEPS = 2


def oracle(canvas, subjects, pose, mode) -> np.ndarray:
    """Ids of every reference token, float64, one token at a time."""
    rows = []
    height, width = canvas
    offset_y, offset_x = height, width
    for h, w in subjects:
        for y, x in itertools.product(range(h), range(w)):
            rows.append((0.0, y, x) if mode == SYMMETRIC_ROPE else (0.0, offset_y + y, offset_x + x))
        offset_y, offset_x = offset_y + h, offset_x + w
    if pose is not None:
        h, w = pose
        for y, x in itertools.product(range(h), range(w)):
            if mode == SYMMETRIC_UNOPE:
                rows.append((0.0, offset_y + y, offset_x + x))
            else:
                rows.append((0.0, (y + 0.5) * height / h - 0.5, (x + 0.5) * width / w - 0.5))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def make_layout(subjects, pose) -> Layout:
    references = [Reference("subject", grid, f"s{i}") for i, grid in enumerate(subjects)]
    return Layout((*references, *([Reference("pose", pose)] if pose else [])))


def latents_for(layout: Layout, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(batch, 16, 2 * h, 2 * w, generator=generator) for h, w in layout.grids]


def cond(clip, text: str, latents: list[torch.Tensor] | None = None):
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if latents:
        for _, options in encoded:
            options["reference_latents"] = latents
    return encoded


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
        self.calls.append(
            {name: args[name].clone() for name in ("img_ids", "txt_ids")} | {"tokens": args["img"].shape[1]}
        )
        return args


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", range(7))
@pytest.mark.parametrize("pose", [None, (8, 10), (5, 7), (16, 20)])
def test_ids_follow_the_paper(mode, count, pose):
    layout = make_layout(GRIDS[:count], pose)
    ids = reference_ids(layout.references, (8, 10), mode)
    np.testing.assert_allclose(ids.numpy(), oracle((8, 10), GRIDS[:count], pose, mode), atol=1e-5)
    assert ids.dtype == torch.float32


def test_subjects_share_no_id_with_the_canvas_or_each_other():
    layout = make_layout(GRIDS, None)
    ids = [tuple(row) for row in reference_ids(layout.references, (8, 10), EUROPE).tolist()]
    canvas = {(0.0, float(y), float(x)) for y in range(8) for x in range(10)}
    assert len(set(ids)) == len(ids)
    assert not canvas & set(ids)


def test_pose_of_the_canvas_size_takes_its_very_ids():
    ids = reference_ids(make_layout([], (33, 17)).references, (33, 17), EUROPE)
    assert ids.tolist() == [[0, y, x] for y in range(33) for x in range(17)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
@pytest.mark.parametrize("count, pose", [(0, (8, 8)), (1, None), (2, (9, 12)), (6, (4, 5))])
def test_ids_seen_by_the_blocks_in_the_sampler(flux, clip, mode, size, count, pose):
    canvas = token_grid(torch.empty(size))
    subjects = [(min(h, canvas[0]), min(w, canvas[1] - 1)) for h, w in GRIDS[:count]]
    layout, recorder = make_layout(subjects, pose), Recorder()
    model = apply_europe(flux, layout, mode)
    model.set_model_post_input_patch(recorder)
    positive = cond(clip, "two dancers", latents_for(layout))
    run(model, positive, cond(clip, "a much longer prompt that has nothing in it"), size)

    tokens = canvas[0] * canvas[1]
    expected_canvas = [[0.0, y, x] for y in range(canvas[0]) for x in range(canvas[1])]
    with_references = [call for call in recorder.calls if call["img_ids"].shape[1] > tokens]
    assert len(with_references) == STEPS and len(recorder.calls) == 2 * STEPS  # the negative has none
    for call in recorder.calls:
        assert call["img_ids"][0, :tokens].tolist() == expected_canvas
        assert not call["txt_ids"].any()
        assert call["img_ids"].shape[1] == call["tokens"]
    for call in with_references:
        for row in call["img_ids"].numpy():
            np.testing.assert_allclose(row[tokens:], oracle(canvas, subjects, pose, mode), atol=1e-5)


def test_no_references_is_bit_identical(flux, clip):
    positive, negative = cond(clip, "a juggler"), cond(clip, "")
    layout = make_layout([(4, 4)], None)
    assert torch.equal(run(flux, positive, negative), run(apply_europe(flux, layout, EUROPE), positive, negative))


def test_equals_the_hosts_own_uno_positions(flux, clip):
    """The host's method "uxo" is UnoPE: an independent implementation of the subjects' part."""
    layout = make_layout([(8, 8), (4, 6)], None)
    latents = latents_for(layout)
    ours = run(apply_europe(flux, layout, EUROPE), cond(clip, "a duel", latents), cond(clip, ""))
    positive = cond(clip, "a duel", latents)
    positive[0][1]["reference_latents_method"] = "uxo"
    assert torch.equal(ours, run(flux, positive, cond(clip, "")))


def test_modes_differ_and_the_model_given_is_untouched(flux, clip):
    layout = make_layout([(6, 6)], (8, 8))
    positive, negative = cond(clip, "a duel", latents_for(layout)), cond(clip, "")
    before = run(flux, positive, negative)
    pictures = [run(apply_europe(flux, layout, mode), positive, negative) for mode in MODES]
    for one, other in itertools.combinations([before, *pictures], 2):
        assert not torch.equal(one, other)
    assert torch.equal(before, run(flux, positive, negative))


def test_batches_mixed_and_split(flux, clip, monkeypatch):
    """Four pictures, references on both sides and equal prompt lengths (one call) against one call each (low memory)."""
    layout = make_layout([(6, 6)], (8, 8))
    latents = latents_for(layout)
    model = apply_europe(flux, layout, EUROPE)
    positive, negative = cond(clip, "two tall dancers", latents), cond(clip, "one old wizard", latents)
    recorder = Recorder()
    model.set_model_post_input_patch(recorder)
    together = run(model, positive, negative, batch=4)
    assert [call["img_ids"].shape[0] for call in recorder.calls] == [8] * STEPS
    monkeypatch.setattr(flux.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = run(model, positive, negative, batch=4)
    assert [call["img_ids"].shape[0] for call in recorder.calls[STEPS:]] == [4] * 2 * STEPS
    torch.testing.assert_close(together, split, atol=1e-4, rtol=1e-4)


def test_two_casts_in_one_model(flux, clip):
    """Positive and negative carry different references; each gets its own layout's ids."""
    first, second = make_layout([(6, 6)], None), make_layout([(3, 5), (4, 4)], (8, 8))
    recorder = Recorder()
    model = apply_europe(apply_europe(flux, first, EUROPE), second, SYMMETRIC_UNOPE)
    model.set_model_post_input_patch(recorder)
    run(model, cond(clip, "a duel", latents_for(first)), cond(clip, "a crowd", latents_for(second)))
    expected = {
        64 + 36: oracle((8, 8), [(6, 6)], None, EUROPE),
        64 + 15 + 16 + 64: oracle((8, 8), [(3, 5), (4, 4)], (8, 8), SYMMETRIC_UNOPE),
    }
    assert {call["tokens"] for call in recorder.calls} == set(expected)
    for call in recorder.calls:
        np.testing.assert_allclose(call["img_ids"][0, 64:].numpy(), expected[call["tokens"]], atol=1e-5)


def test_equal_sizes_in_other_roles(flux, clip):
    """A conditioning that knows its layout gets that layout's ids, in whatever order the layouts came to the model."""
    person, pose = make_layout([(8, 8)], None), make_layout([], (8, 8))
    prompts = [cond(clip, text, latents_for(pose)) for text in ("two tall dancers", "one old wizard")]
    for prompt, layout in zip(prompts, (person, pose), strict=True):
        prompt[0][1][LAYOUT_KEY] = layout
    for order in ((person, pose), (pose, person)):
        recorder = Recorder()
        model = apply_europe(apply_europe(flux, order[0], EUROPE), order[1], EUROPE)
        model.set_model_post_input_patch(recorder)
        run(model, *prompts)
        firsts = [sorted(ids[64].tolist() for ids in call["img_ids"]) for call in recorder.calls]
        assert firsts == [[[0, 0, 0], [0, 8, 8]]] * STEPS  # both in one call


def test_applied_twice_the_last_mode_holds(flux, clip):
    layout = make_layout([(6, 6)], (8, 8))
    positive, negative = cond(clip, "a duel", latents_for(layout)), cond(clip, "")
    twice = apply_europe(apply_europe(flux, layout, SYMMETRIC_ROPE), layout, EUROPE)
    assert torch.equal(run(twice, positive, negative), run(apply_europe(flux, layout, EUROPE), positive, negative))


def test_other_patches_keep_their_place(flux, clip):
    """A patch that was there before ours still runs, and one after ours sees our ids."""
    layout = make_layout([(6, 6)], None)
    before, after = Recorder(), Recorder()
    model = flux.clone()
    model.set_model_post_input_patch(before)
    model = apply_europe(apply_europe(model, layout, SYMMETRIC_ROPE), layout, EUROPE)
    model.set_model_post_input_patch(after)
    run(model, cond(clip, "a duel", latents_for(layout)), cond(clip, ""), cfg=1.0)
    assert len(before.calls) == len(after.calls) == STEPS
    assert before.calls[0]["img_ids"][0, 64].tolist() == [1, 0, 0]  # the host's own method "offset"
    assert after.calls[0]["img_ids"][0, 64].tolist() == [0, 8, 8]


def test_scaled_rope_moves_everything_alike(flux, clip):
    layout, recorder = make_layout([(6, 6)], (8, 8)), Recorder()
    model = apply_europe(flux, layout, EUROPE)
    model.set_model_rope_options(scale_x=0.5, shift_x=3.0, scale_y=2.0, shift_y=1.0, scale_t=1.0, shift_t=4.0)
    model.set_model_post_input_patch(recorder)
    run(model, cond(clip, "a duel", latents_for(layout)), cond(clip, ""), cfg=1.0)
    ids = recorder.calls[0]["img_ids"][0]
    torch.testing.assert_close(ids[-64:], ids[:64])  # the pose keeps the canvas's ids
    scaled = oracle((8, 8), [(6, 6)], None, EUROPE) * [1.0, 2.0, 0.5] + [4.0, 1.0, 3.0]
    np.testing.assert_allclose(ids[64:100].numpy(), scaled, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision(tiny_models, clip, dtype):
    path = next((tiny_models / "diffusion_models").glob("*.safetensors"))
    layout = make_layout([(6, 6)], (8, 8))
    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
    recorder = Recorder()
    model = apply_europe(model, layout, EUROPE)
    model.set_model_post_input_patch(recorder)
    out = run(model, cond(clip, "a duel", latents_for(layout)), cond(clip, ""), cfg=1.0)
    assert model.model.get_dtype() == dtype and torch.isfinite(out).all()
    np.testing.assert_allclose(
        recorder.calls[0]["img_ids"][0, 64:].numpy(), oracle((8, 8), [(6, 6)], (8, 8), EUROPE), atol=1e-5
    )  # ids never pass through half precision


def test_low_memory_loading(flux, clip):
    """Weights left on the offload device and cast layer by layer give the same picture."""
    layout = make_layout([(6, 6)], (8, 8))
    positive, negative = cond(clip, "a duel", latents_for(layout)), cond(clip, "")
    model = apply_europe(flux, layout, EUROPE)
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
    """An interrupted run leaves nothing in the patch or the model: the next picture is the same as ever."""
    layout = make_layout([(6, 6)], (8, 8))
    positive, negative = cond(clip, "a duel", latents_for(layout)), cond(clip, "")
    model = apply_europe(flux, layout, EUROPE)
    expected = run(model, positive, negative)
    held = dict(vars(model.get_attachment(KEY)))
    interrupted = model.clone()

    def stop(args):
        raise comfy.model_management.InterruptProcessingException()

    interrupted.set_model_post_input_patch(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(interrupted, positive, negative)
    assert vars(model.get_attachment(KEY)) == held
    assert torch.equal(expected, run(model, positive, negative))


def test_a_layout_of_other_references_is_refused(flux, clip):
    model = apply_europe(flux, make_layout([(6, 6)], None), EUROPE)
    with pytest.raises(ValueError, match="carries references of 4 x 4 tokens, the connected layout describes 6 x 6"):
        run(model, cond(clip, "a duel", latents_for(make_layout([(4, 4)], None))), cond(clip, ""))


def test_a_reference_larger_than_the_canvas_is_refused(flux, clip):
    layout = make_layout([(9, 9)], None)
    with pytest.raises(ValueError, match=r"reference of 's0' \(9 x 9 tokens\) is larger than the canvas \(8 x 8\)"):
        run(apply_europe(flux, layout, EUROPE), cond(clip, "a duel", latents_for(layout)), cond(clip, ""))
