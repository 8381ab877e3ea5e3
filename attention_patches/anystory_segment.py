"""Reference-prompted segmentation: AnyStory's routers find the subjects in a picture that was not made here (section 3.3).

As the paper says: encode the picture with the VAE, then show it to the denoising U-Net and the routers. They are shown it
once, without noise, at a timestep near the end of a run, where the routers have seen pictures that are all but finished.
Nothing is injected. The maps of all layers are counted.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from .anystory import apply_anystory
from .anystory_call import NO_REFERENCES, Settings
from .anystory_features import SubjectFeatures
from .anystory_routing import shares
from .one_prompt import OnePrompt
from .reference_net import SIZE_WIDTH, SIZES

MOMENT = 0.95  # of a run: timestep 50 of 1000
PROMPT_TOKENS = 77


def no_prompt(unet: Any) -> Any:
    """A conditioning of zeros, which is what SDXL was shown where a caption was left out."""
    context = unet.input_blocks[-1][1].transformer_blocks[0].attn2.to_k.in_features
    pooled = unet.label_emb[0][0].in_features - SIZES * SIZE_WIDTH
    return [[torch.zeros(1, PROMPT_TOKENS, context), {"pooled_output": torch.zeros(1, pooled)}]]


def find_subjects(
    model: ModelPatcher, features: SubjectFeatures, latent: torch.Tensor, conditioning: Any = None
) -> torch.Tensor | None:
    """The share of the layers that give each pixel to each subject, and last to the background: (N + 1, h, w).

    None where the prompt is for a part of the picture only.

    Args:
        model: SDXL without AnyStory.
        latent: of the picture, (1, channels, H, W) as the VAE gives it.
        conditioning: a prompt that describes the picture, if there is one.

    Raises:
        ValueError: as `apply_anystory` does.
    """
    looking, maps = apply_anystory(model, features, Settings(0.0, NO_REFERENCES))
    guider = OnePrompt(looking)
    guider.inner_set_conds({"positive": conditioning or no_prompt(model.model.diffusion_model)})
    sampling: Any = looking.get_model_object("model_sampling")
    sigmas = torch.tensor([sampling.percent_to_sigma(MOMENT), 0.0])
    euler = comfy.samplers.sampler_object("euler")
    seen = guider.sample(torch.zeros_like(latent), latent, euler, sigmas, disable_pbar=True)
    records = maps.recording.find(seen)
    return shares(records, range(len(maps.layers)), 0, len(features.names) + 1) if records else None
