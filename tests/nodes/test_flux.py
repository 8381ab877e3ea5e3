"""Reference Latents and EURoPE Positions as nodes, with the host's own models."""

from __future__ import annotations

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch

from comfyui_ensemble.attention_patches.europe import EUROPE, MODES
from comfyui_ensemble.attention_patches.layout import Layout
from comfyui_ensemble.attention_patches.reference_positions import KEY
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.flux import EnsembleEURoPE, EnsembleReferenceLatents


def person(name: str, height: int, width: int, masked: bool = False) -> Subject:
    mask = torch.zeros(1, height, width)
    mask[:, : height // 2] = 1
    return Subject(torch.rand(1, height, width, 3), mask if masked else None, name, "a person", "person")


def reference(clip, vae, cast, size=64, pose=None):
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a duel"))
    return EnsembleReferenceLatents.execute(conditioning, vae, cast, size, pose).args


def test_one_latent_a_subject_then_the_pose(clip, vae):
    cast = Cast((person("a", 300, 200), person("b", 50, 400, masked=True)))
    pose = torch.rand(1, 128, 96, 3)
    conditioning, layout = reference(clip, vae, cast, 160, pose)
    latents = conditioning[0][1]["reference_latents"]
    # 300 x 200 -> 160 x 107 -> 160 x 112 pixels; 50 x 400 -> 20 x 160 -> 16 x 160
    assert [tuple(latent.shape) for latent in latents] == [(1, 16, 20, 14), (1, 16, 2, 20), (1, 16, 16, 12)]
    assert layout.grids == ((10, 7), (1, 10), (8, 6))
    assert [(entry.role, entry.name) for entry in layout.references] == [
        ("subject", "a"),
        ("subject", "b"),
        ("pose", ""),
    ]


def test_the_conditioning_given_is_untouched(clip, vae):
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("a duel"))
    EnsembleReferenceLatents.execute(conditioning, vae, Cast((person("a", 64, 64),)), 64)
    assert "reference_latents" not in conditioning[0][1]


def test_a_mask_leaves_only_the_subject_on_white(clip, vae):
    subject = person("a", 64, 64, masked=True)
    assert subject.mask is not None
    shown = torch.where(subject.mask[..., None] > 0, subject.image, torch.ones(()))
    masked, _ = reference(clip, vae, Cast((subject,)))
    assert torch.equal(masked[0][1]["reference_latents"][0], vae.encode(shown))


def test_a_black_pose_map_is_no_pose(clip, vae):
    conditioning, layout = reference(clip, vae, Cast((person("a", 64, 64),)), pose=torch.zeros(1, 64, 64, 3))
    assert len(conditioning[0][1]["reference_latents"]) == len(layout.references) == 1


def test_no_subjects_and_no_pose_leave_the_conditioning_alone(clip, vae):
    conditioning, layout = reference(clip, vae, Cast(()))
    assert layout.references == () and "reference_latents" not in conditioning[0][1]


def test_references_twice_are_refused(clip, vae):
    cast = Cast((person("a", 64, 64),))
    conditioning, _ = reference(clip, vae, cast)
    with pytest.raises(InputError, match="Reference Latents, conditioning: it already carries reference latents"):
        EnsembleReferenceLatents.execute(conditioning, vae, cast, 64)


def test_two_pose_maps_are_refused(clip, vae):
    with pytest.raises(InputError, match="pose_image: it holds 2 pictures"):
        reference(clip, vae, Cast(()), pose=torch.rand(2, 64, 64, 3))


@pytest.mark.parametrize("mode", MODES)
def test_europe_clones_the_model(flux, clip, vae, mode):
    _, layout = reference(clip, vae, Cast((person("a", 64, 64),)))
    model = EnsembleEURoPE.execute(flux, layout, mode).args[0]
    assert model is not flux
    assert model.get_attachment(KEY).placements[0].mode == mode
    assert flux.get_attachment(KEY) is None and not flux.wrappers.get("diffusion_model")
    assert "post_input" not in flux.model_options["transformer_options"].get("patches", {})


def test_europe_without_references_is_the_model_itself(flux):
    assert EnsembleEURoPE.execute(flux, Layout(()), EUROPE).args[0] is flux


def test_another_kind_of_model_is_refused(clip, vae):
    _, layout = reference(clip, vae, Cast((person("a", 64, 64),)))
    config = comfy.supported_models.SD15(
        {
            "image_size": 32,
            "in_channels": 4,
            "model_channels": 32,
            "out_channels": 4,
            "num_res_blocks": [1],
            "channel_mult": [1],
            "transformer_depth": [0],
            "transformer_depth_output": [0, 0],
            "transformer_depth_middle": -1,
            "context_dim": 32,
            "num_heads": 1,
            "use_spatial_transformer": True,
        }
    )
    model = comfy.model_patcher.ModelPatcher(config.get_model({}), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(InputError, match=r"EURoPE Positions, model: it is a BaseModel model; connect a FLUX model\."):
        EnsembleEURoPE.execute(model, layout, EUROPE)
