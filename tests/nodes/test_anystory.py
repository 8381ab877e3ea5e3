"""AnyStory, Routing Maps and Segment by Reference as nodes, in the host's sampler."""

from __future__ import annotations

import dataclasses
from typing import Any

import comfy.sample
import numpy as np
import pytest
import torch
from comfy_extras.nodes_sag import SelfAttentionGuidance

from comfyui_ensemble.attention_patches.anystory import KEY
from comfyui_ensemble.attention_patches.anystory_routing import partition, shares
from comfyui_ensemble.attention_patches.anystory_segment import find_subjects, no_prompt
from comfyui_ensemble.nodes import routing_pictures
from comfyui_ensemble.nodes.anystory import (
    OFF_GAMMA,
    EnsembleAnyStory,
    EnsembleReferenceSegment,
    EnsembleRoutingMaps,
)
from comfyui_ensemble.nodes.contact_sheet import LINE, MARGIN, TEXT_LINES, TILE
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.routing_pictures import LAYERS, STEPS, TOGETHER, draw_overlay, mosaic

STEP_COUNT = 3


def prompt(seed: int, width: int = 384, **options):
    generator = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, 7, width, generator=generator), torch.randn(1, 384, generator=generator)
    return [[text, {"pooled_output": pooled, **options}]]


def run(model, size=(16, 12), batch=1, seed=3, positive=None) -> torch.Tensor:
    latent = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(latent, seed)
    conds = (positive or prompt(1), prompt(2))
    return comfy.sample.sample(model, noise, STEP_COUNT, 2.0, "euler", "normal", *conds, latent, seed=seed)


def apply(model, features, eta=1.0, gamma=0.0, start=0.0, end=1.0) -> Any:
    executed: Any = EnsembleAnyStory.execute(model, features, eta, gamma, start, end)
    return executed.result


def show(routing, samples, **options) -> Any:
    executed: Any = EnsembleRoutingMaps.execute(routing, {"samples": samples}, **options)
    return executed.result


@pytest.fixture(scope="module")
def subjects(make_subjects):
    return make_subjects(2)


@pytest.fixture(scope="module")
def sampled(sdxl, subjects):
    """Two pictures made with two subjects, and where these were."""
    with torch.inference_mode():
        model, routing = apply(sdxl, subjects)
        return routing, run(model, batch=2)


def sheet_size(columns: int, rows: int) -> tuple[int, int]:
    return rows * (TILE + TEXT_LINES * LINE + MARGIN) + MARGIN, columns * (TILE + MARGIN) + MARGIN


def test_both_strengths_off_is_the_models_own_picture(sdxl, subjects):
    model, routing = apply(sdxl, subjects, eta=0.0, gamma=OFF_GAMMA)
    out = run(model)
    assert torch.equal(run(sdxl), out)
    assert len(routing.recording.find(out)) == STEP_COUNT
    assert not torch.equal(run(apply(sdxl, subjects, gamma=OFF_GAMMA)[0]), out)
    assert not torch.equal(run(apply(sdxl, subjects, eta=0.0)[0]), out)


def test_gamma_fades_out_before_it_is_switched_off(sdxl, subjects):
    """At the lowest value but one the references weigh nothing, so there is no jump at the end of the widget."""
    near, off = (run(apply(sdxl, subjects, eta=0.0, gamma=gamma)[0]) for gamma in (OFF_GAMMA + 0.1, OFF_GAMMA))
    torch.testing.assert_close(near, off, rtol=1e-4, atol=1e-3)


def test_what_was_given_stays_as_it_is(sdxl, subjects):
    model, routing = apply(sdxl, subjects)
    assert model is not sdxl and sdxl.get_attachment(KEY) is None and routing.names == subjects.names


def test_masks_share_the_pictures_out_with_the_background(sampled, subjects):
    routing, samples = sampled
    _, masks = show(routing, samples)
    assert masks.shape == (4, 128, 96)  # two subjects in each of two pictures, eight pixels a latent pixel
    for picture, own in enumerate(masks.split(2)):
        records = routing.recording.find(samples)
        whole = partition(shares(records, range(len(routing.layers)), picture, 3), (128, 96))
        assert torch.equal(own, whole[:-1]) and torch.equal(whole.sum(dim=0), torch.ones(128, 96))
        assert own.any()


