"""Appearance Infusion and Infusion Maps as nodes, with the host's own models and sampler."""

from __future__ import annotations

import comfy.sample
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from comfyui_ensemble.attention_patches.anystory import apply_anystory
from comfyui_ensemble.attention_patches.anystory_call import Settings as AnyStorySettings
from comfyui_ensemble.attention_patches.appearance_infusion import CONSTANT
from comfyui_ensemble.attention_patches.infusion_maps import InfusionRecording, layers
from comfyui_ensemble.attention_patches.recording import Recording
from comfyui_ensemble.models_info.registry import TINY_SDXL_VAE
from comfyui_ensemble.nodes.appearance import EnsembleAppearanceCache
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.infusion import EnsembleAppearanceInfusion, EnsembleInfusionMaps

SETTINGS = {
    "tau_start": 0.3,
    "tau_end": 0.0,
    "delta_start": 0.0,
    "delta_end": 3.0,
    "schedule": "linear",
    "top_k": 1,
}


@pytest.fixture(scope="module")
def prompts(clip):
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("two tall dancers", "one old wizard")]


@pytest.fixture(scope="module")
def red(sdxl, sdxl_vae, prompts):
    with torch.inference_mode():
        image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        return EnsembleAppearanceCache.execute(sdxl, prompts[0], sdxl_vae, image, 1).args[0]


def infusion(model, *appearances, masks=None, **changed):
    """(model, inspection) of the node; `masks` by number."""
    connected = {f"appearance{number}": appearance for number, appearance in enumerate(appearances)}
    masks = None if masks is None else {f"mask{number}": mask for number, mask in masks.items()}
    return EnsembleAppearanceInfusion.execute(model, connected, masks=masks, **{**SETTINGS, **changed}).args


def sampled(model, prompts, batch=1, seed=7) -> dict[str, torch.Tensor]:
    latent = torch.zeros(batch, 4, 8, 12)
    noise = comfy.sample.prepare_noise(latent, seed)
    positive, negative = prompts
    out = comfy.sample.sample(
        model, noise, 3, 4.0, "euler", "normal", positive, negative, latent, seed=seed, disable_pbar=True
    )
    return {"samples": out}


def maps(*args, **options):
    return EnsembleInfusionMaps.execute(*args, **options).args


