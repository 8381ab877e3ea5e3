"""AnyStory's second half: the cast is routed to its places in every picture made with the model, and found in others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io

from ..attention_patches.anystory import apply_anystory
from ..attention_patches.anystory_call import NO_REFERENCES, Settings
from ..attention_patches.anystory_features import SubjectFeatures
from ..attention_patches.anystory_routing import RoutingMaps, StepMaps, partition
from ..attention_patches.anystory_segment import find_subjects
from .errors import InputError, sentence_or_true
from .heat_map import pictures_below
from .routing_pictures import TOGETHER, VIEWS, RoutingView, draw_overlay
from .types import ROUTING, SUBJECT_FEATURES
from .unet import require_unet

MAX_ETA = 10.0
MAX_GAMMA, OFF_GAMMA = 10.0, -30.0  # a weight of e^-30 beside one of 1 is nothing, in any precision
MAX_NUMBER = 9999
LATENT_FACTOR = 8
SMALLEST = 32  # pixels a side: the U-Net halves a latent twice


class EnsembleAnyStory(io.ComfyNode):
    """Routes and injects the cast."""

    DISPLAY_NAME = "AnyStory"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAnyStory",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/anystory",
            description="Brings your cast into every picture made with the model: routers find each subject's place while the"
            " picture forms, and its features go there and nowhere else.",
            search_aliases=[
                "subject router",
                "encode-then-route",
                "decoupled instance-aware routing",
                "reference attention",
                "personalization",
                "multi-subject",
                "identity",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The SDXL model that AnyStory was made for."),
                SUBJECT_FEATURES.Input("features", tooltip="From AnyStory Encode."),
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=MAX_ETA,
                    step=0.01,
                    tooltip="How strongly each place follows what CLIP saw of its subject. 0 leaves it to your prompt.",
                ),
                io.Float.Input(
                    "gamma",
                    default=0.0,
                    min=OFF_GAMMA,
                    max=MAX_GAMMA,
                    step=0.1,
                    tooltip="How much a subject's place looks at the details of its picture: 0 as much as at the canvas itself,"
                    f" below 0 less, above more. {OFF_GAMMA:g} switches it off.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Where in the run it starts. Before that the model is on its own.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Where in the run it ends."
                ),
            ],
            outputs=[io.Model.Output(display_name="model"), ROUTING.Output(display_name="routing")],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float | None = None, end_percent: float | None = None) -> bool | str:
        if start_percent is None or end_percent is None:  # one comes by a link
            return True
        return sentence_or_true(lambda percents: _check_range(*percents), (start_percent, end_percent))

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        features: SubjectFeatures,
        eta: float,
        gamma: float,
        start_percent: float,
        end_percent: float,
    ) -> io.NodeOutput:
        require_unet(cls.DISPLAY_NAME, model)
        _check_range(start_percent, end_percent)
        settings = Settings(eta, NO_REFERENCES if gamma <= OFF_GAMMA else gamma, start_percent, end_percent)
        try:
            return io.NodeOutput(*apply_anystory(model, features, settings))
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "model", str(error)) from None


def _check_range(start: float, end: float) -> None:
    if not 0 <= start < end <= 1:
        raise InputError(
            EnsembleAnyStory.DISPLAY_NAME,
            "end_percent",
            f"it would work from {start:g} to {end:g} of the run; let it end after its start, both between 0 and 1",
        )


class EnsembleRoutingMaps(io.ComfyNode):
    """Shows where each subject was."""

    DISPLAY_NAME = "Routing Maps"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleRoutingMaps",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/anystory",
            description="Where AnyStory's routers saw each subject: as heat maps, and as masks that share the picture out, for"
            " any node that takes a mask.",
            search_aliases=["AnyStory", "router", "attention map", "subject mask", "segmentation", "debug", "ensemble"],
            inputs=[
                ROUTING.Input("routing", tooltip="From AnyStory."),
                io.Latent.Input("samples", tooltip="What the sampler made with AnyStory's model."),
                io.Int.Input(
                    "layer",
                    default=0,
                    min=0,
                    max=MAX_NUMBER,
                    optional=True,
                    tooltip="0 counts all layers together; 1 is the first. SDXL has 70.",
                ),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=MAX_NUMBER,
                    optional=True,
                    tooltip="0 counts all steps together; 1 is the sampler's first.",
                ),
                io.Combo.Input(
                    "show",
                    options=list(VIEWS),
                    optional=True,
                    tooltip="One map a subject; a mosaic of all layers a subject; or a row of steps a subject. It changes the"
                    " picture only, not the masks.",
                ),
                io.Image.Input("image", optional=True, tooltip="The same, decoded: the maps are laid over it."),
            ],
            outputs=[io.Image.Output(display_name="image"), io.Mask.Output(display_name="masks")],
        )

    @classmethod
    def validate_inputs(cls, show: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_check_view, show)

    @classmethod
    def execute(
        cls,
        routing: RoutingMaps,
        samples: dict[str, Any],
        layer: int = 0,
        step: int = 0,
        show: str = TOGETHER,
        image: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        _check_view(show)
        records = _records(routing, samples["samples"])
        numbers = sorted({record.step for record in records})
        chosen_steps = _pick("step", numbers, step)
        chosen_layers = _pick("layer", range(1, len(routing.layers) + 1), layer)
        chosen = [record for record in records if record.step in chosen_steps]
        view = RoutingView(routing.names, chosen, [number - 1 for number in chosen_layers])
        pictures = pictures_below(cls.DISPLAY_NAME, image, records[0].maps[0].shape[1])
        sheets = [view.sheet(number, show, picture) for number, picture in enumerate(pictures)]
        size = (LATENT_FACTOR * records[0].canvas[0], LATENT_FACTOR * records[0].canvas[1])
        masks = [partition(view.shares(number), size)[:-1] for number in range(len(pictures))]
        return io.NodeOutput(torch.from_numpy(np.stack(sheets)), torch.cat(masks))


def _records(routing: RoutingMaps, samples: torch.Tensor) -> list[StepMaps]:
    """What was routed in the run that made `samples`."""
    node = EnsembleRoutingMaps.DISPLAY_NAME
    records = routing.recording.find(samples)
    if not records:
        raise InputError(
            node,
            "samples",
            "nothing was routed when they were made; sample with AnyStory's model and a prompt for the whole picture",
        )
    (height, width), (made_height, made_width) = samples.shape[-2:], records[0].canvas
    if (height, width) != (made_height, made_width):
        raise InputError(
            node,
            "samples",
            f"they are {width} x {height}, the run made {made_width} x {made_height}; connect what the sampler makes with"
            " AnyStory's model",
        )
    return records


def _pick(name: str, found: Sequence[int], number: int) -> Sequence[int]:
    """All for 0, otherwise the one of that number."""
    if number and number not in found:
        raise InputError(
            EnsembleRoutingMaps.DISPLAY_NAME,
            name,
            f"{name} {number} was not routed; choose one from {found[0]} to {found[-1]}, or 0 for all",
        )
    return [number] if number else found


def _check_view(show: str) -> None:
    if show not in VIEWS:
        raise InputError(
            EnsembleRoutingMaps.DISPLAY_NAME, "show", f"'{show}' is unknown; choose one of: {', '.join(VIEWS)}"
        )


class EnsembleReferenceSegment(io.ComfyNode):
    """Finds the cast in a picture."""

    DISPLAY_NAME = "Segment by Reference"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleReferenceSegment",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/anystory",
            description="Finds the subjects of your cast in any picture and gives a mask for each.",
            search_aliases=[
                "AnyStory",
                "reference-prompted image segmentation",
                "image-prompted segmentation",
                "subject mask",
                "router",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The SDXL model that AnyStory was made for, from before AnyStory."),
                SUBJECT_FEATURES.Input("features", tooltip="From AnyStory Encode: who is looked for."),
                io.Vae.Input("vae", tooltip="SDXL's VAE."),
                io.Image.Input("image", tooltip="The picture to look in; best of about a megapixel, as SDXL's own."),
                io.Conditioning.Input(
                    "conditioning", optional=True, tooltip="A prompt that describes the picture, if you like."
                ),
            ],
            outputs=[io.Mask.Output(display_name="masks"), io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        features: SubjectFeatures,
        vae: VAE,
        image: torch.Tensor,
        conditioning: Any = None,
    ) -> io.NodeOutput:
        network = require_unet(cls.DISPLAY_NAME, model)
        _check_picture(image)
        _check_conditioning(conditioning, features)
        latent = vae.encode(image[..., :3])
        if latent.ndim != 4 or latent.shape[1] != network.in_channels:
            raise InputError(
                cls.DISPLAY_NAME,
                "vae",
                f"it makes latents of {latent.shape[1]} channels, the model reads {network.in_channels}; connect SDXL's VAE",
            )
        try:
            found = find_subjects(model, features, latent, conditioning)
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "model", str(error)) from None
        if found is None:
            raise InputError(
                cls.DISPLAY_NAME, "conditioning", "it is for a part of the picture only; connect a prompt for all of it"
            )
        masks = _on_picture(found, (latent.shape[-2], latent.shape[-1]), (image.shape[1], image.shape[2]))[:-1]
        overlay = draw_overlay(image[0, ..., :3].cpu().numpy(), masks.numpy(), features.names)
        return io.NodeOutput(masks, torch.from_numpy(overlay)[None])


def _on_picture(found: torch.Tensor, latent: tuple[int, int], picture: tuple[int, int]) -> torch.Tensor:
    """Masks (N + 1, H, W) of the whole picture, of which the VAE has seen what its latent's pixels cover, in the middle."""
    seen = [LATENT_FACTOR * side for side in latent]
    masks = partition(found, (seen[0], seen[1]))
    before = [(whole - part) // 2 for whole, part in zip(picture, seen, strict=True)]
    after = [whole - part - lead for whole, part, lead in zip(picture, seen, before, strict=True)]
    edges = (before[1], after[1], before[0], after[0])
    return torch.nn.functional.pad(masks[None], edges, mode="replicate")[0]


def _check_picture(image: torch.Tensor) -> None:
    node = EnsembleReferenceSegment.DISPLAY_NAME
    count, height, width = image.shape[:3]
    if count != 1:
        raise InputError(node, "image", f"it holds {count} pictures; pick one with Image From Batch")
    if min(height, width) < SMALLEST:
        raise InputError(
            node, "image", f"it is {width} x {height} pixels; use a picture of at least {SMALLEST} pixels a side"
        )


def _check_conditioning(conditioning: Any, features: SubjectFeatures) -> None:
    width = features.tokens.shape[-1]
    for text, _ in conditioning or ():
        if text.shape[-1] != width:
            raise InputError(
                EnsembleReferenceSegment.DISPLAY_NAME,
                "conditioning",
                f"its text is {text.shape[-1]} wide, the model reads {width}; encode it with the model's own text encoder",
            )


NODES: list[type[io.ComfyNode]] = [EnsembleAnyStory, EnsembleRoutingMaps, EnsembleReferenceSegment]
