"""FLUX: a cast as reference latents, and where their tokens stand."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from comfy.ldm.flux.model import Flux
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io

from ..attention_patches.europe import EUROPE, MODES, apply_europe
from ..attention_patches.flux_call import flux_network
from ..attention_patches.item_spans import SPANS_KEY
from ..attention_patches.layout import Layout, Reference, token_grid
from ..attention_patches.reference_latents import encode_reference, shows_pose, with_references
from .cast import Cast
from .errors import InputError
from .types import CAST, LAYOUT

MIN_REFERENCE = 64
MAX_REFERENCE = 2048


class EnsembleReferenceLatents(io.ComfyNode):
    """Encodes the cast, and a pose map, as reference latents of a FLUX conditioning."""

    DISPLAY_NAME = "Reference Latents"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleReferenceLatents",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="Adds every subject of the cast, and a pose map if there is one, to the conditioning as reference"
            " latents. Connect layout to the nodes that place or weigh references.",
            search_aliases=["reference latent", "ASTRA", "UNO", "Kontext", "multi-subject", "pose map", "ensemble"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The encoded prompt."),
                io.Vae.Input("vae", tooltip="FLUX's VAE."),
                CAST.Input("cast", tooltip="The subjects, in order."),
                io.Int.Input(
                    "reference_size",
                    default=512,
                    min=MIN_REFERENCE,
                    max=MAX_REFERENCE,
                    step=16,
                    tooltip="The longer side of every subject's picture in pixels. Larger keeps more detail and costs more time.",
                ),
                io.Image.Input(
                    "pose_image",
                    optional=True,
                    tooltip="The drawn pose, at the latent's size. An all-black one counts as none.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning"), LAYOUT.Output(display_name="layout")],
        )

    @classmethod
    def execute(
        cls, conditioning: Any, vae: VAE, cast: Cast, reference_size: int, pose_image: torch.Tensor | None = None
    ) -> io.NodeOutput:
        _check_conditioning(conditioning)
        spans = next((options[SPANS_KEY] for _, options in conditioning if SPANS_KEY in options), {})
        latents, references = [], []

        progress = comfy.utils.ProgressBar(len(cast.subjects))
        for subject in cast.subjects:
            latents.append(encode_reference(vae, subject.cut_out(), reference_size))
            described = tuple((start, stop) for start, stop in spans.get(subject.name, ()))
            grid = token_grid(latents[-1])
            references.append(Reference("subject", grid, subject.name, subject.category, described))
            progress.update(1)
        if pose_image is not None and _shows_pose(pose_image):
            latents.append(encode_reference(vae, pose_image[..., :3]))
            references.append(Reference("pose", token_grid(latents[-1])))
        return io.NodeOutput(*with_references(conditioning, latents, references))


def _check_conditioning(conditioning: Any) -> None:
    if any("reference_latents" in options for _, options in conditioning):
        raise InputError(
            EnsembleReferenceLatents.DISPLAY_NAME,
            "conditioning",
            "it already carries reference latents, which the layout could not describe; connect the plain encoded prompt",
        )


def _shows_pose(pose_image: torch.Tensor) -> bool:
    if len(pose_image) != 1:
        raise InputError(
            EnsembleReferenceLatents.DISPLAY_NAME,
            "pose_image",
            f"it holds {len(pose_image)} pictures, a layout has one pose map; pick one with Image From Batch",
        )
    return shows_pose(pose_image)


class EnsembleEURoPE(io.ComfyNode):
    """Places references off the canvas and the pose map on it."""

    DISPLAY_NAME = "EURoPE Positions"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleEURoPE",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="ASTRA's position ids: subjects stand off the canvas, so that they bring identity and no place; the"
            " pose map takes the canvas's own ids, so that it says where everything is.",
            search_aliases=[
                "Enhanced Universal Rotary Position Embedding",
                "ASTRA",
                "UnoPE",
                "RoPE",
                "position ids",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A FLUX model."),
                LAYOUT.Input("layout", tooltip="From Reference Latents."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=EUROPE,
                    tooltip="EURoPE: subjects off the canvas, pose on it. The symmetric modes are the paper's ablations: all on"
                    " the canvas (RoPE), or all off it (UnoPE).",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, layout: Layout, mode: str) -> io.NodeOutput:
        require_flux(cls.DISPLAY_NAME, model)
        if not layout.references:
            return io.NodeOutput(model)
        return io.NodeOutput(apply_europe(model, layout, mode))


def require_flux(node: str, model: ModelPatcher) -> Flux:
    """The model's network; `InputError` where it is not a FLUX.1, whose tokens are 2 x 2 latent pixels."""
    try:
        return flux_network(model)
    except ValueError as error:
        raise InputError(node, "model", str(error)) from None


NODES: list[type[io.ComfyNode]] = [EnsembleReferenceLatents, EnsembleEURoPE]