def message(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def left() -> torch.Tensor:
    mask = torch.zeros(1, 16, 16)
    mask[..., :8] = 1
    return mask


def test_an_appearance_changes_the_picture_and_leaves_the_model_alone(sdxl, red, prompts):
    plain = sampled(sdxl, prompts)["samples"]
    model, inspection = infusion(sdxl, red)
    assert isinstance(inspection, InfusionRecording)
    assert not torch.equal(sampled(model, prompts)["samples"], plain)
    assert torch.equal(sampled(sdxl, prompts)["samples"], plain)


@pytest.mark.parametrize("changed", [{"delta_end": 0.0}, {"delta_start": 2.0, "delta_end": 0.0, "schedule": CONSTANT}])
def test_without_strength_it_is_the_model_itself(sdxl, red, changed):
    assert infusion(sdxl, red, **changed)[0] is sdxl


def test_masks_belong_to_the_appearance_of_their_number(sdxl, red, prompts):
    model, inspection = infusion(sdxl, red, red, masks={1: left()}, tau_start=-1.0, tau_end=-1.0, delta_start=1.0)
    out = sampled(model, prompts)["samples"]
    record = inspection.find(out)[0]
    fine = next(numbers for layer, numbers in record.numbers.items() if layer.factor == 2)
    assert fine[..., 3:].eq(1).all()  # the second has no place there
    alone, inspection = infusion(sdxl, red, masks={0: left()}, tau_start=-1.0, tau_end=-1.0, delta_start=1.0)
    record = inspection.find(sampled(alone, prompts)["samples"])[0]
    fine = next(numbers for layer, numbers in record.numbers.items() if layer.factor == 2)
    assert fine[..., :3].eq(1).all() and not fine[..., 3:].any()


def test_anystory_routes_the_appearances(sdxl, red, prompts, make_subjects):
    """The real routers: an appearance goes nowhere but to the pixels of the subject of its number."""
    story, routing = apply_anystory(sdxl, make_subjects(2), AnyStorySettings(1.0, 0.0))
    model, inspection = infusion(story, red, red, routing=routing, tau_start=-1.0, tau_end=-1.0, delta_start=1.0)
    out = sampled(model, prompts)["samples"]
    records, routed = inspection.find(out), routing.recording.find(out)
    assert len(records) == len(routed) == 3
    cross = {name: index for index, name in enumerate(routing.layers)}
    for record, step in zip(records, routed, strict=True):
        found = layers([record])
        for layer in found[1:]:  # each self-attention follows the cross-attention of the layer before it
            before = routing.layers[cross[layer.name] - 1]
            owners = step.maps[cross[before]]  # (1, 1, h, w), of the positive prompt
            numbers = record.numbers[layer][-1:, None]  # the host's last row
            if owners.shape != numbers.shape:  # the grid changes here
                continue
            assert torch.equal(numbers, torch.where(owners == 2, 0, owners + 1))
    assert {0, 1, 2} == set(torch.cat([n.flatten() for r in records for n in r.numbers.values()]).tolist())
    assert not torch.equal(out, sampled(story, prompts)["samples"])


def test_routing_needs_anystory_on_the_model_and_its_subjects(sdxl, red, make_subjects):
    story, routing = apply_anystory(sdxl, make_subjects(1), AnyStorySettings(1.0, 0.0))
    assert "routing: the model does not carry AnyStory" in message(lambda: infusion(sdxl, red, routing=routing))
    assert "appearances: there are 2, AnyStory routes 1 subjects" in message(
        lambda: infusion(story, red, red, routing=routing)
    )


def test_maps_of_a_batch(sdxl, sdxl_vae, red, prompts):
    model, inspection = infusion(sdxl, red, red, masks={0: left()})
    samples = sampled(model, prompts, batch=2)
    image, table = maps(inspection, samples)
    assert image.ndim == 4 and image.shape[0] == 2 and image.shape[-1] == 3
    assert ((image >= 0) & (image <= 1)).all()
    lines = table.splitlines()
    assert lines[2].startswith("| 1 | middle_0_0 | ") and lines[9].startswith("| 8 | output_5_0 | ")
    assert len(lines) == 13 + 2 and lines[-1].startswith("| 2 | 100 % | ")  # the first of three steps infuses nothing
    over, _ = maps(inspection, samples, sdxl_vae.decode(samples["samples"]), 8, 2)
    assert over.shape == image.shape and not torch.equal(over, image)


def test_each_run_has_its_own_maps(sdxl, red, prompts):
    model, inspection = infusion(sdxl, red)
    runs = [sampled(model, prompts, seed=seed) for seed in (1, 2)]
    shown = [maps(inspection, samples) for samples in runs]
    assert shown[0][1] != shown[1][1]
    assert maps(inspection, runs[0])[1] == shown[0][1]


def test_bad_maps(sdxl, red, prompts):
    model, inspection = infusion(sdxl, red)
    samples = sampled(model, prompts)
    assert "samples: nothing was infused when they were made" in message(lambda: maps(InfusionRecording(), samples))
    assert "inspection: it comes from another kind of node" in message(lambda: maps(Recording(), samples))
    assert "layer: there is no 9, the run infused in 8; choose 1 to 8, or 0 for all" in message(
        lambda: maps(inspection, samples, layer=9)
    )
    assert "step: there is no 3" in message(lambda: maps(inspection, samples, step=3))
    assert "image: it holds 2 pictures, the run made 1" in message(
        lambda: maps(inspection, samples, torch.zeros(2, 64, 96, 3))
    )
    larger = {"samples": torch.zeros(1, 4, 16, 16)}
    assert "samples: they are 16 x 16, the run made 12 x 8" in message(lambda: maps(inspection, larger))


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"tau_start": 1.2}, "tau_start: 1.2 is no cosine, which lie between -1 and 1; set it between 0 and 1."),
        ({"tau_end": float("nan")}, "tau_end: nan is no cosine, which lie between -1 and 1; set it between 0 and 1."),
        ({"delta_end": -1.0}, "delta_end: -1 is out of range; set it between 0 and 100."),
        ({"delta_start": float("inf")}, "delta_start: inf is out of range; set it between 0 and 100."),
        (
            {"start_percent": 0.6, "end_percent": 0.5},
            "end_percent: the infusion would go from 0.6 to 0.5 of the run; let it end after its start.",
        ),
        ({"top_k": 0}, "top_k: 0 places cannot be looked at; choose a number from 1 to 64."),
    ],
)
def test_bad_settings(sdxl, red, changed, sentence):
    assert message(lambda: infusion(sdxl, red, **changed)) == f"Appearance Infusion, {sentence}"
    assert EnsembleAppearanceInfusion.validate_inputs(**changed) == f"Appearance Infusion, {sentence}"
    assert EnsembleAppearanceInfusion.validate_inputs() is True


