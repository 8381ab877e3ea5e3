"""FLUX: a cast as reference latents, and where their tokens stand."""

from __future__ import annotations

from typing import Any

import comfy.utils
import node_helpers
import torch
from comfy.ldm.flux.model import Flux
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io

from ..attention_patches.europe import EUROPE, MODES, apply_europe
from ..attention_patches.item_spans import SPANS_KEY
from ..attention_patches.layout import LAYOUT_KEY, PATCH_SIZE, Layout, Reference, Role, token_grid
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
        compression: Any = vae.spacial_compression_encode()  # one number for pictures; the host types it for video too
        step = PATCH_SIZE * compression
        spans = next((options[SPANS_KEY] for _, options in conditioning if SPANS_KEY in options), {})
        latents, references = [], []

        def add(picture: torch.Tensor, role: Role, name: str = "", category: str = "") -> None:
            latents.append(vae.encode(picture))
            described = tuple((start, stop) for start, stop in spans.get(name, ()))
            references.append(Reference(role, token_grid(latents[-1]), name, category, described))

        progress = comfy.utils.ProgressBar(len(cast.subjects))
        for subject in cast.subjects:
            add(_resize(subject.cut_out(), reference_size, step), "subject", subject.name, subject.category)
            progress.update(1)
        if pose_image is not None and _shows_pose(pose_image):
            add(_resize(pose_image[..., :3], max(pose_image.shape[1:3]), step), "pose")
        layout = Layout(tuple(references))
        if latents:
            carried = {"reference_latents": latents, LAYOUT_KEY: layout}
            conditioning = node_helpers.conditioning_set_values(conditioning, carried)
        return io.NodeOutput(conditioning, layout)


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
    return bool((pose_image[..., :3] > 0).any())


def _resize(picture: torch.Tensor, longer_side: int, step: int) -> torch.Tensor:
    """(1, H, W, 3) at its own aspect ratio, the longer side as asked, both sides whole tokens of `step` pixels."""
    height, width = picture.shape[1:3]
    scale = longer_side / max(height, width)
    new_width, new_height = (max(step, round(side * scale / step) * step) for side in (width, height))
    if (new_width, new_height) == (width, height):
        return picture
    resized = comfy.utils.common_upscale(picture.movedim(-1, 1), new_width, new_height, "lanczos", "disabled")
    return resized.movedim(1, -1)


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
    network = model.model.diffusion_model
    if not isinstance(network, Flux) or network.patch_size != PATCH_SIZE:
        wanted = "FLUX.1" if isinstance(network, Flux) else "FLUX"
        raise InputError(node, "model", f"it is a {type(model.model).__name__} model; connect a {wanted} model")
    return network


NODES: list[type[io.ComfyNode]] = [EnsembleReferenceLatents, EnsembleEURoPE]
