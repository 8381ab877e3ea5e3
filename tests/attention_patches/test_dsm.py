"""DSM against loops written from the paper, and inside the host's real sampler."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial

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

from comfyui_ensemble.attention_patches.dsm import KEY, apply_dsm, fit_length, item_mask, modulate
from comfyui_ensemble.attention_patches.dsm_adapter import DSMAdapter, DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.europe import EUROPE, apply_europe
from comfyui_ensemble.attention_patches.layout import Layout, Reference

STEPS = 2
PATCHES = 5
CONFIG = DSMConfig(
    text_width=384,
    width=64,
    heads=4,
    clip_width=32,
    clip_depth=6,
    clip_layers=(1, 3, 4),
    subjects=4,
    model_width=256,
    double_blocks=2,
    single_blocks=6,
)
SMALL = dataclasses.replace(CONFIG, text_width=12, width=8, heads=2, clip_width=6, model_width=10)
BLOCKS = [("double_block", index) for index in range(2)] + [("single_block", index) for index in range(6)]


def trained(config: DSMConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights in which nothing is zero or one any more, as if trained."""
    generator = torch.Generator().manual_seed(seed + 100)
    weights = fresh_dsm(config, seed)
    return {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}


def network(config: DSMConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> DSMAdapter:
    adapter = DSMAdapter(config, dtype, "cpu", comfy.ops.manual_cast)
    adapter.load_state_dict(weights)
    return adapter


def patcher(
    config: DSMConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32
) -> CoreModelPatcher:
    cpu = torch.device("cpu")
    return CoreModelPatcher(network(config, weights, dtype), load_device=cpu, offload_device=cpu)


@pytest.fixture(scope="module")
def adapter() -> CoreModelPatcher:
    return patcher(CONFIG, trained(CONFIG))


def hidden_states(config: DSMConfig, subjects: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(subjects, len(config.clip_layers), PATCHES, config.clip_width, generator=generator)


def layer_norm(row: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    centred = row - row.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * scale + shift


def gelu(value: float) -> float:
    return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def oracle_trunk(weights, config, text, hidden, sees=lambda token, subject: True) -> np.ndarray:
    """The trunk, float64, one word, head and feature at a time."""
    w = {name: value.double().numpy() for name, value in weights.items()}

    def affine(name, row):
        return w[f"{name}.weight"] @ row + w.get(f"{name}.bias", 0.0)

    def normed(name, row):
        return layer_norm(row, w[f"{name}.weight"], w[f"{name}.bias"])

    features = []
    for subject, layers in enumerate(hidden.double().numpy()):
        for layer, rows in enumerate(layers):
            for row in rows:
                feature = affine(f"feature_projections.{layer}", normed(f"feature_norms.{layer}", row))
                feature = feature + w["layer_embedding.weight"][layer] + w["subject_embedding.weight"][subject]
                features.append((subject, feature))
    size = config.width // config.heads
    out = np.zeros((*text.shape[:2], config.width))
    for sample, rows in enumerate(text.double().numpy()):
        for token, row in enumerate(rows):
            query = affine("to_query", normed("text_norm", row))
            seen = [feature for subject, feature in features if sees(token, subject)]
            keys, values = [affine("to_key", f) for f in seen], [affine("to_value", f) for f in seen]
            found = np.zeros(config.width)
            for head in range(config.heads):
                part = slice(head * size, (head + 1) * size)
                logits = np.array([query[part] @ key[part] / math.sqrt(size) for key in keys])
                shares = np.exp(logits - logits.max())
                found[part] = sum(
                    share * value[part] for share, value in zip(shares / shares.sum(), values, strict=True)
                )
            found = affine("to_out", found)
            inner = np.array([gelu(value) for value in affine("mlp_in", normed("mlp_norm", found))])
            out[sample, token] = normed("trunk_norm", found + affine("mlp_out", inner))
    return out


def cond(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def with_dsm(adapter, conditioning, hidden, global_strength=0.0, layer_strength=1.0):
    """The conditioning as the node makes it."""
    out = []
    for text, options in conditioning:
        made = modulate(adapter, text, hidden, global_strength, None)
        out.append([made.text, {**options, KEY: layer_strength * made.trunk}])
    return out


def run(model, positive, negative, size=(16, 16), cfg=2.0, batch=1, seed=3) -> torch.Tensor:
    """Two Euler steps of the host's sampler on a latent of `size` pixels."""
    latent = torch.zeros(batch, 16, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, STEPS, cfg, "euler", "simple", positive, negative, latent, seed=seed)


class Streams:
    """Block replacements that write down the text that enters and leaves every block, call by call."""

    def __init__(self, model) -> None:
        self.calls: list[dict] = []
        for kind, index in BLOCKS:
            model.set_model_patch_replace(partial(self.record, kind, index), "dit", kind, index)

    def record(self, kind, index, args, extra):
        options = args["transformer_options"]
        if (kind, index) == BLOCKS[0]:
            self.calls.append({"rows": options["cond_or_uncond"], "sigma": float(options["sigmas"][0])})
        length = options["img_slice"][0] if kind == "single_block" else args["txt"].shape[1]
        name = "img" if kind == "single_block" else "txt"
        entered = args[name][:, :length].clone()
        out = extra["original_block"](args)
        self.calls[-1][kind, index] = (entered, out[name][:, :length].clone())
        return out


def offsets_in(call) -> dict:
    """What was added to the text before every block but the first, whose text comes from `txt_in`."""
    return {block: call[block][0].double() - call[before][1].double() for before, block in itertools.pairwise(BLOCKS)}


def head_of(adapter, block) -> np.ndarray:
    kind, index = block
    return adapter.model.get_parameter(f"{kind.split('_')[0]}_heads.{index}.weight").double().numpy()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("subjects, batch, length", [(1, 1, 7), (2, 2, 3), (4, 1, 1)])
def test_trunk_and_heads_follow_the_paper(dtype, tolerance, subjects, batch, length):
    weights, hidden = trained(SMALL), hidden_states(SMALL, subjects)
    text = torch.randn(batch, length, SMALL.text_width, generator=torch.Generator().manual_seed(2))
    adapter = network(SMALL, weights, dtype)
    trunk = adapter.trunk(text.to(dtype), hidden.to(dtype))
    expected = oracle_trunk(weights, SMALL, text, hidden)
    np.testing.assert_allclose(trunk.double().numpy(), expected, rtol=tolerance, atol=tolerance)
    for name, head in [
        ("global_head", adapter.global_offset),
        ("double_heads.1", adapter.double_heads[1]),
        ("single_heads.5", adapter.single_heads[5]),
    ]:
        by_hand = expected @ weights[f"{name}.weight"].double().numpy().T
        np.testing.assert_allclose(head(trunk).double().numpy(), by_hand, rtol=10 * tolerance, atol=10 * tolerance)


def test_per_item_attention_follows_the_paper():
    """Words 1-2 and 5 describe the first subject, 2-4 the second (word 2 both), the third is not named."""
    spans = [[(1, 3), (5, 6)], [(2, 5)], []]
    owners = {1: {0}, 2: {0, 1}, 3: {1}, 4: {1}, 5: {0}}
    weights, hidden = trained(SMALL), hidden_states(SMALL, 3)
    text = torch.randn(1, 8, SMALL.text_width, generator=torch.Generator().manual_seed(2)).double()
    allowed = item_mask(spans, 8, len(SMALL.clip_layers) * PATCHES)
    trunk = network(SMALL, weights, torch.float64).trunk(text, hidden.double(), allowed)
    expected = oracle_trunk(
        weights, SMALL, text, hidden, lambda token, subject: subject in owners.get(token, {0, 1, 2})
    )
    np.testing.assert_allclose(trunk.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_a_description_knows_nothing_of_the_other_subject():
    adapter, hidden = network(SMALL, trained(SMALL)), hidden_states(SMALL, 2)
    text = torch.randn(1, 6, SMALL.text_width)
    allowed = item_mask([[(0, 2)], [(3, 5)]], 6, len(SMALL.clip_layers) * PATCHES)
    other = torch.cat((hidden[:1], hidden_states(SMALL, 1, seed=9)))
    same = (adapter.trunk(text, hidden, allowed) == adapter.trunk(text, other, allowed)).all(dim=-1)[0]
    assert same.tolist() == [True, True, False, False, False, False]


def test_subjects_are_told_apart_by_their_embedding_alone():
    """Swapping the subjects together with their embeddings changes nothing; swapping only the subjects does."""
    weights, hidden = trained(SMALL), hidden_states(SMALL, 2).double()
    text = torch.randn(1, 6, SMALL.text_width).double()
    swapped = {**weights, "subject_embedding.weight": weights["subject_embedding.weight"][[1, 0, 2, 3]]}
    before = network(SMALL, weights, torch.float64).trunk(text, hidden)
    torch.testing.assert_close(before, network(SMALL, swapped, torch.float64).trunk(text, hidden.flip(0)))
    assert not torch.allclose(before, network(SMALL, weights, torch.float64).trunk(text, hidden.flip(0)))


def test_trunk_follows_a_text_that_was_lengthened_or_cut():
    trunk = torch.randn(2, 5, 3)
    assert torch.equal(fit_length(trunk, 3), trunk[:, :3])
    assert torch.equal(fit_length(trunk, 7), torch.cat((trunk, torch.zeros(2, 2, 3)), dim=1))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fresh_adapter_is_bit_identical(flux, clip, batch):
    adapter = patcher(CONFIG, fresh_dsm(CONFIG, 0))
    positive, negative = cond(clip, "two old knights"), cond(clip, "one blue flower")
    modulated = with_dsm(adapter, positive, hidden_states(CONFIG, 2), 1.0, 1.0)
    assert torch.equal(positive[0][0], modulated[0][0])
    plain = run(flux, positive, negative, batch=batch)
    assert torch.equal(plain, run(apply_dsm(flux, adapter), modulated, negative, batch=batch))


def test_a_patched_model_without_dsm_prompts_is_bit_identical(flux, clip, adapter):
    positive, negative = cond(clip, "two old knights"), cond(clip, "")
    assert torch.equal(run(flux, positive, negative), run(apply_dsm(flux, adapter), positive, negative))


def test_the_model_and_the_prompt_given_are_untouched(flux, clip, adapter):
    positive, negative = cond(clip, "two old knights"), cond(clip, "")
    text = positive[0][0].clone()
    before = run(flux, positive, negative)
    modulated = with_dsm(adapter, positive, hidden_states(CONFIG, 2), 1.0)
    changed = run(apply_dsm(flux, adapter), modulated, negative)
    assert not torch.equal(before, changed) and torch.isfinite(changed).all()
    assert torch.equal(text, positive[0][0]) and "model_conds" not in modulated[0][1]
    assert torch.equal(before, run(flux, positive, negative))


@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
@pytest.mark.parametrize("subjects, strength", [(1, 1.0), (2, 0.5), (3, -2.0)])
def test_every_block_is_given_its_offset(flux, clip, adapter, size, subjects, strength):
    """The text entering block b is what left block b - 1, plus strength * head_b(trunk), for the positive only."""
    hidden = hidden_states(CONFIG, subjects)
    positive, negative = cond(clip, "a red fox and a hare"), cond(clip, "a much longer prompt with nothing in it")
    trunk = oracle_trunk(trained(CONFIG), CONFIG, positive[0][0], hidden)
    model = apply_dsm(flux, adapter)
    streams = Streams(model)
    run(model, with_dsm(adapter, positive, hidden, 0.0, strength), negative, size)
    assert sorted(call["rows"] for call in streams.calls) == [[0]] * STEPS + [[1]] * STEPS  # unequal lengths
    for call in streams.calls:
        for block, offset in offsets_in(call).items():
            if call["rows"] == [1]:
                assert not offset.any()
            else:
                expected = strength * trunk @ head_of(adapter, block).T
                np.testing.assert_allclose(offset.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_first_block_and_the_prompt(flux, clip, adapter):
    """Eq. 8 on the prompt, and dT_0 on what `txt_in` makes of it."""
    hidden, positive = hidden_states(CONFIG, 2), cond(clip, "a red fox and a hare")
    trunk = oracle_trunk(trained(CONFIG), CONFIG, positive[0][0], hidden)
    modulated = with_dsm(adapter, positive, hidden, 0.7, 0.3)
    shift = 0.7 * trunk @ adapter.model.global_head.weight.double().numpy().T
    np.testing.assert_allclose((modulated[0][0] - positive[0][0]).numpy(), shift, rtol=1e-3, atol=1e-3)
    model = apply_dsm(flux, adapter)
    streams = Streams(model)
    run(model, modulated, cond(clip, ""), cfg=1.0)
    entering = model.model.diffusion_model.txt_in(modulated[0][0].to(streams.calls[0]["double_block", 0][0]))
    offset = streams.calls[0]["double_block", 0][0].double() - entering.double()
    expected = 0.3 * trunk @ head_of(adapter, ("double_block", 0)).T
    np.testing.assert_allclose(offset.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_batches_mixed_and_split(flux, clip, adapter, monkeypatch):
    """Two prompts with different subjects and one without, in one call and, short of memory, in one call each."""
    equal = ["two tall dancers", "one old wizard", "four red dragons"]  # equally many tokens
    first, second = (
        with_dsm(adapter, cond(clip, text), hidden_states(CONFIG, 2, seed)) for seed, text in enumerate(equal[:2])
    )
    model = apply_dsm(flux, adapter)
    streams = Streams(model)
    together = run(model, first + second, cond(clip, equal[2]), batch=2)
    assert [len(call["rows"]) for call in streams.calls] == [3] * STEPS
    for call in streams.calls:
        for block, offset in offsets_in(call).items():
            trunks = {0: [first[0][1][KEY], second[0][1][KEY]], 1: []}
            for chunk, row in zip(offset.chunk(3), call["rows"], strict=True):
                if row == 1:
                    assert not chunk.any()
                    continue
                made = [trunk.double().numpy() @ head_of(adapter, block).T for trunk in trunks[0]]
                near = [np.allclose(chunk.numpy(), expected, rtol=1e-3, atol=1e-3) for expected in made]
                assert sum(near) == 1  # one prompt's own offset, in both pictures of the batch
                trunks[0].pop(near.index(True))
            assert not trunks[0]
    monkeypatch.setattr(flux.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = run(model, first + second, cond(clip, equal[2]), batch=2)
    assert [len(call["rows"]) for call in streams.calls[STEPS:]] == [1] * 3 * STEPS
    torch.testing.assert_close(together, split, atol=1e-4, rtol=1e-4)


def test_areas_and_schedules(flux, clip, adapter):
    """A prompt for a half in the first step only; the opposite area the host makes for the negative has no DSM."""
    timed = {"area": (2, 1, 0, 0), "strength": 1.0, "start_percent": 0.0, "end_percent": 0.4}
    local = with_dsm(adapter, cond(clip, "one old wizard"), hidden_states(CONFIG, 1))
    local = node_helpers.conditioning_set_values(local, timed)
    model = apply_dsm(flux, adapter)
    streams = Streams(model)
    run(model, local + cond(clip, "two tall dancers"), cond(clip, "four red dragons"))
    moved = [
        (call["sigma"], row)
        for call in streams.calls
        for chunk_of in [offsets_in(call)["single_block", 0].chunk(len(call["rows"]))]
        for row, chunk in zip(call["rows"], chunk_of, strict=True)
        if chunk.any()
    ]
    assert moved == [(1.0, 0)]


def test_text_appended_after_dsm_has_no_offset(flux, clip, adapter):
    local = with_dsm(adapter, cond(clip, "one old wizard"), hidden_states(CONFIG, 1))
    length = local[0][0].shape[1]
    local[0][0] = torch.cat((local[0][0], cond(clip, "two tall dancers")[0][0]), dim=1)  # as Conditioning (Concat) does
    model = apply_dsm(flux, adapter)
    streams = Streams(model)
    run(model, local, cond(clip, ""), cfg=1.0)
    offset = offsets_in(streams.calls[0])["double_block", 1]
    assert offset[:, :length].any(dim=-1).all() and not offset[:, length:].any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_every_precision(tiny_models, clip, dtype, tolerance):
    """Model and adapter each in every precision; the stream keeps the model's."""
    path = next((tiny_models / "diffusion_models").glob("*.safetensors"))
    positive, hidden = cond(clip, "a duel"), hidden_states(CONFIG, 2)
    trunk = oracle_trunk(trained(CONFIG), CONFIG, positive[0][0], hidden)
    for adapter_dtype in (torch.float32, torch.bfloat16, torch.float16):
        adapter = patcher(CONFIG, trained(CONFIG), adapter_dtype)
        model = apply_dsm(comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype}), adapter)
        model.set_model_compute_dtype(dtype)  # on a CPU the host computes in float32 unless told
        streams = Streams(model)
        out = run(model, with_dsm(adapter, positive, hidden, 1.0, 0.2), cond(clip, ""), cfg=1.0)
        assert torch.isfinite(out).all()
        entered, _ = streams.calls[0]["single_block", 3]
        assert entered.dtype == dtype and adapter.model.global_head.weight.dtype == adapter_dtype
        expected = 0.2 * trunk @ head_of(adapter, ("single_block", 3)).T
        offset = offsets_in(streams.calls[0])["single_block", 3].numpy()
        bound = max(tolerance, 0.05 if adapter_dtype == torch.bfloat16 else 0.01)
        assert np.abs(offset - expected).max() < bound * np.abs(expected).max()


def test_low_memory_loading(flux, clip, adapter):
    """Weights of model and adapter left on the offload device and cast layer by layer give the same picture."""
    positive, negative = with_dsm(adapter, cond(clip, "a duel"), hidden_states(CONFIG, 2)), cond(clip, "")
    model = apply_dsm(flux, adapter)
    whole = run(model, positive, negative)
    lowvram, seen = model.clone(), []

    def unload_partly(patcher):
        for part in (patcher, *patcher.get_additional_models_with_key(KEY)):
            part.detach()
            part.load(part.load_device, lowvram_model_memory=1)

    def note(args):
        seen.append((lowvram.model.model_lowvram, adapter.model.model_lowvram))
        return args

    lowvram.set_model_post_input_patch(note)
    lowvram.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, unload_partly)
    assert torch.equal(whole, run(lowvram, positive, negative))
    assert seen == [(True, True)] * 2 * STEPS


def test_the_host_loads_the_adapter_with_the_model_and_frees_it(flux, clip):
    adapter = patcher(CONFIG, trained(CONFIG))
    positive = with_dsm(adapter, cond(clip, "a duel"), hidden_states(CONFIG, 2))
    comfy.model_management.unload_all_models()
    run(apply_dsm(flux, adapter), positive, cond(clip, ""))
    loaded = comfy.model_management.loaded_models()
    assert any(model.is_clone(adapter) for model in loaded) and any(model.is_clone(flux) for model in loaded)
    comfy.model_management.unload_all_models()
    assert adapter.loaded_size() == 0


def test_europe_in_both_orders(flux, clip, adapter):
    layout = Layout((Reference("subject", (6, 6), "a"), Reference("pose", (8, 8))))
    positive = with_dsm(adapter, cond(clip, "a duel"), hidden_states(CONFIG, 1), 1.0)
    generator = torch.Generator().manual_seed(7)
    latents = [torch.randn(1, 16, 2 * h, 2 * w, generator=generator) for h, w in layout.grids]
    positive = node_helpers.conditioning_set_values(positive, {"reference_latents": latents})
    pictures = [
        run(apply_europe(apply_dsm(flux, adapter), layout, EUROPE), positive, cond(clip, "")),
        run(apply_dsm(apply_europe(flux, layout, EUROPE), adapter), positive, cond(clip, "")),
    ]
    assert torch.equal(*pictures)
    for fewer in (apply_dsm(flux, adapter), apply_europe(flux, layout, EUROPE)):
        assert not torch.equal(pictures[0], run(fewer, positive, cond(clip, "")))


@pytest.mark.parametrize("before", [True, False])
def test_other_block_replacements_keep_their_place(flux, clip, adapter, before):
    """A replacement that was there, or came later, runs once a block and call, on the text with our offset."""
    positive = with_dsm(adapter, cond(clip, "a duel"), hidden_states(CONFIG, 1))
    model = flux.clone()
    if before:
        streams = Streams(model)
        model = apply_dsm(model, adapter)
    else:
        model = apply_dsm(model, adapter)
        streams = Streams(model)
    out = run(model, positive, cond(clip, ""), cfg=1.0)
    assert torch.equal(out, run(apply_dsm(flux, adapter), positive, cond(clip, ""), cfg=1.0))
    assert [set(call) for call in streams.calls] == [{*BLOCKS, "rows", "sigma"}] * STEPS
    assert all(offset.any() for call in streams.calls for offset in offsets_in(call).values())


def test_a_replacement_that_skips_its_block_is_still_in_charge(flux, clip, adapter):
    positive = with_dsm(adapter, cond(clip, "a duel"), hidden_states(CONFIG, 1))
    model = flux.clone()
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "single_block", 0)
    model = apply_dsm(model, adapter)
    calls = []

    def stop(args, extra):
        calls.append(args["img"].shape)
        return extra["original_block"](args)

    model.set_model_patch_replace(stop, "dit", "single_block", 1)
    assert torch.isfinite(run(model, positive, cond(clip, ""), cfg=1.0)).all() and len(calls) == STEPS


def test_applied_twice_it_is_there_once(flux, clip, adapter):
    positive = with_dsm(adapter, cond(clip, "a duel"), hidden_states(CONFIG, 1))
    once = apply_dsm(flux, adapter)
    twice = apply_dsm(once.clone(), adapter.clone())
    assert torch.equal(run(once, positive, cond(clip, "")), run(twice, positive, cond(clip, "")))
    with pytest.raises(ValueError, match="already carries another DSM adapter"):
        apply_dsm(once, patcher(CONFIG, trained(CONFIG)))


def test_a_prompt_of_another_adapter_is_refused(flux, clip, adapter):
    positive = cond(clip, "a duel")
    positive[0][1][KEY] = torch.zeros(1, positive[0][0].shape[1], CONFIG.width + 1)
    with pytest.raises(ValueError, match="another DSM adapter than the model"):
        run(apply_dsm(flux, adapter), positive, cond(clip, ""))


def test_state_after_an_interrupt(flux, clip, adapter):
    """An interrupted run leaves nothing in the patch, the model or the prompt: the next picture is the same as ever."""
    positive, negative = with_dsm(adapter, cond(clip, "a duel"), hidden_states(CONFIG, 2)), cond(clip, "")
    model = apply_dsm(flux, adapter)
    expected = run(model, positive, negative)
    options = [set(entry) for _, entry in positive + negative]
    interrupted = model.clone()

    def stop(args, extra):
        raise comfy.model_management.InterruptProcessingException()

    interrupted.set_model_patch_replace(stop, "dit", "single_block", 2)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(interrupted, positive, negative)
    wrapped = model.get_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY)
    assert [set(vars(wrapper.__self__)) for wrapper in wrapped] == [{"adapter"}]
    assert options == [set(entry) for _, entry in positive + negative]
    assert "patches_replace" not in model.model_options["transformer_options"]
    assert torch.equal(expected, run(model, positive, negative))