def test_bad_masks(sdxl, red):
    assert "masks: mask 1 is empty" in message(lambda: infusion(sdxl, red, masks={0: torch.zeros(1, 64, 64)}))
    assert "masks: mask 2 has no appearance of that number" in message(lambda: infusion(sdxl, red, masks={1: left()}))
    assert "masks: mask 1 holds 2 masks" in message(lambda: infusion(sdxl, red, masks={0: left().repeat(2, 1, 1)}))
    infusion(sdxl, red, masks={0: torch.ones(64, 64)})


def test_other_models(sdxl, flux, red):
    assert message(lambda: infusion(flux, red)) == (
        "Appearance Infusion, model: it is a Flux model; connect an SDXL model."
    )
    config = comfy.supported_models.SD15(
        {
            "image_size": 32,
            "in_channels": 4,
            "model_channels": 32,
            "out_channels": 4,
            "num_res_blocks": [1],
            "channel_mult": [1],
            "transformer_depth": [1],
            "transformer_depth_output": [1, 1],
            "transformer_depth_middle": 1,
            "context_dim": 32,
            "num_heads": 1,
            "use_spatial_transformer": True,
        }
    )
    cpu = torch.device("cpu")
    other = ModelPatcher(config.get_model({}), cpu, cpu)
    assert message(lambda: infusion(other, red)) == (
        "Appearance Infusion, appearances: appearance 1 was cached with another model, a SDXL of other layers; cache it with"
        " the model you sample with."
    )


def workflow(seed: int, text: str, mask: bool) -> dict:
    """An appearance, infused and shown, as a workflow in API form."""

    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    masks = {"masks.mask0": ["mask", 0]} if mask else {}
    return {
        "model": node("EnsembleTinySDXL"),
        "clip": node("EnsembleMiniLMTextEncoder"),
        "vae": node("VAELoader", vae_name=TINY_SDXL_VAE.name),
        "subject": node("CLIPTextEncode", clip=["clip", 0], text="a woman in red"),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text=text),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "picture": node("EmptyImage", width=96, height=64, batch_size=1, color=0xCC3344),
        "mask": node("SolidMask", value=1.0, width=32, height=32),
        "cache": node(
            "EnsembleAppearanceCache",
            model=["model", 0],
            conditioning=["subject", 0],
            vae=["vae", 0],
            image=["picture", 0],
            timesteps=2,
        ),
        "infusion": node(
            "EnsembleAppearanceInfusion",
            **{"model": ["model", 0], "appearances.appearance0": ["cache", 0], **masks, **SETTINGS},
        ),
        "latent": node("EmptyLatentImage", width=64, height=96, batch_size=2),
        "sampler": node(
            "KSampler",
            model=["infusion", 0],
            seed=seed,
            steps=2,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "maps": node("EnsembleInfusionMaps", inspection=["infusion", 1], samples=["sampler", 0], image=["decoded", 0]),
        "shown": node("PreviewImage", images=["maps", 0]),
    }


def test_in_the_real_server_the_cache_serves_every_seed_and_prompt(server):
    def cached(history) -> set[str]:
        return {
            name for kind, said in history["status"]["messages"] if kind == "execution_cached" for name in said["nodes"]
        }

    first = server.run(workflow(1, "a dancer", mask=False))
    assert len(first["outputs"]["shown"]["images"]) == 2 and "cache" not in cached(first)
    assert "MiB: 2 timesteps of" in first["outputs"]["cache"]["text"][0]
    other = server.run(workflow(2, "a wizard", mask=False))
    assert {"cache", "infusion"} <= cached(other) and "sampler" not in cached(other)
    masked = server.run(workflow(2, "a wizard", mask=True))
    assert "cache" in cached(masked) and "infusion" not in cached(masked)
