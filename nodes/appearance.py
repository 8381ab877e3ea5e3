"""SeAl, first half: the model looks at a picture of the subject once, and what it saw is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io

from ..attention_patches.appearance_cache import cache_appearance, cached_layers, spread_sigmas
from ..attention_patches.appearance_tokens import Appearance, AppearanceError
from .errors import InputError, sentence_or_true
from .notes import with_note
from .types import APPEARANCE
from .unet import require_unet

MAX_TIMESTEPS = 1000
MAX_MEGAPIXELS = 16.0
MIN_LATENT = 4  # a side in latent pixels: the U-Net halves it twice
_MEGAPIXEL = 1024 * 1024  # as the host counts
_MIB = 1024 * 1024


class EnsembleAppearanceCache(io.ComfyNode):
    """Lets the model look at a picture and keeps what its self-attention saw."""

    DISPLAY_NAME = "Appearance Cache"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAppearanceCache",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Shows a picture of a subject to the model, without noise, and keeps how the model sees it. Runs once:"
            " the result serves any number of seeds, prompts and poses.",
            search_aliases=["SeAl", "reference image", "K/V cache", "self-attention features", "identity", "ensemble"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The SDXL model you sample with, LoRAs included, before Appearance Infusion."
                ),
                io.Conditioning.Input("conditioning", tooltip="A prompt that describes this picture."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("image", tooltip="One picture of the subject."),
                io.Int.Input(
                    "timesteps",
                    default=4,
                    min=1,
                    max=MAX_TIMESTEPS,
                    tooltip="How many moments of the run are cached, spread evenly; each step uses the nearest. More follow"
                    " the run more closely, and each takes time once and memory always.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the subject is: nothing else is kept. Without it an alpha channel serves, or all is"
                    " kept.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="The sampler's own sigmas (from a scheduler node): every step of the run is cached, and timesteps"
                    " is ignored.",
                ),
                io.Float.Input(
                    "max_megapixels",
                    default=1.0,
                    min=0.01,
                    max=MAX_MEGAPIXELS,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="A larger picture is made smaller to this size. SDXL sees best at 1.",
                ),
            ],
            outputs=[APPEARANCE.Output(display_name="appearance"), io.String.Output(display_name="report")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, timesteps: int | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_timesteps, timesteps)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: Any,
        vae: VAE,
        image: torch.Tensor,
        timesteps: int,
        mask: torch.Tensor | None = None,
        sigmas: torch.Tensor | None = None,
        max_megapixels: float = 1.0,
    ) -> io.NodeOutput:
        layers = cached_layers(require_unet(cls.DISPLAY_NAME, model))
        _check_timesteps(timesteps)
        _check_prompt(conditioning, layers[0].context_width)
        sampling: Any = model.get_model_object("model_sampling")
        levels = spread_sigmas(sampling, timesteps) if sigmas is None else _run_sigmas(sigmas)
        picture, subject = _picture(vae, image, mask, max_megapixels)
        latent = _encode(model, vae, picture)
        try:
            appearance = cache_appearance(model, conditioning, latent, subject, levels)
        except AppearanceError as error:
            raise InputError(cls.DISPLAY_NAME, "conditioning", str(error)) from None
        report = _report(appearance, picture)
        return with_note(cls, report, appearance, report)


def _check_timesteps(timesteps: int) -> None:
    if not 1 <= timesteps <= MAX_TIMESTEPS:
        raise InputError(
            EnsembleAppearanceCache.DISPLAY_NAME,
            "timesteps",
            f"{timesteps} cannot be cached; choose a number from 1 to {MAX_TIMESTEPS}",
        )


def _check_prompt(conditioning: Any, width: int | None) -> None:
    node = EnsembleAppearanceCache.DISPLAY_NAME
    if not conditioning:
        raise InputError(node, "conditioning", "it is empty; encode a prompt that describes the picture")
    if any("area" in options or options.get("set_area_to_bounds") for _, options in conditioning):
        raise InputError(
            node, "conditioning", "it is limited to an area; connect a prompt that describes the whole picture"
        )
    found = conditioning[0][0].shape[-1]
    if width is not None and found != width:
        raise InputError(
            node,
            "conditioning",
            f"its text is {found} wide, the model reads {width}; encode it with this model's own text encoder",
        )


def _run_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """The noise levels at which a sampler calls the model: all but the last, which is where it arrives."""
    steps = sigmas[:-1]
    if not len(steps):
        raise InputError(
            EnsembleAppearanceCache.DISPLAY_NAME, "sigmas", "they hold no step; raise steps or denoise of the scheduler"
        )
    return steps


def _picture(
    vae: VAE, image: torch.Tensor, mask: torch.Tensor | None, max_megapixels: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The picture (1, H, W, 3) as the VAE will crop it, and the subject's mask (H, W), if there is one."""
    node = EnsembleAppearanceCache.DISPLAY_NAME
    if len(image) != 1:
        raise InputError(
            node,
            "image",
            f"it holds {len(image)} pictures; pick one with Image From Batch, and give each its own cache",
        )
    picture, subject = image[..., :3], _subject(image, mask)
    height, width = picture.shape[1:3]
    ratio: Any = vae.spacial_compression_encode()
    least = MIN_LATENT * ratio
    if min(height, width) < least:
        raise InputError(
            node,
            "image",
            f"it is {width} x {height} pixels, too small to show anybody; connect one of at least {least} a side",
        )
    shrink = min(1.0, (max_megapixels * _MEGAPIXEL / (height * width)) ** 0.5)
    size = [max(least, int(side * shrink) // ratio * ratio) for side in (height, width)]
    if shrink < 1:
        picture, subject = _shrunk(picture.movedim(-1, 1), size).movedim(1, -1), _shrunk_mask(subject, size)
    elif subject is not None:  # as the VAE crops the picture
        top, left = (height % ratio) // 2, (width % ratio) // 2
        subject = subject[top : top + size[0], left : left + size[1]]
    if subject is not None and not bool((subject > 0.5).any()):
        raise InputError(
            node,
            "mask",
            "it is empty, or too small to be seen at this size; paint the subject white or leave the mask out",
        )
    return picture, subject


def _subject(image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """(H, W), the mask or the alpha channel; None where neither is there."""
    if mask is None:
        return image[0, ..., 3] if image.shape[-1] == 4 else None
    mask = mask.reshape(-1, *mask.shape[-2:])
    height, width = image.shape[1:3]
    if mask.shape != (1, height, width):
        size = " x ".join(str(side) for side in reversed(mask.shape[-2:]))
        raise InputError(
            EnsembleAppearanceCache.DISPLAY_NAME,
            "mask",
            f"it is {len(mask)} of {size} pixels, the picture is {width} x {height}; use a mask made from this picture"
            " (Load Image gives a 64 x 64 one when the file has no alpha channel)",
        )
    return mask[0]


def _shrunk(picture: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return comfy.utils.common_upscale(picture, size[1], size[0], "area", "disabled")


def _shrunk_mask(mask: torch.Tensor | None, size: Sequence[int]) -> torch.Tensor | None:
    return None if mask is None else _shrunk(mask[None, None], size)[0, 0]


def _encode(model: ModelPatcher, vae: VAE, picture: torch.Tensor) -> torch.Tensor:
    latent = vae.encode(picture)
    channels = model.model.latent_format.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise InputError(
            EnsembleAppearanceCache.DISPLAY_NAME,
            "vae",
            f"its latents have {latent.shape[1]} channels, the model reads {channels}; connect this model's VAE",
        )
    return latent


def _report(appearance: Appearance, picture: torch.Tensor) -> str:
    """The size of the cache in words."""
    network, size = appearance.network, appearance.nbytes() / _MIB
    moments = len(network.moments)
    kept = sum(network.tokens(0, layer).weight.shape[0] for layer in network.layers)
    height, width = picture.shape[1:3]
    return (
        f"{size:.1f} MiB: {moments} {'timestep' if moments == 1 else 'timesteps'} of {size / moments:.1f} MiB,"
        f" {kept} tokens in {len(network.layers)} layers, from {width} x {height} pixels"
    )


NODES: list[type[io.ComfyNode]] = [EnsembleAppearanceCache]
