"""What is known about a call of the U-Net, through the host's real sampler."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_sag import SelfAttentionGuidance

from comfyui_ensemble.attention_patches.unet_call import UNetCall, note_unet_calls


@pytest.fixture
def watched(sdxl):
    """A model, and the list to which its calls are added with their rows."""
    model, calls = sdxl.clone(), []
    note_unet_calls(model)
    note_unet_calls(model)

    def watch(executor, x, timesteps, context, y, control, options, **kwargs):
        calls.append((UNetCall.of(options), x.shape))
        return executor(x, timesteps, context, y, control, options, **kwargs)

    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, watch)
    return model, calls


def cond(clip, text, **options):
    return [[words, {**values, **options}] for words, values in clip.encode_from_tokens_scheduled(clip.tokenize(text))]


def run(model, positive, negative, size=(16, 12), batch=1, sampler="euler", steps=3, **options):
    latent = torch.zeros(batch, 4, *size)
    noise = comfy.sample.prepare_noise(latent, 1)
    return comfy.sample.sample(
        model, noise, steps, 3.0, sampler, "normal", positive, negative, latent, disable_pbar=True, **options
    )


def test_whole_pictures_in_one_call(watched, clip):
    model, calls = watched
    run(model, cond(clip, "a duel"), cond(clip, "a race"), batch=3)
    assert [call.parts for call, _ in calls] == [((0, 0, 16, 12),) * 2] * 3
    assert {(call.canvas, call.batch) for call, _ in calls} == {((16, 12), 3)}
    assert [call.progress for call, _ in calls] == pytest.approx([0.0, 0.5, 1.0], abs=1e-3)
    assert calls[0][0].progress == 0 and calls[-1][0].progress == 1


@pytest.mark.parametrize(
    "area, part",
    [
        ((8, 6, 4, 2), (4, 2, 8, 6)),
        ((99, 99, 8, 8), (8, 8, 8, 4)),  # reaches outside the picture
        (("percentage", 0.5, 0.5, 0.5, 0.25), (8, 3, 8, 6)),
    ],
)
def test_areas_are_where_the_host_cuts(watched, clip, area, part):
    """Every row's part has the size that the model really gets."""
    model, calls = watched
    run(model, cond(clip, "a duel", area=area) + cond(clip, "a duel"), cond(clip, "a race"), batch=2)
    seen = set()
    for call, shape in calls:
        assert shape[0] == len(call.parts) * call.batch
        seen |= set(call.parts)
        assert {found[2:] for found in call.parts} == {tuple(shape[-2:])}
    assert seen == {part, (0, 0, 16, 12)}


def test_a_mask_that_sets_the_area(watched, clip):
    model, calls = watched
    mask = torch.zeros(1, 16, 12)
    mask[:, 2:11, 1:10] = 1
    run(model, cond(clip, "a duel", mask=mask, set_area_to_bounds=True), cond(clip, "a race"))
    assert (2, 1, 9, 9) in {part for call, _ in calls for part in call.parts}


def test_pieces_cut_inside_the_model_have_no_known_place(watched, clip):
    model, calls = watched

    def tiles(apply_model, args):
        parts = [apply_model(part, args["timestep"], **args["c"]) for part in args["input"].chunk(2, dim=-1)]
        return torch.cat(parts, dim=-1)

    model.set_model_unet_function_wrapper(tiles)
    run(model, cond(clip, "a duel"), cond(clip, "a race"))
    assert {(call.canvas, call.parts) for call, _ in calls} == {((16, 12), (None, None))}


def test_calls_besides_the_guidance_are_known_too(watched, clip):
    """SAG asks the model a second time a step."""
    model, calls = watched
    run(SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0], cond(clip, "a duel"), cond(clip, "a race"))
    assert len(calls) == 6 and {part for call, _ in calls for part in call.parts} == {(0, 0, 16, 12)}


def test_progress_is_told_by_the_noise(watched, clip):
    """Two calls a step, and a second pass that begins in the middle."""
    model, calls = watched
    positive, negative = cond(clip, "a duel"), cond(clip, "a race")
    run(model, positive, negative, sampler="heun", steps=4)
    found = [call.progress for call, _ in calls]
    assert len(found) == 7 and found == sorted(found)
    calls.clear()
    run(model, positive, negative, steps=4, start_step=2)
    assert [call.progress for call, _ in calls] == pytest.approx([2 / 3, 1.0], abs=1e-3)


def test_a_model_called_without_a_sampler(sdxl, clip, watched):
    model, calls = watched
    text, options = cond(clip, "a duel")[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[text, options]], [[text, options]])

    class Direct(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, *args):
            options = {"wrappers": model.wrappers}
            vector = torch.zeros(2, 384 + 1536)
            return model_wrap.inner_model.apply_model(
                noise.repeat(2, 1, 1, 1),
                sigmas[:1].repeat(2),
                c_crossattn=text.repeat(2, 1, 1),
                y=vector,
                transformer_options=options,
            )[:1]

    guider.sample(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), Direct(), torch.tensor([1.0, 0.0]))
    assert [(call.canvas, call.parts, call.batch) for call, _ in calls] == [((8, 8), ((0, 0, 8, 8),), 2)]
