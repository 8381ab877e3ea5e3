"""A model under training sees what the same model sees in the host's sampler."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

from comfyui_ensemble.attention_patches.anystory import apply_anystory
from comfyui_ensemble.attention_patches.anystory_call import Settings
from comfyui_ensemble.attention_patches.dam import apply_dam
from comfyui_ensemble.attention_patches.dam_generator import DAMConfig, DAMGenerators, fresh_dam
from comfyui_ensemble.attention_patches.dsm import KEY as DSM_KEY
from comfyui_ensemble.attention_patches.dsm import apply_dsm
from comfyui_ensemble.attention_patches.dsm_adapter import DSMAdapter, DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.europe import EUROPE, apply_europe
from comfyui_ensemble.attention_patches.layout import LAYOUT_KEY, Layout, Reference
from comfyui_ensemble.training.call import training_attention
from comfyui_ensemble.training.model import TrainableModel, trainable_network
from devtools.gradients import POOLED, TEXT, TRUNK, random, small_flux, small_sdxl

CPU = torch.device("cpu")
WAYS = [("lora", False), ("lora", True), ("full", False), ("full", True), ("frozen", False)]


@pytest.fixture(scope="module")
def flux():
    """Small, and loaded as the host's nodes load a model."""
    with torch.inference_mode():
        return small_flux()


@pytest.fixture(scope="module")
def unet():
    with torch.inference_mode():
        return small_sdxl()


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def shaken(weights: dict[str, torch.Tensor], spread: float = 0.05) -> dict[str, torch.Tensor]:
    return {name: value + spread * random(len(name), *value.shape) for name, value in weights.items()}


def adapter_of(flux) -> CoreModelPatcher:
    network = flux.model.diffusion_model
    config = DSMConfig(
        text_width=network.params.context_in_dim,
        width=TRUNK,
        heads=2,
        clip_width=32,
        clip_depth=6,
        clip_layers=(1, 3),
        subjects=4,
        model_width=network.hidden_size,
        double_blocks=network.params.depth,
        single_blocks=network.params.depth_single_blocks,
    )
    adapter = DSMAdapter(config, torch.float32, "cpu", comfy.ops.manual_cast)
    adapter.load_state_dict(shaken(fresh_dsm(config, 0)))
    return CoreModelPatcher(adapter, load_device=CPU, offload_device=CPU)


def dam_of(flux) -> CoreModelPatcher:
    network = flux.model.diffusion_model
    params = network.params
    config = DAMConfig(network.hidden_size, 16, params.depth, params.depth_single_blocks)
    generators = DAMGenerators(config, torch.float32, "cpu", comfy.ops.manual_cast)
    generators.load_state_dict(shaken(fresh_dam(config, 0)))
    return CoreModelPatcher(generators, load_device=CPU, offload_device=CPU)


LAYOUT = Layout((Reference("subject", (4, 4), "Ada", "person"), Reference("pose", (8, 8))))


def flux_prompt(seed: int, references: bool = True, trunk: int = 0, tokens: int = 7) -> Any:
    text, pooled = random(seed, 1, tokens, TEXT), random(seed + 1, 1, POOLED)
    options: dict[str, Any] = {"pooled_output": pooled, "guidance": 2.5}
    if references:
        options["reference_latents"] = [random(seed + 2, 1, 16, 8, 8), random(seed + 3, 1, 16, 16, 16)]
        options["reference_latents_method"] = "uxo"
        options[LAYOUT_KEY] = LAYOUT
    if trunk:
        options[DSM_KEY] = random(seed + 4, 1, tokens, trunk)
    return [[text, options]]


def sdxl_prompt(seed: int, tokens: int = 7, text: int = TEXT, pooled: int = POOLED) -> Any:
    return [[random(seed, 1, tokens, text), {"pooled_output": random(seed + 1, 1, pooled), "width": 96, "crop_h": 8}]]