@pytest.mark.parametrize("layer, step", [(1, 0), (0, 2), (12, 3)])
def test_a_layer_and_a_step_can_be_chosen(sampled, layer, step):
    routing, samples = sampled
    image, masks = show(routing, samples, layer=layer, step=step)
    records = [record for record in routing.recording.find(samples) if step in (0, record.step)]
    layers = range(len(routing.layers)) if layer == 0 else [layer - 1]
    assert torch.equal(masks[:2], partition(shares(records, layers, 0, 3), (128, 96))[:-1])
    assert not torch.equal(image, show(routing, samples)[0])


@pytest.mark.parametrize("view, columns, rows", [(TOGETHER, 2, 1), (LAYERS, 2, 1), (STEPS, STEP_COUNT, 2)])
def test_a_sheet_for_every_picture(sampled, view, columns, rows):
    routing, samples = sampled
    decoded = torch.rand(2, 128, 96, 4)
    plain, over = (show(routing, samples, show=view, image=image)[0] for image in (None, decoded))
    assert plain.shape == (2, *sheet_size(columns, rows), 3)
    assert plain.min() >= 0 and plain.max() <= 1 and not torch.equal(plain[0], plain[1])
    assert torch.equal(plain, over) == (view != TOGETHER)  # a mosaic has no picture to lie on
    one_layer = [show(routing, samples, show=view, layer=5, image=image)[0] for image in (None, decoded)]
    assert not torch.equal(*one_layer)


def test_only_some_steps_of_a_long_run_are_shown(sdxl, subjects, monkeypatch):
    monkeypatch.setattr(routing_pictures, "MAX_STEPS_SHOWN", 2)
    model, routing = apply(sdxl, subjects)
    assert show(routing, run(model), show=STEPS)[0].shape == (1, *sheet_size(2, 2), 3)


