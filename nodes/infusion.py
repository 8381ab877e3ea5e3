"""SeAl, second half: cached appearances are infused into every picture made with the model, and shown where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..attention_patches.anystory import KEY as ANYSTORY
from ..attention_patches.anystory_routing import RoutingMaps
from ..attention_patches.appearance_cache import cached_layers
from ..attention_patches.appearance_infusion import CONCATENATED, CONSTANT, LINEAR, SCHEDULES, SIMILARITIES, Schedule
from ..attention_patches.appearance_patch import Settings, Source, apply_infusion
from ..attention_patches.appearance_tokens import Appearance
from ..attention_patches.infusion_maps import InfusionRecord, InfusionRecording, heat, layers, share_infused, steps
from .cast import MAX_SUBJECTS
from .contact_sheet import Tile, draw_contact_sheet
from .errors import InputError, sentence_or_true
from .heat_map import heat_map, percent, pictures_below
from .types import APPEARANCE, INSPECTION, ROUTING
from .unet import require_unet

MAX_DELTA = 100.0
MAX_TOP_K = 64
MAX_NUMBER = 9999


class EnsembleAppearanceInfusion(io.ComfyNode):
    """Makes the model take over a cached appearance where the picture resembles it."""

    DISPLAY_NAME = "Appearance Infusion"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleAppearanceInfusion",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Gives the subject of the picture the looks of a cached appearance: every place takes over what the"
            " appearance has most like it, gently at first and strongly at the end. Several subjects are kept apart by masks"
            " or by AnyStory's routing.",
            search_aliases=[
                "SeAl",
                "Reference-guided Appearance Infusion",
                "identity preservation",
                "semantic matching",
                "training-free",
                "self-attention",
                "multi-subject",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model the appearances were cached with."),
                io.Autogrow.Input(
                    "appearances",
                    template=io.Autogrow.TemplatePrefix(
                        APPEARANCE.Input("appearance", tooltip="From Appearance Cache."),
                        prefix="appearance",
                        min=1,
                        max=MAX_SUBJECTS,
                    ),
                    tooltip="One a subject, in the order of the cast.",
                ),
                io.Autogrow.Input(
                    "masks",
                    template=io.Autogrow.TemplatePrefix(
                        io.Mask.Input(
                            "mask",
                            optional=True,
                            tooltip="White where the appearance of the same number belongs, over the whole picture, of any"
                            " size. Grey infuses less.",
                        ),
                        prefix="mask",
                        min=0,
                        max=MAX_SUBJECTS,
                    ),
                    optional=True,
                    tooltip="Where each appearance belongs, in the same order. One without a mask may go anywhere.",
                ),
                ROUTING.Input(
                    "routing",
                    optional=True,
                    tooltip="From AnyStory: each appearance goes where the subject of the same number is.",
                ),
                _share(
                    "tau_start",
                    0.4,
                    "How alike (cosine) a place must be to take something over, at the start. High keeps the structure safe.",
                ),
                _share("tau_end", 0.15, "The same at the end. Lower lets more of the picture take part."),
                _strength("delta_start", 0.0, "How much is taken over at the start. 0 leaves the structure alone."),
                _strength("delta_end", 3.0, "The same at the end. 3 makes three quarters of a place the appearance's."),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default=LINEAR,
                    tooltip="How tau and delta go from start to end: evenly, gently at both ends, at once halfway, or end values"
                    " throughout (constant).",
                ),
                io.Int.Input(
                    "top_k",
                    default=1,
                    min=1,
                    max=MAX_TOP_K,
                    tooltip="How many places of the appearance each place looks at. 1 is sharp, more are softer.",
                ),
                io.Combo.Input(
                    "similarity",
                    options=list(SIMILARITIES),
                    default=CONCATENATED,
                    optional=True,
                    advanced=True,
                    tooltip="Compare all attention heads as one, or each by itself and take the mean.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="From where in the run anything is infused; tau and delta go from start to end within it.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Until where in the run anything is infused.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model"), INSPECTION.Output(display_name="inspection")],
        )

    @classmethod
    def validate_inputs(
        cls,
        tau_start: float | None = None,  # None while they come by a link
        tau_end: float | None = None,
        delta_start: float | None = None,
        delta_end: float | None = None,
        top_k: int | None = None,
        start_percent: float | None = None,
        end_percent: float | None = None,
        appearances: Any = None,  # the host always hands growing inputs over
        masks: Any = None,
    ) -> bool | str:
        given = {
            "tau_start": 0.0 if tau_start is None else tau_start,
            "tau_end": 0.0 if tau_end is None else tau_end,
            "delta_start": 0.0 if delta_start is None else delta_start,
            "delta_end": 0.0 if delta_end is None else delta_end,
            "top_k": 1 if top_k is None else top_k,
            "start_percent": 0.0 if start_percent is None else start_percent,
            "end_percent": 1.0 if end_percent is None else end_percent,
        }
        return sentence_or_true(_check_settings, given)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        appearances: io.Autogrow.Type,
        tau_start: float,
        tau_end: float,
        delta_start: float,
        delta_end: float,
        schedule: str,
        top_k: int,
        masks: io.Autogrow.Type | None = None,
        routing: RoutingMaps | None = None,
        similarity: str = CONCATENATED,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        _check_settings(
            {
                "tau_start": tau_start,
                "tau_end": tau_end,
                "delta_start": delta_start,
                "delta_end": delta_end,
                "top_k": top_k,
                "start_percent": start_percent,
                "end_percent": end_percent,
            }
        )
        sources = _sources(model, appearances, masks or {}, routing)
        if delta_end == 0 and (delta_start == 0 or schedule == CONSTANT):
            return io.NodeOutput(model, InfusionRecording())
        course = Schedule(tau_start, tau_end, delta_start, delta_end, schedule, start_percent, end_percent)
        return io.NodeOutput(*apply_infusion(model, sources, Settings(course, top_k, similarity)))


def _share(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=-1.0, max=1.0, step=0.01, tooltip=tooltip)


def _strength(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=MAX_DELTA, step=0.05, tooltip=tooltip)


def _check_settings(given: Mapping[str, float]) -> None:
    node = EnsembleAppearanceInfusion.DISPLAY_NAME
    for name in ("tau_start", "tau_end"):
        if not -1 <= given[name] <= 1:
            raise InputError(
                node, name, f"{given[name]:g} is no cosine, which lie between -1 and 1; set it between 0 and 1"
            )
    for name in ("delta_start", "delta_end"):
        if not 0 <= given[name] <= MAX_DELTA:
            raise InputError(node, name, f"{given[name]:g} is out of range; set it between 0 and {MAX_DELTA:g}")
    if not 1 <= given["top_k"] <= MAX_TOP_K:
        raise InputError(
            node, "top_k", f"{given['top_k']:g} places cannot be looked at; choose a number from 1 to {MAX_TOP_K}"
        )
    start, end = given["start_percent"], given["end_percent"]
    if not 0 <= start < end <= 1:
        raise InputError(
            node,
            "end_percent",
            f"the infusion would go from {start:g} to {end:g} of the run; let it end after its start",
        )


def _sources(
    model: ModelPatcher, appearances: Mapping[str, Appearance], masks: Mapping[str, Any], routing: RoutingMaps | None
) -> list[Source]:
    """Every appearance with its mask and its subject, by the numbers of their sockets."""
    node = EnsembleAppearanceInfusion.DISPLAY_NAME
    layers = cached_layers(require_unet(node, model))
    numbers = sorted(int(name.removeprefix("appearance")) for name in appearances)
    _check_routing(model, routing, len(numbers))
    placed = {int(name.removeprefix("mask")): mask for name, mask in masks.items() if mask is not None}
    for number in sorted(placed.keys() - numbers):
        raise InputError(node, "masks", f"mask {number + 1} has no appearance of that number; connect one or remove it")
    sources = []
    for place, number in enumerate(numbers):
        appearance = appearances[f"appearance{number}"]
        if appearance.network.layers != layers:
            raise InputError(
                node,
                "appearances",
                f"appearance {number + 1} was cached with another model, a {appearance.network.base} of other layers;"
                " cache it with the model you sample with",
            )
        mask = _mask(number, placed[number]) if number in placed else None
        sources.append(Source(appearance, mask, None if routing is None else place))
    return sources


def _check_routing(model: ModelPatcher, routing: RoutingMaps | None, count: int) -> None:
    node = EnsembleAppearanceInfusion.DISPLAY_NAME
    if routing is None:
        return
    if not model.get_wrappers(WrappersMP.DIFFUSION_MODEL, ANYSTORY):
        raise InputError(
            node, "routing", "the model does not carry AnyStory, which makes the routing; connect AnyStory's model too"
        )
    if count > len(routing.names):
        raise InputError(
            node,
            "appearances",
            f"there are {count}, AnyStory routes {len(routing.names)} subjects; leave some out or add subjects there",
        )


def _mask(number: int, mask: torch.Tensor) -> torch.Tensor:
    node = EnsembleAppearanceInfusion.DISPLAY_NAME
    mask = mask.reshape(-1, *mask.shape[-2:])
    if len(mask) != 1:
        raise InputError(
            node,
            "masks",
            f"mask {number + 1} holds {len(mask)} masks; one appearance has one, for all pictures of a batch",
        )
    if not bool((mask > 0).any()):
        raise InputError(
            node, "masks", f"mask {number + 1} is empty; paint white where the subject is, or leave the mask out"
        )
    return mask[0].float().clamp(0, 1)


class EnsembleInfusionMaps(io.ComfyNode):
    """Shows where appearances were infused."""

    DISPLAY_NAME = "Infusion Maps"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleInfusionMaps",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Heat maps of where the picture took something over from each appearance, for all layers and steps or"
            " for one, and a table of how much.",
            search_aliases=["SeAl", "validity mask", "gate", "heat map", "identity", "debug", "ensemble"],
            inputs=[
                INSPECTION.Input("inspection", tooltip="From Appearance Infusion."),
                io.Latent.Input("samples", tooltip="What the sampler made with the infusion's model."),
                io.Image.Input("image", optional=True, tooltip="The same, decoded: the maps are laid over it."),
                io.Int.Input(
                    "layer",
                    default=0,
                    min=0,
                    max=MAX_NUMBER,
                    optional=True,
                    tooltip="0 shows all layers together; 1 is the first, as the table counts them.",
                ),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=MAX_NUMBER,
                    optional=True,
                    tooltip="0 shows all steps together; 1 is the first that infused, as the table counts them.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image"), io.String.Output(display_name="table")],
        )

    @classmethod
    def execute(
        cls,
        inspection: InfusionRecording,
        samples: dict[str, Any],
        image: torch.Tensor | None = None,
        layer: int = 0,
        step: int = 0,
    ) -> io.NodeOutput:
        records = _records(inspection, samples["samples"])
        chosen_layers = _pick("layer", layers(records), layer)
        chosen_steps = _pick("step", steps(records), step)
        shown = [record for record in records if record.progress in chosen_steps]
        found = heat(shown, chosen_layers)  # (B, A, H, W)
        below = pictures_below(cls.DISPLAY_NAME, image, len(found))
        sheets = [_draw(maps.numpy(), picture) for maps, picture in zip(found, below, strict=True)]
        return io.NodeOutput(torch.from_numpy(np.stack(sheets)), _table(records))


def _records(inspection: Any, samples: torch.Tensor) -> list[InfusionRecord]:
    """What was infused in the run that made `samples`."""
    node = EnsembleInfusionMaps.DISPLAY_NAME
    if not isinstance(inspection, InfusionRecording):
        raise InputError(node, "inspection", "it comes from another kind of node; connect that of Appearance Infusion")
    records = [record for record in inspection.find(samples) if record.numbers]
    if not records:
        raise InputError(
            node,
            "samples",
            "nothing was infused when they were made; sample with Appearance Infusion's model, with delta above 0",
        )
    canvas, size = records[0].canvas, tuple(samples.shape[-2:])
    if canvas != size:
        raise InputError(
            node,
            "samples",
            f"they are {size[1]} x {size[0]}, the run made {canvas[1]} x {canvas[0]}; connect what the sampler makes with"
            " Appearance Infusion's model",
        )
    return records


def _pick(name: str, found: Sequence[Any], number: int) -> Sequence[Any]:
    """All for 0, otherwise the one of that number."""
    if not 0 <= number <= len(found):
        raise InputError(
            EnsembleInfusionMaps.DISPLAY_NAME,
            name,
            f"there is no {number}, the run infused in {len(found)}; choose 1 to {len(found)}, or 0 for all",
        )
    return found[number - 1 : number] if number else found


def _draw(maps: np.ndarray, image: np.ndarray | None) -> np.ndarray:
    """The sheet of one picture, (height, width, 3): a map an appearance."""
    return draw_contact_sheet(
        [
            Tile(
                heat_map(share, 1.0, image),
                None,
                f"appearance {number}",
                f"mean {percent(float(share.mean()))}, peak {percent(float(share.max()))}",
            )
            for number, share in enumerate(maps, start=1)
        ]
    )


def _table(records: Sequence[InfusionRecord]) -> str:
    """The share of tokens that took something over, by layer and by step, as Markdown."""
    found = layers(records)
    lines = ["| layer | | infused |", "|---:|---|---:|"]
    lines += [
        f"| {number} | {layer.name} | {percent(share_infused(records, [layer]))} |"
        for number, layer in enumerate(found, start=1)
    ]
    lines += ["", "| step | at | infused |", "|---:|---:|---:|"]
    for number, progress in enumerate(steps(records), start=1):
        same = [record for record in records if record.progress == progress]
        lines.append(f"| {number} | {percent(progress)} | {percent(share_infused(same, found))} |")
    return "\n".join(lines)


NODES: list[type[io.ComfyNode]] = [EnsembleAppearanceInfusion, EnsembleInfusionMaps]