class Once:
    """A sampler that calls the model once, and keeps what it gave."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar):
        self.seen = model_wrap(noise, sigmas[:1].expand(len(noise)), **extra_args)
        return self.seen


def sampled(model: ModelPatcher, x: torch.Tensor, sigma: float, prompt: Any) -> torch.Tensor:
    """What the host's sampler gets from the model, one picture with one prompt at a time."""
    once = Once()
    # The host's own choice of attention is another one on a CPU, and rounds differently.
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = training_attention
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    with torch.inference_mode():
        guider.sample(x, torch.zeros_like(x), once, torch.tensor([sigma, 0.0]))
    return once.seen


def everything_on_flux(model: ModelPatcher, adapter: ModelPatcher, dam: ModelPatcher) -> ModelPatcher:
    return apply_dam(apply_dsm(apply_europe(model, LAYOUT, EUROPE), adapter), dam, 0.8)


@pytest.mark.parametrize("mode, checkpointing", WAYS)
def test_flux_sees_what_the_sampler_sees(flux, mode, checkpointing):
    """Not one number differs, although with gradients the training's own blocks compute it."""
    trained = TrainableModel(flux, mode, rank=4, gradient_checkpointing=checkpointing)
    adapter, dam = adapter_of(flux), dam_of(flux)
    patched = everything_on_flux(trained.patcher, adapter, dam)
    x, sigma = random(0, 2, 16, 16, 16), torch.tensor([0.8, 0.3])
    prompts = [flux_prompt(1, trunk=TRUNK), flux_prompt(10, trunk=TRUNK)]
    denoised = trained.predict(x, sigma, prompts, patched)
    original = everything_on_flux(flux, adapter, dam)
    for row in range(2):
        part = slice(row, row + 1)
        seen = sampled(original, x[part], float(sigma[row]), prompts[row])
        assert torch.equal(trained.predict(x[part], sigma[part], prompts[part], patched), seen)
        torch.testing.assert_close(denoised[part], seen, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "sampling, mode, checkpointing",
    [*(("eps", *way) for way in WAYS), ("v_prediction", "lora", False), ("flow", "full", True)],
)
def test_sdxl_sees_what_the_sampler_sees(unet, sampling, mode, checkpointing):
    model = with_sampling(unet, sampling)
    trained = TrainableModel(model, mode, rank=4, gradient_checkpointing=checkpointing)
    sigma = trained.sigmas(torch.Generator().manual_seed(0), 2)
    x = trained.noised(random(0, 2, 4, 16, 24), random(1, 2, 4, 16, 24), sigma)
    prompts = [sdxl_prompt(1), sdxl_prompt(10)]
    denoised = trained.predict(x, sigma, prompts)
    for row in range(2):
        part = slice(row, row + 1)
        seen = sampled(model, x[part], float(sigma[row]), prompts[row])
        assert torch.equal(trained.predict(x[part], sigma[part], prompts[part]), seen)
        torch.testing.assert_close(denoised[part], seen, atol=2e-5, rtol=1e-4)


