"""Gradients against central finite differences of the host's own forward, and checkpointing with hooks that remember.

The differences are taken without gradients, so by the host's own blocks: they check those of the training as well.
"""

from __future__ import annotations

import math

import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.patcher_extension import WrappersMP

from comfyui_ensemble.attention_patches.call_state import with_call_state
from comfyui_ensemble.training.checkpointing import host_in_training
from comfyui_ensemble.training.flux_blocks import train_flux_blocks
from comfyui_ensemble.training.model import TrainableModel
from devtools.gradients import (
    FLUX,
    TEXT,
    Scene,
    cosine,
    flux_prompt,
    flux_scene,
    host_scene,
    random,
    sdxl_scene,
    small_flux,
)

TOO_SMALL = 1e-6  # of a gradient whose true value is 0, as that of a bias in front of a norm


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    """As a training runs, whose models were loaded as the host's nodes load them."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


SCENES = {
    "FLUX with references": lambda mode, on: flux_scene(mode, on, everything=False),
    "FLUX with references, EURoPE, DSM and DAM": flux_scene,
    "SDXL": sdxl_scene,
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("name", SCENES)
def test_gradients_are_right(name, mode, checkpointing):
    scene = SCENES[name](mode, checkpointing)
    gradients = scene.gradients()
    assert not [name for name, value in gradients.items() if not value.any()]
    for seed in range(2):
        direction = {each: random(seed + 100 * n, *g.shape).double() for n, (each, g) in enumerate(gradients.items())}
        length = math.sqrt(sum(float(value.square().sum()) for value in direction.values()))
        direction = {each: 3 * value / length for each, value in direction.items()}
        said = sum(float((gradients[each] * direction[each]).sum()) for each in direction)
        assert scene.slope(direction) == pytest.approx(said, rel=2e-3, abs=2e-6)
    assert scene.agreement(gradients, list(gradients)) == pytest.approx(1, abs=1e-4)
    looked_at = [each for each, value in gradients.items() if value.norm() > TOO_SMALL]
    for each in looked_at[:: len(looked_at) // 12]:
        assert scene.agreement(gradients, [each]) == pytest.approx(1, abs=2e-3), each


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("name", SCENES)
def test_checkpointing_changes_nothing(name, mode):
    plain, checkpointed = (SCENES[name](mode, on).gradients() for on in (False, True))
    for each, gradient in plain.items():
        torch.testing.assert_close(checkpointed[each], gradient, rtol=1e-10, atol=1e-14)


def test_what_the_hosts_own_checkpointing_gives():
    """If this fails because the host has been mended, docs/gradients.md is to say so."""
    right = flux_scene("full", False, everything=False).gradients()
    with host_in_training():
        wrong = host_scene(small_flux(), 2).gradients()
        with pytest.raises(RuntimeError, match="inplace operation"):
            host_scene(small_flux(), None).gradients()
    assert cosine(wrong["0.txt_in.weight"], right["0.txt_in.weight"]) < 0.9


class Remembering:
    """A patch of FLUX's blocks that adds what it has seen in all earlier blocks, and chance, to a block's queries."""

    def __init__(self, known: bool) -> None:
        self.known = known

    def wrap(self, executor, x, timestep, context, y, guidance, ref_latents, control, options, **kwargs):
        self.seen = torch.zeros((), dtype=x.dtype)
        self.chance = torch.Generator().manual_seed(5)
        for state in (self, self.chance) if self.known else ():
            options = with_call_state(options, state)
        options = {**options, "patches": {"attn1_patch": [self.patch]}}
        return executor(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)

    def patch(self, q, k, v, pe, attn_mask, extra_options):
        shift = self.seen + torch.randn(q.shape[2], 1, generator=self.chance, dtype=q.dtype)
        self.seen = self.seen + k.detach().square().mean()
        return {"q": q + shift}

    def get_state(self):
        return self.seen

    def set_state(self, state):
        self.seen = state


def remembering_scene(checkpointing: bool, known: bool) -> Scene:
    trained = TrainableModel(small_flux(), "full", gradient_checkpointing=checkpointing)
    patched = trained.patcher.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "remembering", Remembering(known).wrap)
    batch = random(0, 1, 16, 8, 8), torch.tensor([0.5])
    return Scene(patched, list(trained.modules().values()), *batch, lambda: [flux_prompt(1)])


def test_hooks_that_remember_find_what_they_found_the_first_time():
    plain = remembering_scene(False, True).gradients()
    known, unknown = (remembering_scene(True, known).gradients() for known in (True, False))
    name = "0.double_blocks.0.img_attn.qkv.weight"
    assert cosine(unknown[name], plain[name]) < 0.999  # it does matter
    for each, gradient in plain.items():
        torch.testing.assert_close(known[each], gradient, rtol=1e-10, atol=1e-14)


def test_what_hooks_remember_is_theirs_after_the_way_back():
    scene = remembering_scene(True, True)
    loss = scene.loss()
    (hook,) = [w.__self__ for w in scene.patcher.wrappers[WrappersMP.DIFFUSION_MODEL]["remembering"]]
    seen, chance = hook.seen.clone(), hook.chance.get_state()
    loss.backward()
    assert torch.equal(hook.seen, seen) and torch.equal(hook.chance.get_state(), chance)


def test_a_foreign_block_replacement_is_called_with_blocks_that_can_be_trained():
    """Also one that was there before ours, around DSM's, with a parameter of its own."""
    gate = torch.nn.Linear(1, 1, bias=False).double()
    calls = []

    def foreign(args, extra):
        calls.append(extra["original_block"])
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * gate.weight}

    scenes = []
    for on in (False, True):
        scene = flux_scene("lora", on)
        scene.patcher.set_model_patch_replace(foreign, "dit", "double_block", 1)
        scene.patcher.set_model_patch_replace(foreign, "dit", "single_block", 0)
        scene.parameters["gate"] = gate.weight
        scenes.append((scene, scene.gradients()))
    assert calls
    (scene, gradients), (_, checkpointed) = scenes
    assert scene.agreement(gradients, ["gate"]) == pytest.approx(1, abs=1e-4)
    assert scene.agreement(gradients, list(gradients)) == pytest.approx(1, abs=1e-4)
    for each, gradient in gradients.items():
        torch.testing.assert_close(checkpointed[each], gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("later", [{}, {"mlp_silu_act": True, "ops_bias": False}, {"yak_mlp": True}])
@pytest.mark.parametrize("method", ["offset", "index_timestep_zero"])
def test_blocks_of_later_flux_models(later, method):
    """Modulation by tokens and other MLPs: not one number differs from the host's, and the gradients are right."""
    config = {
        **FLUX,
        "vec_in_dim": None,
        "guidance_embed": False,
        "global_modulation": method == "index_timestep_zero",
        **later,
    }
    network = Flux(dtype=torch.float64, device="cpu", operations=comfy.ops.disable_weight_init, **config)
    for seed, weight in enumerate(network.parameters()):
        weight.data = 0.1 * random(seed, *weight.shape).double()
    x, text, reference = random(0, 2, 16, 8, 8), random(1, 2, 5, TEXT), random(2, 2, 16, 6, 4)
    arguments = torch.tensor([0.8, 0.3]), text.double(), None, None, [reference.double()]

    def output() -> torch.Tensor:
        with host_in_training():
            return network(x.double(), *arguments, ref_latents_method=method)

    with torch.no_grad():
        hosts = output()
    slopes = []
    for checkpointing in (False, True):
        train_flux_blocks(network, checkpointing)
        network.zero_grad()
        out = output()
        assert torch.equal(out, hosts)
        out.square().mean().backward()
        slopes.append(
            {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
        )
    for name, gradient in slopes[0].items():
        torch.testing.assert_close(slopes[1][name], gradient, rtol=1e-10, atol=1e-14)
    length = math.sqrt(sum(float(gradient.square().sum()) for gradient in slopes[0].values()))
    with torch.no_grad():
        losses = []
        for step in (1e-3, -2e-3):
            for name, gradient in slopes[0].items():
                network.get_parameter(name).add_(step * gradient / length)
            losses.append(float(output().square().mean()))
    assert (losses[0] - losses[1]) / 2e-3 / length == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [flux_scene, sdxl_scene])
def test_gradients_under_autocast_point_the_same_way(make, half):
    """Half-precision sums are coarse; a wrong formula would be far off."""
    right = make("lora", False, dtype=torch.float32).gradients()
    for checkpointing in (False, True):
        scene = make("lora", checkpointing, dtype=torch.float32)
        with torch.autocast("cpu", dtype=half):
            rough = scene.gradients()
        assert {value.dtype for value in rough.values()} == {torch.float32}
        together, expected = (torch.cat([value.flatten() for value in g.values()]) for g in (rough, right))
        assert cosine(together, expected) > 0.98


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_model_held_in_half_precision_needs_no_autocast(half):
    right = flux_scene("lora", False, dtype=torch.float32).gradients()
    scene = flux_scene("lora", True, dtype=torch.float32)
    network = scene.patcher.model.diffusion_model
    network.to(half).dtype = half
    rough = scene.gradients()
    together, expected = (torch.cat([value.flatten() for value in g.values()]) for g in (rough, right))
    assert together.dtype == torch.float32 and cosine(together, expected) > 0.98
