"""AnyStory's first half: what the cast looks like, once and for all pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.sd import VAE
from comfy_api.latest import io

from ..attention_patches.anystory_features import Background, Seen, encode_features
from ..attention_patches.anystory_file import AnyStory, AnyStoryError, load_anystory
from ..attention_patches.anystory_network import AnyStoryConfig
from ..models_info.registry import ANYSTORY_NETWORKS, list_files
from ..models_info.vision_input import Picture, clip_features, picture_latent, subject_picture, zero_picture
from .cast import Cast, Subject
from .errors import InputError, sentence_or_true
from .model_choice import chosen_file, file_version, load_chosen
from .types import ANYSTORY, CAST, SUBJECT_FEATURES
from .vision import check_clip_vision

LEFT_OVER = "what is left over"
RESEMBLES = "what resembles it"
BACKGROUND_AREAS = (LEFT_OVER, RESEMBLES)
ENCODERS = 3  # that look at a picture: CLIP vision, VAE, AnyStory's own


class EnsembleAnyStoryLoader(io.ComfyNode):
    """Loads an AnyStory checkpoint."""

    DISPLAY_NAME = "Load AnyStory"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAnyStoryLoader",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/anystory",
            description="Loads AnyStory, the networks that look at your cast and bring each subject to its place in an SDXL"
            " picture.",
            search_aliases=["AnyStory", "ReferenceNet", "QFormer", "subject router", "personalization", "ensemble"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list_files(ANYSTORY_NETWORKS),
                    tooltip=f"A safetensors file of models/{ANYSTORY_NETWORKS}.",
                )
            ],
            outputs=[ANYSTORY.Output(display_name="anystory")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_find_checkpoint, name)

    @classmethod
    def fingerprint_inputs(cls, name: str) -> float:
        """A checkpoint that was rewritten under the same name is loaded again."""
        return file_version(ANYSTORY_NETWORKS, name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        path = _find_checkpoint(name)
        load = partial(load_anystory, path)
        return io.NodeOutput(load_chosen(cls.DISPLAY_NAME, "name", name, load, AnyStoryError))


def _find_checkpoint(name: str) -> Path:
    return chosen_file(
        EnsembleAnyStoryLoader.DISPLAY_NAME, "name", ANYSTORY_NETWORKS, name, "put the file there or choose"
    )


class EnsembleAnyStoryEncode(io.ComfyNode):
    """Encodes the cast."""

    DISPLAY_NAME = "AnyStory Encode"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAnyStoryEncode",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/anystory",
            description="Looks at everybody in the cast once: what they are, their details, and how to find their places."
            " All pictures of a story use the result.",
            search_aliases=["AnyStory", "subject encoding", "ReferenceNet", "QFormer", "encode-then-route", "ensemble"],
            inputs=[
                ANYSTORY.Input("anystory", tooltip="From Load AnyStory."),
                CAST.Input("cast", tooltip="The subjects; each needs a mask."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The CLIP vision model it was trained with: ViT-H/14 for SDXL."
                ),
                io.Vae.Input("vae", tooltip="SDXL's VAE."),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="A picture of the place they are in. Without one, the background follows your prompt alone.",
                ),
                io.Combo.Input(
                    "background_area",
                    options=list(BACKGROUND_AREAS),
                    optional=True,
                    tooltip="With a background picture: the part of the canvas it may shape. All that the subjects leave over,"
                    " or only what the model finds to resemble it.",
                ),
            ],
            outputs=[SUBJECT_FEATURES.Output(display_name="features")],
        )

    @classmethod
    def validate_inputs(cls, background_area: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_check_area, background_area)

    @classmethod
    def execute(
        cls,
        anystory: AnyStory,
        cast: Cast,
        clip_vision: ClipVisionModel,
        vae: VAE,
        background: torch.Tensor | None = None,
        background_area: str = LEFT_OVER,
    ) -> io.NodeOutput:
        config = anystory.config
        _check_cast(cast)
        _check_area(background_area)
        check_clip_vision(cls.DISPLAY_NAME, clip_vision, config.clip_width, config.clip_depth)
        _check_vae(vae, config)
        pictures = [_cut_out(subject) for subject in cast.subjects]
        if background is not None:
            pictures.append(_whole(background))
        step = _steps(ENCODERS * len(pictures) + 1)
        zero, *clips = [
            _then(step, clip_features(clip_vision, picture)) for picture in (zero_picture(clip_vision), *pictures)
        ]
        latents = [_then(step, picture_latent(vae, picture, config.reference_size)) for picture in pictures]
        masks = [picture.mask.movedim(-1, 1) for picture in pictures]
        seen = [Seen(*parts) for parts in zip(clips, latents, masks, strict=True)]
        place = None if background is None else Background(seen.pop(), background_area == RESEMBLES)
        names = [subject.name for subject in cast.subjects]
        return io.NodeOutput(encode_features(anystory, names, seen, zero, place, step))


def _cut_out(subject: Subject) -> Picture:
    assert subject.mask is not None
    return subject_picture(subject.image, subject.mask)


def _whole(background: torch.Tensor) -> Picture:
    """The square in the middle of a background picture: padding would be taken for a part of the place."""
    count, height, width = background.shape[:3]
    if count != 1:
        raise InputError(
            EnsembleAnyStoryEncode.DISPLAY_NAME,
            "background",
            f"it holds {count} pictures; pick one with Image From Batch",
        )
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = background[:, top : top + side, left : left + side, :3]
    return Picture(pixels, torch.ones_like(pixels[..., :1]))


def _steps(count: int) -> Callable[[], None]:
    """What to call after each of `count` pieces of work: shows progress, and stops where the artist asked for it."""
    progress = comfy.utils.ProgressBar(count)

    def step() -> None:
        progress.update(1)
        throw_exception_if_processing_interrupted()

    return step


def _then(step: Callable[[], None], made: torch.Tensor) -> torch.Tensor:
    step()
    return made


def _check_area(area: str) -> None:
    if area not in BACKGROUND_AREAS:
        raise InputError(
            EnsembleAnyStoryEncode.DISPLAY_NAME,
            "background_area",
            f"'{area}' is unknown; choose one of: {', '.join(BACKGROUND_AREAS)}",
        )


def _check_cast(cast: Cast) -> None:
    node = EnsembleAnyStoryEncode.DISPLAY_NAME
    if not cast.subjects:
        raise InputError(node, "cast", "it is empty; add a subject")
    unmasked = [f"'{subject.name}'" for subject in cast.subjects if subject.mask is None]
    if unmasked:
        raise InputError(
            node,
            "cast",
            f"{' and '.join(unmasked)} cannot be told from the background; connect a mask to each one's Subject node,"
            " for example from Remove Background, or use a picture with an alpha channel",
        )
    empty = [f"'{s.name}'" for s in cast.subjects if s.mask is not None and not bool((s.mask > 0.5).any())]
    if empty:
        raise InputError(node, "cast", f"the mask of {' and '.join(empty)} is empty; paint the subject white")


def _check_vae(vae: VAE, config: AnyStoryConfig) -> None:
    channels = config.unet["in_channels"]
    if vae.latent_channels != channels:
        raise InputError(
            EnsembleAnyStoryEncode.DISPLAY_NAME,
            "vae",
            f"it makes latents of {vae.latent_channels} channels, SDXL's have {channels}; connect SDXL's VAE",
        )


NODES: list[type[io.ComfyNode]] = [EnsembleAnyStoryLoader, EnsembleAnyStoryEncode]
