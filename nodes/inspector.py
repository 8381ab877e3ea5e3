"""The attention inspector: what the picture looks at, as heat maps and as a table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention_patches.attention_inspector import Observation, Spot, apply_inspector
from ..attention_patches.attention_maps import Group, Shares
from ..attention_patches.layout import Layout, token_grid
from ..attention_patches.recording import Recording
from .contact_sheet import Tile, draw_contact_sheet
from .errors import InputError
from .flux import require_flux
from .heat_map import heat_map, percent, pictures_below
from .types import INSPECTION, LAYOUT

EACH, ALIKE = "each subject", "all alike"
SCALES = (EACH, ALIKE)


class EnsembleAttentionInspector(io.ComfyNode):
    """Writes down what the picture looks at in one block and step."""

    DISPLAY_NAME = "Attention Inspector"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAttentionInspector",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/inspect",
            description="Watches, in one block and one step, how much the picture looks at each reference, with and without"
            " DAM. The picture stays the same. Show the result with Attention Maps.",
            search_aliases=[
                "attention map",
                "attention weights",
                "One-for-All",
                "DAM",
                "heat map",
                "debug",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A FLUX model, with or without DAM."),
                LAYOUT.Input("layout", tooltip="From Reference Latents: whose tokens are whose."),
                io.Int.Input(
                    "block",
                    default=8,
                    min=0,
                    max=999,
                    tooltip="Counted from 0, double blocks first. FLUX.1 has 19 double blocks (0 to 18), then 38 single"
                    " ones (19 to 56).",
                ),
                io.Int.Input(
                    "step",
                    default=2,
                    min=0,
                    max=9999,
                    tooltip="Counted from 0 at the sampler's start. Early steps place things, late ones draw details.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model"), INSPECTION.Output(display_name="inspection")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, layout: Layout, block: int, step: int) -> io.NodeOutput:
        network = require_flux(cls.DISPLAY_NAME, model)
        if not layout.references:
            raise InputError(
                cls.DISPLAY_NAME, "layout", "it has no references; put someone into the cast of Reference Latents"
            )
        double, single = len(network.double_blocks), len(network.single_blocks)
        if not 0 <= block < double + single:
            raise InputError(
                cls.DISPLAY_NAME,
                "block",
                f"there is no block {block}; this model has {double} double and {single} single blocks, choose one of"
                f" 0 to {double + single - 1}",
            )
        spot = Spot("double", block, step) if block < double else Spot("single", block - double, step)
        return io.NodeOutput(*apply_inspector(model, layout, spot))


class EnsembleAttentionMaps(io.ComfyNode):
    """Shows what an attention inspector saw."""

    DISPLAY_NAME = "Attention Maps"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAttentionMaps",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/inspect",
            description="Heat maps of where the picture looks at each subject, and a table of how much, with and without"
            " DAM.",
            search_aliases=["attention map", "heat map", "One-for-All", "DAM", "attention weights", "ensemble"],
            inputs=[
                INSPECTION.Input("inspection", tooltip="From Attention Inspector."),
                io.Latent.Input("samples", tooltip="What the sampler made with the inspector's model."),
                io.Image.Input("image", optional=True, tooltip="The same, decoded: the maps are laid over it."),
                io.Combo.Input(
                    "scale",
                    options=list(SCALES),
                    default=EACH,
                    optional=True,
                    tooltip="each subject: every subject has a scale of its own, so that small shares show too. all alike:"
                    " one scale, so that subjects can be compared.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="table")],
        )

    @classmethod
    def execute(
        cls,
        inspection: Recording[Observation],
        samples: dict[str, Any],
        image: torch.Tensor | None = None,
        scale: str = EACH,
    ) -> io.NodeOutput:
        observation = _observation(inspection, samples["samples"])
        shares = _shares(observation)
        below = pictures_below(cls.DISPLAY_NAME, image, len(shares.shares))
        sheets = [_draw(shares, number, picture, scale) for number, picture in enumerate(below)]
        return io.NodeOutput(torch.from_numpy(np.stack(sheets)), _table(observation, shares))


def _observation(inspection: Recording[Observation], samples: torch.Tensor) -> Observation:
    """What was seen in the run that made `samples`."""
    records = inspection.find(samples)
    if not records:
        raise InputError(
            EnsembleAttentionMaps.DISPLAY_NAME,
            "samples",
            "they come from another model; connect what a sampler makes with Attention Inspector's model",
        )
    grid, seen = token_grid(samples), records[0].canvas
    if grid != seen:
        raise InputError(
            EnsembleAttentionMaps.DISPLAY_NAME,
            "samples",
            f"they have {grid[0]} x {grid[1]} tokens, the inspected run {seen[0]} x {seen[1]}; connect what the sampler"
            " makes with Attention Inspector's model",
        )
    return records[0]


def _shares(observation: Observation) -> Shares:
    """What was seen; `InputError` that says why where nothing was."""
    shares, step, steps = observation.first(), observation.spot.step, observation.steps
    if shares is not None:
        return shares
    if not observation.prompts:
        problem = (
            "the prompt carries no references of its layout; connect conditioning and layout of one Reference Latents"
        )
    elif step >= steps:
        problem = f"step {step} was never reached, the run had {steps} (0 to {steps - 1}); choose one of these"
    elif observation.areas:
        problem = "the prompt with the references is for a part of the picture only; use one for the whole picture"
    else:
        problem = f"nothing was asked of the prompt with the references in step {step}; choose another step"
    raise InputError(EnsembleAttentionMaps.DISPLAY_NAME, "inspection", problem)


def _draw(shares: Shares, picture: int, image: np.ndarray | None, scale: str) -> np.ndarray:
    """The sheet of one picture, (H, W, 3): for each reference a map, or one without and one with DAM beside it."""
    shown = [number for number, group in enumerate(shares.groups) if group.kind in ("subject", "pose")]
    versions = _versions(shares)
    tops = {number: max(float(values[picture, :, number].max()) for _, values in versions) for number in shown}
    if scale == ALIKE:
        tops = dict.fromkeys(shown, max(tops.values()))
    tiles = []
    for number in shown:
        for version, values in versions:
            share = values[picture, :, number].reshape(shares.canvas).numpy()
            tiles.append(
                Tile(
                    heat_map(share, tops[number], image),
                    None,
                    _name(shares.groups[number]),
                    f"{version and version + ':'} mean {percent(float(share.mean()))}, peak {percent(float(share.max()))}",
                )
            )
    return draw_contact_sheet(tiles, len(versions) * math.ceil(math.sqrt(len(shown) / len(versions))))


def _versions(shares: Shares) -> list[tuple[str, torch.Tensor]]:
    """Without and with DAM, each with its name; what there is without a name where the model has no DAM."""
    if shares.without_dam is None:
        return [("", shares.shares)]
    return [("without DAM", shares.without_dam), ("with DAM", shares.shares)]


def _table(observation: Observation, shares: Shares) -> str:
    """Every group's mean and peak over the picture, as Markdown."""
    spot, versions = observation.spot, _versions(shares)
    lines = [f"Attention of {spot.block_type} block {spot.block_index} in step {spot.step} of {observation.steps}"]
    head = [f"{what} {version}".strip() for what in ("mean", "peak") for version, _ in versions]
    for picture in range(len(shares.shares)):
        heading = "The picture" if len(shares.shares) == 1 else f"Picture {picture + 1}"
        lines += ["", f"| {heading} looks at | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
        for number, group in enumerate(shares.groups):
            shown = [values[picture, :, number] for _, values in versions]
            cells = [percent(float(values.mean())) for values in shown] + [
                percent(float(values.max())) for values in shown
            ]
            name = _name(group).replace("|", r"\|")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(group: Group) -> str:
    if group.kind == "words":
        return f"the words of {group.name}"
    named = {"pose": "pose map", "canvas": "the picture itself", "text": "other words", "other": "other tokens"}
    return named.get(group.kind, group.name)


NODES: list[type[io.ComfyNode]] = [EnsembleAttentionInspector, EnsembleAttentionMaps]
