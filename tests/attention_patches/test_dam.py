"""DAM against float64 sums written from the paper, and inside the host's real sampler."""

from __future__ import annotations

import itertools
import math
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

from comfyui_ensemble.attention_patches.condition_positions import CCPA, EQUATION_3, apply_condition_positions
from comfyui_ensemble.attention_patches.dam import KEY, apply_dam, divide, strengthen, temperature
from comfyui_ensemble.attention_patches.dam_generator import (
    DAMConfig,
    DAMGenerators,
    fresh_dam,
)
from comfyui_ensemble.attention_patches.dsm import KEY as DSM_KEY
from comfyui_ensemble.attention_patches.dsm import apply_dsm
from comfyui_ensemble.attention_patches.dsm_adapter import DSMAdapter, DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.europe import EUROPE, apply_europe
from comfyui_ensemble.attention_patches.layout import Layout, Reference
from devtools import bench_dam

STEPS = 2
HEADS, HEAD_SIZE = 2, 128
CONFIG = DAMConfig(model_width=256, width=32, double_blocks=2, single_blocks=6)
BLOCKS = [("double", index) for index in range(2)] + [("single", index) for index in range(6)]
LAYOUT = Layout((Reference("subject", (6, 6), "a"), Reference("subject", (3, 5), "b"), Reference("pose", (8, 8))))
SMALL = Layout((Reference("subject", (2, 3), "a"), Reference("pose", (3, 3))))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def trained(config: DAMConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights in which nothing is zero any more, as if trained; temperatures are about 0.3 to 3."""
    generator = torch.Generator().manual_seed(seed + 100)
    return {
        name: value + (0.02 if name.endswith("in.weight") else 0.3) * torch.randn(value.shape, generator=generator)
        for name, value in fresh_dam(config, seed).items()
    }


def patcher(
    weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32, config: DAMConfig = CONFIG
) -> CoreModelPatcher:
    cpu = torch.device("cpu")
    generators = DAMGenerators(config, dtype, cpu, comfy.ops.manual_cast)
    generators.load_state_dict(weights)
    return CoreModelPatcher(generators, load_device=cpu, offload_device=cpu)


def dam_of(model) -> CoreModelPatcher:
    (held,) = model.get_additional_models_with_key(KEY)
    return held


@pytest.fixture(scope="module")
def dam() -> CoreModelPatcher:
    return patcher(trained(CONFIG))


def cond(clip, text: str, layout: Layout | None = None):
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if layout is None:
        return encoded
    generator = torch.Generator().manual_seed(7)
    latents = [torch.randn(1, 16, 2 * h, 2 * w, generator=generator) for h, w in layout.grids]
    return node_helpers.conditioning_set_values(encoded, {"reference_latents": latents})


def run(model, positive, negative, size=(16, 16), cfg=2.0, batch=1, seed=3) -> torch.Tensor:
    """Two Euler steps of the host's sampler on a latent of `size` pixels."""
    latent = torch.zeros(batch, 16, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(model, noise, STEPS, cfg, "euler", "simple", positive, negative, latent, seed=seed)


def softplus_of(offset: float, t_min: float) -> float:
    """Eq. 4 as it is printed, with the bias that makes an offset of 0 a temperature of 1."""
    neutral = math.log(math.exp(1 - t_min) - 1)
    return math.log1p(math.exp(offset + neutral)) + t_min


class Blocks:
    """Writes down what enters every block and every attention of a model, what DAM made of it, and what came out."""

    def __init__(self, model) -> None:
        self.calls: list[dict] = []
        for kind, index in BLOCKS:
            model.set_model_patch_replace(self.entering(kind, index), "dit", f"{kind}_block", index)
        model.set_model_patch(self.queries, "attn1_patch")
        model.set_model_patch(self.results, "attn1_output_patch")

    def entering(self, kind, index):
        def replace(args, extra):
            if (kind, index) == BLOCKS[0]:
                self.calls.append({"rows": args["transformer_options"]["cond_or_uncond"]})
            streams = (args["txt"], args["img"]) if kind == "double" else (args["img"],)
            self.calls[-1][kind, index] = {
                "streams": [stream.double() for stream in streams],
                "vec": args["vec"].double(),
            }
            return extra["original_block"](args)

        return replace

    def _seen(self, options) -> dict:
        return self.calls[-1][options["block_type"], options["block_index"]]

    def queries(self, q, k, v, pe, attn_mask, extra_options):
        tempering = extra_options.get(KEY)
        f = None if tempering is None else tempering.temperature.double()
        self._seen(extra_options).update(q=q.clone(), k=k.clone(), v=v.clone(), pe=pe, f=f)
        return {}

    def results(self, attention, extra_options):
        self._seen(extra_options)["out"] = attention.clone()
        return attention


def affine(layer, rows: torch.Tensor, first: int | None = None) -> torch.Tensor:
    return rows @ layer.weight[:first].double().T + layer.bias[:first].double()


def oracle_queries(network, block, seen) -> torch.Tensor:
    """W_q of Eq. 4 with the host's norm of the queries, (B, heads, L, d) float64, from the model's weights alone."""
    kind, index = block
    if kind == "double":
        layer = network.double_blocks[index]
        parts = [
            (layer.txt_mod, layer.txt_attn.qkv, layer.txt_attn.norm),
            (layer.img_mod, layer.img_attn.qkv, layer.img_attn.norm),
        ]
    else:
        layer = network.single_blocks[index]
        parts = [(layer.modulation, layer.linear1, layer.norm)]
    width, out = network.hidden_size, []
    for stream, (modulation, qkv, norm) in zip(seen["streams"], parts, strict=True):
        vec = seen["vec"]
        shift, scale = affine(modulation.lin, vec * torch.sigmoid(vec))[:, None, : 2 * width].chunk(2, dim=-1)
        centred = stream - stream.mean(dim=-1, keepdim=True)
        normed = centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-6)
        q = affine(qkv, normed * (1 + scale) + shift, width).unflatten(-1, (HEADS, HEAD_SIZE))  # (B, L, heads, d)
        q = q / torch.sqrt((q**2).mean(dim=-1, keepdim=True)) * norm.query_norm.weight.double()
        out.append(q.transpose(1, 2))
    return torch.cat(out, dim=2)


def oracle_temperatures(weights, block, q) -> np.ndarray:
    """f of Eq. 4, (B, L) float64."""
    kind, index = block
    w = {part: weights[f"{kind}_blocks.{index}.{part}"].double().numpy() for part in
         ("mlp_in.weight", "mlp_in.bias", "mlp_out.weight", "mlp_out.bias")}  # fmt: skip
    tokens = q.transpose(1, 2).flatten(2).numpy()  # heads side by side
    out = np.zeros(tokens.shape[:2])
    for place in np.ndindex(out.shape):
        inner = w["mlp_in.weight"] @ tokens[place] + w["mlp_in.bias"]
        inner = inner / (1 + np.exp(-inner))
        out[place] = softplus_of(float((w["mlp_out.weight"] @ inner + w["mlp_out.bias"])[0]), CONFIG.t_min)
    return out


def rotated(rows: torch.Tensor, pe: torch.Tensor) -> torch.Tensor:
    """RoPE in float64: pairs of numbers times the rotations (B, 1, L, d / 2, 2, 2)."""
    return (pe.double() @ rows.double().unflatten(-1, (-1, 2))[..., None]).squeeze(-1).flatten(-2)


def test_an_offset_of_zero_is_a_temperature_of_exactly_one():
    for dtype, size in itertools.product((torch.float32, torch.float64), (1, 3, 8, 1001)):
        for zero in (0.0, -0.0):
            assert torch.equal(temperature(torch.full((size,), zero, dtype=dtype), 0.01), torch.ones(size, dtype=dtype))
            assert torch.equal(temperature(torch.full((size,), zero, dtype=dtype), 0.3), torch.ones(size, dtype=dtype))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("t_min", [0.01, 0.3, 0.9])
def test_temperatures_follow_equation_4(dtype, tolerance, t_min):
    offsets = torch.tensor(sorted([*torch.linspace(-60, 60, 4001).tolist(), 39.99, 40.0, 40.01, 500.0]), dtype=dtype)
    expected = [softplus_of(offset, t_min) for offset in offsets.tolist()]
    f = temperature(offsets, t_min)
    np.testing.assert_allclose(f.double().numpy(), expected, rtol=tolerance, atol=tolerance)
    assert (f.diff() >= 0).all()
    assert temperature(torch.tensor([1e4, -1e4]), t_min).isfinite().all()


def test_a_fresh_generator_can_learn():
    """The slope of softplus at the neutral point, e^x / (1 + e^x), and no slope that is none or no number."""
    with torch.inference_mode(False), torch.enable_grad():
        offset = torch.tensor([0.0, -3.0, 3.0, 39.0, 41.0, 200.0, -200.0], requires_grad=True)
        temperature(offset, 0.01).sum().backward()
        neutral = math.log(math.exp(0.99) - 1)
        expected = torch.sigmoid(offset.detach().double() + neutral).float()
        torch.testing.assert_close(offset.grad, expected, atol=1e-6, rtol=1e-5)
        q = torch.randn(1, 2, 3, 4).bfloat16().requires_grad_()
        f = torch.ones(1, 3, requires_grad=True)
        divide(q, f).float().sum().backward()
        assert q.grad is not None and f.grad is not None and f.grad.any()


def test_strength_is_an_exponent():
    f = torch.tensor([0.01, 0.25, 1.0, 4.0])
    assert torch.equal(strengthen(f, 1.0, 0.01), f)
    assert torch.equal(strengthen(f, 0.0, 0.01), torch.ones(4))
    torch.testing.assert_close(strengthen(f, 0.5, 0.01), f.sqrt())
    torch.testing.assert_close(strengthen(f, 2.0, 0.01), torch.tensor([0.01, 0.0625, 1.0, 16.0]))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_division_is_rounded_once_and_by_one_is_nothing(dtype):
    q = torch.randn(2, 24, 37, 16, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(1, 2)
    f = torch.rand(2, 24, generator=torch.Generator().manual_seed(1)) + 0.5
    divided = divide(q, f)
    exact = (q.double() / f.double()[:, None, :, None]).to(dtype)
    torch.testing.assert_close(
        divided, exact, atol=0, rtol=2**-20 if dtype in (torch.float32, torch.float64) else 2**-7
    )
    assert divided.dtype == dtype and divided.stride() == q.stride()
    if dtype in (torch.bfloat16, torch.float16):  # twice rounded would differ in many places
        assert (divided == (q.float() / f[:, None, :, None]).to(dtype)).all()
    assert torch.equal(divide(q, torch.ones(2, 24)), q)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_block_has_its_temperatures_and_its_explicit_softmax(flux, clip, dam, strength):
    """Through the sampler: f of Eq. 4 and the softmax of Eq. 5 in every block, text and image tokens alike."""
    model = apply_dam(flux, dam, strength)
    blocks = Blocks(model)
    run(model, cond(clip, "a duel", LAYOUT), cond(clip, "a much longer prompt with nothing in it"))
    assert sorted(call["rows"] for call in blocks.calls) == [[0]] * STEPS + [[1]] * STEPS
    seen_temperatures = []
    for call, block in itertools.product(blocks.calls, BLOCKS):
        seen = call[block]
        q = oracle_queries(flux.model.diffusion_model, block, seen)
        f = oracle_temperatures(trained(CONFIG), block, q) ** strength
        np.testing.assert_allclose(seen["f"].numpy(), f, rtol=1e-4)
        np.testing.assert_allclose(
            seen["q"].double().numpy(), q / torch.from_numpy(f)[:, None, :, None], atol=1e-4, rtol=1e-4
        )
        keys, values = rotated(seen["k"], seen["pe"]), seen["v"].double()
        logits = rotated(q, seen["pe"]) @ keys.transpose(-1, -2)
        logits = logits / (math.sqrt(HEAD_SIZE) * torch.from_numpy(f)[:, None, :, None])
        weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
        weights = weights / weights.sum(dim=-1, keepdim=True)
        expected = (weights @ values).transpose(1, 2).flatten(2)
        np.testing.assert_allclose(seen["out"].double().numpy(), expected.numpy(), atol=2e-4, rtol=2e-4)
        seen_temperatures.append(f)
    spread = np.concatenate([f.ravel() for f in seen_temperatures])
    assert spread.min() < 0.9 and spread.max() > 1.1


def test_temperatures_know_block_and_step(flux, clip, dam):
    model = apply_dam(flux, dam, 1.0)
    blocks = Blocks(model)
    run(model, cond(clip, "a duel"), cond(clip, ""), cfg=1.0)
    every = [call[block]["f"] for call in blocks.calls for block in BLOCKS]
    assert all(not torch.allclose(one, other, atol=1e-3) for one, other in itertools.combinations(every, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fresh_dam_is_bit_identical(tiny_models, clip, dtype):
    path = next((tiny_models / "diffusion_models").glob("ensemble_tiny_flux.safetensors"))
    model = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
    model.set_model_compute_dtype(dtype)  # on a CPU the host computes in float32 unless told
    positive, negative = cond(clip, "two old knights", SMALL), cond(clip, "a flower")
    plain = run(model, positive, negative, (9, 11))
    for dam_dtype in DTYPES:
        patched = apply_dam(model, patcher(fresh_dam(CONFIG, 0), dam_dtype), 1.0)
        assert torch.equal(plain, run(patched, positive, negative, (9, 11)))
    assert torch.equal(plain, run(apply_dam(patched, dam_of(patched), 2.0), positive, negative, (9, 11)))
    changed = run(apply_dam(model, patcher(trained(CONFIG)), 1.0), positive, negative, (9, 11))
    assert torch.isfinite(changed).all() and not torch.equal(plain, changed)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_every_precision(tiny_models, clip, dtype, tolerance):
    """Model and DAM each in every precision; temperatures stay in float32, queries keep the model's type."""
    path = next((tiny_models / "diffusion_models").glob("ensemble_tiny_flux.safetensors"))
    for dam_dtype in DTYPES:
        dam = patcher(trained(CONFIG), dam_dtype)
        model = apply_dam(comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype}), dam, 1.0)
        model.set_model_compute_dtype(dtype)
        blocks, kinds = Blocks(model), set()

        def note(q, k, v, pe, attn_mask, extra_options, kinds=kinds):
            kinds.add((q.dtype, extra_options[KEY].temperature.dtype))
            return {}

        model.set_model_patch(note, "attn1_patch")
        assert torch.isfinite(run(model, cond(clip, "a duel", SMALL), cond(clip, ""), (9, 11), cfg=1.0)).all()
        assert kinds == {(dtype, torch.float32)} and dam.model.double_blocks[0].mlp_in.weight.dtype == dam_dtype
        block = ("single", 3)
        seen = blocks.calls[0][block]
        q = oracle_queries(model.model.diffusion_model, block, seen)
        f = oracle_temperatures(dam.model.state_dict(), block, q)
        np.testing.assert_allclose(seen["f"].numpy(), f, rtol=tolerance)


def test_no_strength_and_the_model_given(flux, clip, dam):
    positive, negative = cond(clip, "two old knights"), cond(clip, "")
    before = run(flux, positive, negative)
    assert torch.equal(before, run(apply_dam(flux, dam, 0.0), positive, negative))
    changed = run(apply_dam(flux, dam, 1.0), positive, negative)
    assert not torch.equal(before, changed)
    assert torch.equal(before, run(flux, positive, negative))


def test_batches_mixed_and_split(flux, clip, dam, monkeypatch):
    """Equal prompt lengths (one call) against one call each (low memory); every row has temperatures of its own."""
    model = apply_dam(flux, dam, 1.0)
    positive = cond(clip, "two tall dancers", SMALL) + cond(clip, "four red dragons", SMALL)
    negative = cond(clip, "one old wizard", SMALL)
    blocks = Blocks(model)
    together = run(model, positive, negative, (8, 8), batch=2)
    assert [len(call["rows"]) for call in blocks.calls] == [3] * STEPS
    f = blocks.calls[0]["single", 5]["f"]
    assert f.shape[0] == 6 and not torch.allclose(f[0], f[2], atol=1e-3) and not torch.allclose(f[0], f[1], atol=1e-3)
    monkeypatch.setattr(flux.model, "memory_usage_factor", 1e12)  # the host then believes that nothing fits together
    split = run(model, positive, negative, (8, 8), batch=2)
    assert [len(call["rows"]) for call in blocks.calls[STEPS:]] == [1] * 3 * STEPS
    torch.testing.assert_close(together, split, atol=1e-4, rtol=1e-4)


def test_areas_and_schedules(flux, clip, dam):
    timed = {"area": (2, 1, 0, 0), "strength": 1.0, "start_percent": 0.0, "end_percent": 0.4}
    local = node_helpers.conditioning_set_values(cond(clip, "one old wizard"), timed)
    model = apply_dam(flux, dam, 1.0)
    blocks = Blocks(model)
    assert torch.isfinite(run(model, local + cond(clip, "two tall dancers", LAYOUT), cond(clip, ""))).all()
    assert {call["single", 0]["f"].shape[1] for call in blocks.calls} >= {64 + 36 + 15 + 64 + 5}


def test_low_memory_loading(flux, clip, dam):
    """Weights of model and DAM left on the offload device and cast layer by layer give the same picture."""
    positive, negative = cond(clip, "a duel", LAYOUT), cond(clip, "")
    model = apply_dam(flux, dam, 1.0)
    whole = run(model, positive, negative)
    lowvram, seen = model.clone(), []

    def unload_partly(patcher):
        for part in (patcher, *patcher.get_additional_models_with_key(KEY)):
            part.detach()
            part.load(part.load_device, lowvram_model_memory=1)

    def note(args):
        seen.append((lowvram.model.model_lowvram, dam.model.model_lowvram))
        return args

    lowvram.set_model_post_input_patch(note)
    lowvram.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, unload_partly)
    assert torch.equal(whole, run(lowvram, positive, negative))
    assert seen == [(True, True)] * 2 * STEPS


def test_the_host_loads_the_generators_with_the_model_and_frees_them(flux, clip):
    dam = patcher(trained(CONFIG))
    comfy.model_management.unload_all_models()
    run(apply_dam(flux, dam, 1.0), cond(clip, "a duel"), cond(clip, ""))
    loaded = comfy.model_management.loaded_models()
    assert any(model.is_clone(dam) for model in loaded) and any(model.is_clone(flux) for model in loaded)
    comfy.model_management.unload_all_models()
    assert dam.loaded_size() == 0


def make_dsm() -> CoreModelPatcher:
    config = DSMConfig(384, 16, 2, 8, 3, (1,), 4, 256, 3, 6)
    generator = torch.Generator().manual_seed(5)
    adapter = DSMAdapter(config, torch.float32, "cpu", comfy.ops.manual_cast)
    weights = fresh_dsm(config, 0)
    adapter.load_state_dict({n: v + 0.3 * torch.randn(v.shape, generator=generator) for n, v in weights.items()})
    cpu = torch.device("cpu")
    return CoreModelPatcher(adapter, load_device=cpu, offload_device=cpu)


def test_positions_and_dsm_in_any_order(flux, clip, dam):
    """EURoPE for the pose map, condition positions for the cast, DSM and DAM on one model."""
    dsm, positive = make_dsm(), cond(clip, "a duel", SMALL)
    trunk = torch.randn(1, positive[0][0].shape[1], 16, generator=torch.Generator().manual_seed(2))
    positive = node_helpers.conditioning_set_values(positive, {DSM_KEY: trunk})
    patches: dict[str, Any] = {
        "dam": lambda model: apply_dam(model, dam, 1.0),
        "dsm": lambda model: apply_dsm(model, dsm),
        "europe": lambda model: apply_europe(model, SMALL, EUROPE),
        "ids": lambda model: apply_condition_positions(model, SMALL, [(1,), ()], CCPA, EQUATION_3),
    }

    def made(names) -> torch.Tensor:
        model = flux
        for name in names:
            model = patches[name](model)
        return run(model, positive, cond(clip, ""), (6, 8), cfg=1.0)

    orders = list(itertools.permutations(patches))[::4]
    pictures = [made(order) for order in orders]
    assert all(torch.equal(pictures[0], other) for other in pictures[1:])
    for missing in ("dam", "dsm", "ids"):
        assert not torch.equal(pictures[0], made([name for name in patches if name != missing]))


@pytest.mark.parametrize("before", [True, False])
def test_patches_that_change_queries_do_not_change_temperatures(flux, clip, dam, before):
    """Another pack's patch, applied first or last, is there once a block and sees queries that are divided already."""
    model, calls = flux.clone(), []

    def twice(q, k, v, pe, attn_mask, extra_options):
        calls.append(extra_options[KEY].temperature.clone())
        return {"q": 2 * q}

    if before:
        model.set_model_patch(twice, "attn1_patch")
        model = apply_dam(model, dam, 1.0)
    else:
        model = apply_dam(model, dam, 1.0)
        model.set_model_patch(twice, "attn1_patch")
    run(model, cond(clip, "a duel"), cond(clip, ""), cfg=1.0)
    assert len(calls) == len(BLOCKS) * STEPS
    alone = apply_dam(flux, dam, 1.0)
    blocks = Blocks(alone)
    run(alone, cond(clip, "a duel"), cond(clip, ""), cfg=1.0)
    assert torch.equal(calls[0].double(), blocks.calls[0]["double", 0]["f"])  # later ones follow another stream


def test_applied_twice_the_last_strength_holds(flux, clip, dam):
    positive, negative = cond(clip, "a duel"), cond(clip, "")
    twice = apply_dam(apply_dam(flux, dam, 0.3), dam.clone(), 1.0)
    assert torch.equal(run(twice, positive, negative), run(apply_dam(flux, dam, 1.0), positive, negative))
    with pytest.raises(ValueError, match="already carries another DAM; use one for a model"):
        apply_dam(twice, patcher(trained(CONFIG)), 1.0)


def test_state_after_an_interrupt(flux, clip, dam):
    positive, negative = cond(clip, "a duel", LAYOUT), cond(clip, "")
    model = apply_dam(flux, dam, 1.0)
    expected = run(model, positive, negative)
    interrupted = model.clone()

    def stop(args, extra):
        raise comfy.model_management.InterruptProcessingException()

    interrupted.set_model_patch_replace(stop, "dit", "single_block", 2)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(interrupted, positive, negative)
    (wrapper,) = model.get_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, KEY)
    assert set(vars(wrapper.__self__)) == {"generators", "strength"}
    assert not model.model_options["transformer_options"].get("patches")
    assert torch.equal(expected, run(model, positive, negative))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["double", "single"])
def test_a_block_takes_no_more_memory(kind, dtype):
    """At FLUX's own width and tokens; the queries that were divided must not live on into the block's MLP."""
    plain = bench_dam.peak_memory(kind, False, dtype)
    assert plain > (400 if kind == "double" else 600) * 2**20
    assert plain <= bench_dam.peak_memory(kind, True, dtype) < 1.001 * plain