def with_sampling(model: ModelPatcher, kind: str) -> ModelPatcher:
    """As the host's own nodes make it."""
    if kind == "flow":
        return ModelSamplingSD3().patch(model, 3.0)[0]
    return ModelSamplingDiscrete().patch(model, kind, False)[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_anystory_sees_what_it_sees_in_the_sampler(sdxl, make_subjects, checkpointing):
    """Its maps are made anew from layer to layer, also where a block is computed for the second time."""
    subjects = make_subjects(2)
    subjects.network.model.requires_grad_(False)
    trained = TrainableModel(sdxl, "full", gradient_checkpointing=checkpointing)
    patched, maps = apply_anystory(trained.patcher, subjects, Settings(eta=0.7, gamma=0.5))
    original, _ = apply_anystory(sdxl, subjects, Settings(eta=0.7, gamma=0.5))
    x, sigma, prompts = random(0, 1, 4, 16, 16), torch.tensor([2.0]), [sdxl_prompt(1, 7, 384, 384)]
    denoised = trained.predict(x, sigma, prompts, patched)
    assert torch.equal(denoised, sampled(original, x, 2.0, prompts[0]))
    denoised.square().mean().backward()
    (recorded,) = maps.recording.find(denoised.detach())
    assert len(recorded.maps) == len(maps.layers)


def test_checkpointed_gradients_through_anystory_are_those_without(sdxl, make_subjects):
    subjects, found = make_subjects(2), []
    subjects.network.model.requires_grad_(False)
    for checkpointing in (False, True):
        trained = TrainableModel(sdxl, "full", gradient_checkpointing=checkpointing)
        patched, _ = apply_anystory(trained.patcher, subjects, Settings(eta=0.7, gamma=0.5))
        out = trained.predict(random(0, 1, 4, 16, 16), torch.tensor([2.0]), [sdxl_prompt(1, 7, 384, 384)], patched)
        out.square().mean().backward()
        found.append({name: value.grad for name, value in trained.network.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_rows_are_apart(flux):
    """Exchanging two samples exchanges their results; another prompt for one leaves the other alone."""
    trained = TrainableModel(flux, "frozen")
    patched = everything_on_flux(trained.patcher, adapter_of(flux), dam_of(flux))
    x, sigma = random(0, 3, 16, 16, 16), torch.tensor([0.8, 0.3, 0.5])
    prompts = [flux_prompt(seed, trunk=TRUNK) for seed in (1, 10, 20)]
    first = trained.predict(x, sigma, prompts, patched)
    again = trained.predict(x.flip(0), sigma.flip(0), prompts[::-1], patched).flip(0)
    torch.testing.assert_close(first, again, atol=1e-5, rtol=1e-4)
    changed = trained.predict(x, sigma, [prompts[0], flux_prompt(30, trunk=TRUNK), prompts[2]], patched)
    assert torch.equal(first[[0, 2]], changed[[0, 2]]) and not torch.allclose(first[1], changed[1], atol=1e-3)


def test_a_sample_without_dsm_may_stand_beside_one_with(flux):
    trained = TrainableModel(flux, "frozen")
    patched = apply_dsm(trained.patcher, adapter_of(flux))
    x, sigma = random(0, 2, 16, 16, 16), torch.tensor([0.8, 0.3])
    with_it, without = flux_prompt(1, trunk=TRUNK), flux_prompt(10)
    denoised = trained.predict(x, sigma, [with_it, without], patched)
    torch.testing.assert_close(denoised[1:], trained.predict(x[1:], sigma[1:], [without]), atol=1e-5, rtol=1e-4)


class Watch:
    """Wrappers of every kind that write down what came by."""

    def __init__(self, model: ModelPatcher) -> None:
        self.calls: list[tuple[str, Any]] = []
        for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL):
            model.add_wrapper_with_key(kind, "watch", partial(self.note, kind))
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", self.diffusion_model)
        for kind in (CallbacksMP.ON_PRE_RUN, CallbacksMP.ON_CLEANUP, CallbacksMP.ON_PREPARE_STATE):
            model.add_callback_with_key(kind, "watch", lambda *_, kind=kind: self.calls.append((kind, None)))

    def note(self, kind, executor, *args, **kwargs):
        self.calls.append((kind, args))
        out = executor(*args, **kwargs)
        self.calls.append((f"after {kind}", out))
        return out

    def diffusion_model(self, executor, x, timesteps, context, y, guidance, references, control, options, **kwargs):
        self.calls.append((WrappersMP.DIFFUSION_MODEL, options))
        return executor(x, timesteps, context, y, guidance, references, control, options, **kwargs)


def test_wrappers_and_callbacks_run_in_the_samplers_order(flux):
    trained = TrainableModel(flux, "lora", rank=2)
    patched = trained.patcher.clone()
    watch = Watch(patched)
    sigma = torch.tensor([0.8, 0.3])
    trained.predict(random(0, 2, 16, 16, 16), sigma, [flux_prompt(1), flux_prompt(10)], patched)
    assert [name for name, _ in watch.calls] == [
        WrappersMP.OUTER_SAMPLE,
        CallbacksMP.ON_PRE_RUN,
        WrappersMP.CALC_COND_BATCH,
        CallbacksMP.ON_PREPARE_STATE,
        WrappersMP.APPLY_MODEL,
        WrappersMP.DIFFUSION_MODEL,
        f"after {WrappersMP.APPLY_MODEL}",
        f"after {WrappersMP.CALC_COND_BATCH}",
        CallbacksMP.ON_CLEANUP,
        f"after {WrappersMP.OUTER_SAMPLE}",
    ]
    seen = dict(watch.calls)
    options = seen[WrappersMP.DIFFUSION_MODEL]
    assert options["cond_or_uncond"] == [0, 0] and len(set(options["uuids"])) == 2
    assert torch.equal(options["sigmas"], sigma)
    assert options["sample_sigmas"].tolist() == pytest.approx([0.8, 0.3, 0.0])
    assert seen[f"after {WrappersMP.APPLY_MODEL}"].requires_grad
    assert not seen[f"after {WrappersMP.OUTER_SAMPLE}"].requires_grad  # a recording must not keep a step's graph
    assert trained.patcher.model.current_patcher is None


@pytest.mark.parametrize("mode", ["lora", "full", "frozen"])
def test_the_model_given_is_left_as_it_is_and_shares_its_memory(flux, mode):
    before = {name: value.clone() for name, value in flux.model.state_dict().items()}
    kinds = [type(module) for module in flux.model.modules()]
    trained = TrainableModel(flux, mode, rank=2, gradient_checkpointing=True)
    out = trained.predict(random(0, 1, 16, 16, 16), torch.tensor([0.5]), [flux_prompt(1)])
    if mode != "frozen":
        out.mean().backward()
        with torch.no_grad():
            for module in trained.modules().values():
                for value in module.parameters():
                    value += 1
    assert [type(module) for module in flux.model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in flux.model.state_dict().items())
    assert not [value for value in flux.model.parameters() if value.requires_grad or value.grad is not None]
    shared = trained.network.img_in.weight.data_ptr() == flux.model.diffusion_model.img_in.weight.data_ptr()
    assert shared == (mode != "full")


def test_modules_by_mode(flux):
    lora, full, frozen = (TrainableModel(flux, mode, rank=2) for mode in ("lora", "full", "frozen"))
    assert list(lora.modules()) == ["lora"] and list(full.modules()) == ["model"] and not frozen.modules()
    asking = [value for value in full.network.parameters() if value.requires_grad]
    assert len(asking) == len(list(full.network.parameters())) and {v.dtype for v in asking} == {torch.float32}
    assert full.lora_state() == {} and len(lora.lora_state()) == 3 * len(list(lora.modules()["lora"].children()))


def test_identity_is_that_of_the_weights_training_started_from(flux, unet):
    names = {mode: TrainableModel(flux, mode, rank=2) for mode in ("lora", "full", "frozen")}
    assert len({trained.identity() for trained in names.values()}) == 1
    full = names["full"]
    with torch.no_grad():
        full.network.img_in.bias += 1
    assert full.identity() == names["lora"].identity()
    assert TrainableModel(full.patcher, "frozen").identity() != full.identity()
    assert TrainableModel(unet, "frozen").identity() != full.identity()


def test_the_host_samples_with_the_present_values(flux):
    """The patcher under training is a MODEL like any other, for pictures on the way."""
    trained = TrainableModel(flux, "lora", rank=2, gradient_checkpointing=True)
    x, prompt = random(0, 1, 16, 16, 16), flux_prompt(1)
    before = sampled(trained.patcher, x, 0.5, prompt)
    assert torch.equal(before, sampled(flux, x, 0.5, prompt))
    with torch.no_grad():
        for value in trained.modules()["lora"].parameters():
            value.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    after = sampled(trained.patcher, x, 0.5, prompt)
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.equal(after, trained.predict(x, torch.tensor([0.5]), [prompt]))
    assert torch.equal(before, sampled(flux, x, 0.5, prompt))


@pytest.mark.parametrize("fixture", ["flux", "unet"])
def test_the_full_state_is_a_checkpoint(fixture, request):
    base = request.getfixturevalue(fixture)
    trained = TrainableModel(base, "full")
    state = trained.full_state()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert state.keys() == base.model.diffusion_model.state_dict().keys()
    if fixture == "flux":
        with torch.no_grad():
            for value in trained.network.parameters():
                value += 0.01
        loaded = comfy.sd.load_diffusion_model_state_dict(trained.full_state())
        assert loaded is not None
        x, prompt = random(0, 1, 16, 16, 16), flux_prompt(1)
        assert torch.equal(sampled(loaded, x, 0.5, prompt), sampled(trained.patcher, x, 0.5, prompt))


def test_the_network_a_hook_calls_is_the_one_that_is_trained(flux):
    original = adapter_of(flux)
    before = {name: value.clone() for name, value in original.model.state_dict().items()}
    trained, adapter = TrainableModel(flux, "frozen", gradient_checkpointing=True), trainable_network(original)
    assert adapter.model is not original.model and {v.dtype for v in adapter.model.parameters()} == {torch.float32}
    patched = apply_dsm(trained.patcher, adapter)
    x, sigma, prompts = random(0, 1, 16, 16, 16), torch.tensor([0.5]), [flux_prompt(1, trunk=TRUNK)]
    with torch.autocast("cpu", torch.bfloat16):
        out = trained.predict(x, sigma, prompts, patched)
    out.square().mean().backward()
    heads = [*adapter.model.double_heads, *adapter.model.single_heads]
    assert all(head.weight.grad is not None and head.weight.grad.any() for head in heads)
    with torch.no_grad():
        for head in heads:
            head.weight += 0.1
    assert not torch.equal(out, trained.predict(x, sigma, prompts, patched))
    assert all(torch.equal(value, before[name]) for name, value in original.model.state_dict().items())
    assert not [value for value in original.model.parameters() if value.grad is not None]


def test_a_network_held_in_half_precision_is_trained_in_float32(flux):
    original = dam_of(flux)
    original.model.to(torch.bfloat16)
    network = trainable_network(original).model
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert {value.dtype for value in original.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_hosts_flag_is_put_back(flux, checkpointing):
    trained = TrainableModel(flux, "lora", rank=2, gradient_checkpointing=checkpointing)
    x, sigma = random(0, 1, 16, 16, 16), torch.tensor([0.5])
    out = trained.predict(x, sigma, [flux_prompt(1)])
    assert not comfy.model_management.in_training
    out.mean().backward()
    assert not comfy.model_management.in_training
    with pytest.raises(ValueError, match="a ControlNet"):
        trained.predict(x, sigma, [[[flux_prompt(1)[0][0], {"control": object()}]]])
    assert not comfy.model_management.in_training


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_interrupt_leaves_nothing_behind(flux, checkpointing):
    trained = TrainableModel(flux, "lora", rank=2, gradient_checkpointing=checkpointing)
    x, sigma, prompts = random(0, 1, 16, 16, 16), torch.tensor([0.5]), [flux_prompt(1)]
    before = trained.predict(x, sigma, prompts)
    patched = trained.patcher.clone()
    calls = []

    def stop(q, k, v, pe, attn_mask, extra_options):
        calls.append(extra_options["block_index"])
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
        return {}

    patched.set_model_patch(stop, "attn1_patch")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        trained.predict(x, sigma, prompts, patched)
    assert not comfy.model_management.in_training and trained.patcher.model.current_patcher is None
    assert torch.equal(trained.predict(x, sigma, prompts), before)


def test_the_host_cannot_send_the_model_away_in_the_middle_of_a_step(flux):
    trained, adapter = TrainableModel(flux, "lora", rank=2), trainable_network(adapter_of(flux))
    patched = apply_dsm(trained.patcher, adapter)
    x, sigma, prompts = random(0, 1, 16, 16, 16), torch.tensor([0.5]), [flux_prompt(1, trunk=TRUNK)]
    for _ in range(2):
        trained.predict(x, sigma, prompts, patched)
        held = [each.model.model for each in comfy.model_management.current_loaded_models if each.model is not None]
        assert not [model for model in held if model is trained.patcher.model or model is adapter.model]
        sampled(patched, x, 0.5, prompts[0])  # a sample picture: the host's own business


@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_a_step_outlives_it(flux, checkpointing, backwards):
    trained = TrainableModel(flux, "full", gradient_checkpointing=checkpointing)
    patched = everything_on_flux(trained.patcher, trainable_network(adapter_of(flux)), trainable_network(dam_of(flux)))
    x, sigma, prompts = random(0, 1, 16, 16, 16), torch.tensor([0.5]), [flux_prompt(1, trunk=TRUNK)]
    alive = []
    for _ in range(4):
        loss = trained.predict(x, sigma, prompts, patched).mean()
        if backwards:
            loss.backward()
        del loss
        gc.collect()
        alive.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
    assert alive[1] == alive[-1]


def test_a_model_in_eight_bits(flux):
    """The trained model computes what the host's does, and the LoRA beside it is float32 and has gradients."""
    weights = TrainableModel(flux, "full").full_state()
    eight = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float8_e4m3fn})
    assert eight is not None
    trained = TrainableModel(eight, "lora", rank=2, gradient_checkpointing=True)
    assert trained.network.double_blocks[0].img_attn.qkv.weight.dtype == torch.float8_e4m3fn
    x, prompt = random(0, 1, 16, 16, 16), flux_prompt(1)
    denoised = trained.predict(x, torch.tensor([0.5]), [prompt])
    assert torch.equal(denoised, sampled(eight, x, 0.5, prompt))
    denoised.square().mean().backward()
    loras: Any = trained.modules()["lora"].children()
    for lora in loras:
        assert lora.up.grad is not None and lora.up.grad.any() and lora.up.grad.dtype == torch.float32
    full = TrainableModel(eight, "full")
    assert {value.dtype for value in full.network.parameters()} == {torch.float32}


def test_what_cannot_be_in_one_call_is_said(flux):
    trained = TrainableModel(flux, "frozen")
    x, sigma = random(0, 2, 16, 16, 16), torch.tensor([0.8, 0.3])
    with pytest.raises(ValueError, match="group them first"):
        trained.predict(x, sigma, [flux_prompt(1), flux_prompt(2, tokens=9)])
    with pytest.raises(ValueError, match="group them first"):
        trained.predict(x, sigma, [flux_prompt(1), flux_prompt(2, references=False)])
    with pytest.raises(ValueError, match="of 2 entries"):
        trained.predict(x, sigma, [flux_prompt(1) + flux_prompt(2), flux_prompt(3)])
    with pytest.raises(ValueError, match="3 conditionings for 2 samples"):
        trained.predict(x, sigma, [flux_prompt(1), flux_prompt(2), flux_prompt(3)])
    with pytest.raises(ValueError, match="not a clone"):
        trained.predict(x, sigma, [flux_prompt(1), flux_prompt(2)], flux)
    with pytest.raises(ValueError, match="neither FLUX nor SDXL"):
        TrainableModel(adapter_of(flux), "lora")


@pytest.mark.parametrize("fixture", ["flux", "unet"])
def test_noise_is_the_hosts(fixture, request):
    trained = TrainableModel(request.getfixturevalue(fixture), "frozen")
    x0, noise, sigma = random(0, 2, 4, 8, 8), random(1, 2, 4, 8, 8), torch.tensor([0.9, 0.2])
    noised = trained.noised(x0, noise, sigma)
    for row in range(2):
        s = float(sigma[row])
        keeps = 1 - s if fixture == "flux" else 1
        torch.testing.assert_close(noised[row], keeps * x0[row] + s * noise[row])


def test_levels_are_those_the_model_was_made_for(flux, unet):
    trained = TrainableModel(unet, "frozen")
    levels = trained.sigmas(torch.Generator().manual_seed(0), 500)
    table = trained.sampling.sigmas
    assert levels.dtype == torch.float32 and torch.isin(levels, table).all()
    assert levels.median() == pytest.approx(float(table[500]), rel=0.2)
    flow = TrainableModel(flux, "frozen")
    seeds = [torch.Generator().manual_seed(0) for _ in range(3)]
    own, small, large = flow.sigmas(seeds[0], 100), flow.sigmas(seeds[1], 100, 256), flow.sigmas(seeds[2], 100, 4096)
    assert torch.equal(own, large) and (small < large).all()  # FLUX's own shift is that of 4096 tokens


def test_objectives(flux, unet):
    kinds = {"eps": "epsilon", "v_prediction": "velocity", "flow": "flow"}
    for name, kind in kinds.items():
        assert TrainableModel(with_sampling(unet, name), "frozen").objective == kind
    assert TrainableModel(flux, "frozen").objective == "flow"
    with pytest.raises(ValueError, match="predicts neither"):
        TrainableModel(with_sampling(unet, "x0"), "frozen")