def test_a_mosaic_holds_every_layer_in_order():
    maps = [np.full((4, 8), number / 10, np.float32) for number in range(7)]
    found = mosaic(maps)
    assert found.shape == (3 * (12 + 2) - 2, 3 * (24 + 2) - 2)
    for number in range(7):
        assert found[number // 3 * 14 + 5, number % 3 * 26 + 5] == pytest.approx(number / 10)
    assert not found[28:, 26:].any() and not found[12:14].any()


def test_each_scene_of_a_list_finds_its_own_maps(sdxl, subjects):
    model, routing = apply(sdxl, subjects)
    scenes = [run(model, size=size, positive=prompt(seed)) for seed, size in ((1, (16, 12)), (5, (8, 8)))]
    sizes = [tuple(show(routing, scene)[1].shape) for scene in scenes]
    assert sizes == [(2, 128, 96), (2, 64, 64)]


def test_a_run_in_part_shows_its_own_steps(sdxl, subjects):
    model, routing = apply(sdxl, subjects, start=0.5)
    out = run(model)
    first = min(record.step for record in routing.recording.find(out))
    assert first > 1
    assert show(routing, out, step=first)[1].shape == (2, 128, 96)
    with pytest.raises(InputError, match=f"^Routing Maps, step: step 1 was not routed; choose one from {first} to 3"):
        show(routing, out, step=1)


def test_bad_input_is_one_sentence(sdxl, flux, subjects, sampled, sdxl_vae, make_subjects, vae):
    routing, samples = sampled
    story, picture = apply(sdxl, subjects)[0], torch.rand(1, 64, 64, 3)
    fresh = apply(sdxl, subjects)[1]
    for message, call in {
        "AnyStory, model: it is a Flux model; connect an SDXL model.": lambda: apply(flux, subjects),
        "AnyStory, model: it went through AnyStory before; put all subjects into one cast instead.": lambda: apply(
            story, subjects
        ),
        "AnyStory, end_percent: it would work from 0.5 to 0.5 of the run; let it end after its start, both between 0 and"
        " 1.": lambda: apply(sdxl, subjects, start=0.5, end=0.5),
        "Routing Maps, samples: nothing was routed when they were made; sample with AnyStory's model and a prompt for the"
        " whole picture.": lambda: show(fresh, samples),
        "Routing Maps, samples: they are 8 x 16, the run made 12 x 16; connect what the sampler makes with AnyStory's"
        " model.": lambda: show(routing, samples[..., :8]),
        "Routing Maps, layer: layer 13 was not routed; choose one from 1 to 12, or 0 for all.": lambda: show(
            routing, samples, layer=13
        ),
        "Routing Maps, step: step 4 was not routed; choose one from 1 to 3, or 0 for all.": lambda: show(
            routing, samples, step=4
        ),
        "Routing Maps, image: it holds 1 pictures, the run made 2; decode the same samples.": lambda: show(
            routing, samples, image=picture
        ),
        "Routing Maps, show: 'x' is unknown; choose one of: all together, each layer, each step.": lambda: show(
            routing, samples, show="x"
        ),
        "Segment by Reference, image: it holds 2 pictures; pick one with Image From Batch.": lambda: segment(
            sdxl, subjects, sdxl_vae, picture.expand(2, -1, -1, -1)
        ),
        "Segment by Reference, image: it is 64 x 24 pixels; use a picture of at least 32 pixels a side.": lambda: (
            segment(sdxl, subjects, sdxl_vae, picture[:, :24])
        ),
        "Segment by Reference, model: it is a Flux model; connect an SDXL model.": lambda: segment(
            flux, subjects, sdxl_vae, picture
        ),
        "Segment by Reference, model: it went through AnyStory before; put all subjects into one cast"
        " instead.": lambda: segment(story, subjects, sdxl_vae, picture),
        "Segment by Reference, vae: it makes latents of 16 channels, the model reads 4; connect SDXL's VAE.": lambda: (
            segment(sdxl, subjects, vae, picture)
        ),
        "Segment by Reference, conditioning: its text is 768 wide, the model reads 384; encode it with the model's own text"
        " encoder.": lambda: segment(sdxl, subjects, sdxl_vae, picture, prompt(1, 768)),
        "Segment by Reference, conditioning: it is for a part of the picture only; connect a prompt for all of"
        " it.": lambda: segment(sdxl, subjects, sdxl_vae, picture, prompt(1, area=(4, 8, 0, 0), strength=1.0)),
    }.items():
        with pytest.raises(InputError) as raised:
            call()
        assert str(raised.value) == message


def test_a_model_of_other_layers_is_refused(sdxl, subjects, make_subjects):
    other = make_subjects(1)
    other.network.model.injection.layers = other.network.model.injection.layers[:-1]
    with pytest.raises(
        InputError, match=r"^AnyStory, model: its layers are not those the AnyStory weights were made for"
    ):
        apply(sdxl, other)


def test_widgets_are_checked_before_the_run():
    assert EnsembleAnyStory.validate_inputs() is True
    assert EnsembleAnyStory.validate_inputs(0.2, None) is True
    assert EnsembleAnyStory.validate_inputs(0.2, 0.8) is True
    assert "from 0.8 to 0.2" in str(EnsembleAnyStory.validate_inputs(0.8, 0.2))
    assert EnsembleRoutingMaps.validate_inputs() is True
    assert "'x' is unknown" in str(EnsembleRoutingMaps.validate_inputs("x"))


def segment(model, features, vae, image, conditioning=None) -> Any:
    executed: Any = EnsembleReferenceSegment.execute(model, features, vae, image, conditioning)
    return executed.result


@pytest.mark.parametrize("height, width", [(64, 64), (75, 103), (32, 40)])
def test_segmentation_covers_the_whole_picture(sdxl, sdxl_vae, subjects, height, width):
    picture = torch.rand(1, height, width, 4, generator=torch.Generator().manual_seed(1))
    masks, overlay = segment(sdxl, subjects, sdxl_vae, picture)
    assert masks.shape == (2, height, width) and overlay.shape == (1, height, width, 3)
    latent = sdxl_vae.encode(picture[..., :3])
    found = find_subjects(sdxl, subjects, latent)
    assert found is not None
    torch.testing.assert_close(found.sum(dim=0), torch.ones(found.shape[1:]))
    top, left = (height % 8) // 2, (width % 8) // 2
    seen = partition(found, (8 * latent.shape[2], 8 * latent.shape[3]))[:-1]
    inner = masks[:, top : top + seen.shape[1], left : left + seen.shape[2]]
    assert torch.equal(inner, seen)
    assert torch.equal(masks[:, 0], masks[:, top]) and torch.equal(masks[..., -1], masks[..., left + seen.shape[2] - 1])
    assert masks.sum(dim=0).max() <= 1 and set(masks.unique().tolist()) <= {0.0, 1.0}


def test_segmentation_is_one_look_at_the_clean_picture(sdxl, sdxl_vae, subjects):
    """One call of the U-Net, with the positive prompt alone, on the scaled latent, without noise and near the end."""
    calls = []

    def watch(apply_model, arguments):
        calls.append(arguments)
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model = SelfAttentionGuidance().execute(sdxl, 0.5, 2.0)[0]  # what changes guidance has no say
    model.set_model_unet_function_wrapper(watch)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    latent = sdxl_vae.encode(picture)
    first, plain = find_subjects(model, subjects, latent), find_subjects(sdxl, subjects, latent)
    assert first is not None and plain is not None and torch.equal(first, plain)
    (call,) = calls
    assert call["cond_or_uncond"] == [0]
    torch.testing.assert_close(call["input"], sdxl.model.process_latent_in(latent))
    sampling = sdxl.get_model_object("model_sampling")
    assert sampling.timestep(call["timestep"]).item() == 50
    assert not call["c"]["c_crossattn"].any() and call["c"]["c_crossattn"].shape == (1, 77, 384)
    described = find_subjects(sdxl, subjects, latent, prompt(4))
    assert described is not None and not torch.equal(first, described)


def test_no_prompt_fits_the_model(sdxl):
    ((text, options),) = no_prompt(sdxl.model.diffusion_model)
    assert text.shape == (1, 77, 384) and options["pooled_output"].shape == (1, 384)
    assert not text.any() and not options["pooled_output"].any()


def test_segmentation_in_another_order_gives_the_same_masks(sdxl, sdxl_vae, subjects):
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    swapped = dataclasses.replace(
        subjects,
        names=subjects.names[::-1],
        tokens=subjects.tokens[[1, 0, 2]],
        router=subjects.router[[1, 0, 2]],
        hidden=tuple(None if state is None else state.flip(0) for state in subjects.hidden),
    )
    latent = sdxl_vae.encode(picture)
    one, other = find_subjects(sdxl, subjects, latent), find_subjects(sdxl, swapped, latent)
    assert one is not None and other is not None and torch.equal(one, other[[1, 0, 2]])


def test_the_overlay_colours_each_subject_and_no_more():
    picture = np.random.default_rng(0).random((60, 80, 3)).astype(np.float32)
    masks = np.zeros((3, 60, 80), np.float32)
    masks[0, 5:55, 2:30], masks[1, 5:55, 45:78] = 1, 1
    overlay = draw_overlay(picture, masks, ["", "", "nobody"])
    grey = picture.mean(axis=-1)
    assert np.abs(overlay[0, :] - grey[0, :, None]).max() < 0.01  # outside of all
    colours = [np.median(overlay[10:50, columns].reshape(-1, 3), axis=0) for columns in (slice(4, 28), slice(47, 76))]
    assert np.abs(colours[0] - colours[1]).max() > 0.2
    named = draw_overlay(picture, masks, ["alice", "bob", "nobody"])
    assert not np.array_equal(named[:, :40], overlay[:, :40]) and not np.array_equal(named[:, 40:], overlay[:, 40:])
