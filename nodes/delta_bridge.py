"""Delta-Bridge: lets the text change what it names about an appearance, as a guider and as a patch of the model."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention_patches.delta_bridge import COSINE, SCHEDULES, apply_delta_bridge
from .errors import InputError, sentence_or_true

MAX_STRENGTH = 100.0  # the host's bound for cfg, on whose scale it is
MAX_BLUR_ROUNDS = 100
_ALIASES = ["SeAl", "semantic delta", "text-appearance delta", "dual-branch guidance", "low-pass guidance", "ensemble"]


def _settings() -> list[io.Input]:
    """strength, end_percent and blur_rounds, in the order in which both nodes have them."""
    return [
        io.Float.Input(
            "strength",
            default=3.0,
            min=0.0,
            max=MAX_STRENGTH,
            step=0.1,
            tooltip="How hard the picture is pulled from the appearance prompt towards the positive one, at the start. On the"
            " scale of cfg. 0 leaves plain guidance.",
        ),
        io.Float.Input(
            "end_percent",
            default=0.6,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far into the sampling the pull has faded to nothing. From there on steps cost no more than usual.",
        ),
        io.Int.Input(
            "blur_rounds",
            default=4,
            min=0,
            max=MAX_BLUR_ROUNDS,
            tooltip="How much the pull is smoothed: colours and shapes pass, fine detail of the appearance is left alone. 0"
            " smooths nothing.",
        ),
    ]


def _schedule() -> io.Input:
    return io.Combo.Input(
        "schedule",
        options=list(SCHEDULES),
        default=COSINE,
        optional=True,
        tooltip="How the pull fades until end_percent: cosine stays strong early and ends gently, linear falls evenly,"
        " constant does not fade but stops there.",
    )


def _appearance() -> io.Input:
    return io.Conditioning.Input(
        "appearance_positive",
        tooltip="A prompt for the appearance picture as it is (a blue shirt), where your positive prompt says what you want (a"
        " red shirt). Without words for quality. An area or mask on it limits the pull to that place.",
    )


class EnsembleDeltaBridgeGuider(io.ComfyNode):
    """A CFG guider that is pulled along the difference of two prompts."""

    DISPLAY_NAME = "Delta-Bridge Guider"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleDeltaBridgeGuider",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Guidance for SamplerCustomAdvanced that lets the text win where it contradicts the appearance: the"
            " difference between your prompt and a prompt for the appearance picture is smoothed and added, early in the"
            " sampling. For a plain KSampler use Delta-Bridge.",
            search_aliases=["guider", *_ALIASES],
            inputs=[
                io.Model.Input("model", tooltip="Any model for images or video: SDXL, FLUX, v-prediction, flow."),
                io.Conditioning.Input("positive", tooltip="The prompt of the picture you want."),
                _appearance(),
                io.Conditioning.Input("negative", tooltip="The negative prompt, as for a KSampler."),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance, as for a KSampler.",
                ),
                *_settings(),
                io.Conditioning.Input(
                    "quality_positive",
                    optional=True,
                    tooltip="Encoded words for quality (high quality, sharp focus). They are appended to positive only, so that"
                    " they are never taken for something the appearance lacks.",
                ),
                _schedule(),
            ],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def validate_inputs(cls, strength: float | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(lambda value: _check_strength(cls.DISPLAY_NAME, value), strength)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: Any,
        appearance_positive: Any,
        negative: Any,
        cfg: float,
        strength: float,
        end_percent: float,
        blur_rounds: int,
        quality_positive: Any = None,
        schedule: str = COSINE,
    ) -> io.NodeOutput:
        guider = comfy.samplers.CFGGuider(
            _bridged(cls.DISPLAY_NAME, model, appearance_positive, strength, end_percent, blur_rounds, schedule)
        )
        guider.set_conds(_with_quality(positive, quality_positive), negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


class EnsembleDeltaBridge(io.ComfyNode):
    """The same for every sampler, as a patch of the model."""

    DISPLAY_NAME = "Delta-Bridge"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleDeltaBridge",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/seal",
            description="Lets the text win where it contradicts the appearance, with a plain KSampler: the difference between"
            " the sampler's positive prompt and a prompt for the appearance picture is smoothed and added, early in the"
            " sampling.",
            search_aliases=["guidance", *_ALIASES],
            inputs=[
                io.Model.Input("model", tooltip="Any model for images or video: SDXL, FLUX, v-prediction, flow."),
                _appearance(),
                *_settings(),
                _schedule(),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, strength: float | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(lambda value: _check_strength(cls.DISPLAY_NAME, value), strength)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        appearance_positive: Any,
        strength: float,
        end_percent: float,
        blur_rounds: int,
        schedule: str = COSINE,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            _bridged(cls.DISPLAY_NAME, model, appearance_positive, strength, end_percent, blur_rounds, schedule)
        )


def _bridged(
    node: str,
    model: ModelPatcher,
    appearance: Any,
    strength: float,
    end_percent: float,
    blur_rounds: int,
    schedule: str,
) -> ModelPatcher:
    """The model with the correction, after a look at the inputs that both nodes have."""
    _check(node, strength, end_percent, blur_rounds, schedule)
    _require_text(node, "appearance_positive", appearance)
    return apply_delta_bridge(model, appearance, strength, end_percent, blur_rounds, schedule)


def _with_quality(positive: Any, quality: Any) -> Any:
    """As Conditioning (Concat) does: the words follow those of every entry, which keeps its pooled embedding and options."""
    if quality is None:
        return positive
    _require_text(EnsembleDeltaBridgeGuider.DISPLAY_NAME, "quality_positive", quality)
    words = quality[0][0]  # (1, L, d)
    for text, _ in positive:
        if text.shape[-1] != words.shape[-1]:
            raise InputError(
                EnsembleDeltaBridgeGuider.DISPLAY_NAME,
                "quality_positive",
                f"its text is {words.shape[-1]} wide, that of positive {text.shape[-1]}; encode both with this model's own text"
                " encoder",
            )
    return [[torch.cat((text, words), dim=1), options.copy()] for text, options in positive]


def _require_text(node: str, input_name: str, conditioning: Any) -> None:
    if not conditioning:
        raise InputError(node, input_name, "it is empty; connect an encoded prompt")


def _check_strength(node: str, strength: float) -> None:
    if not (math.isfinite(strength) and 0 <= strength <= MAX_STRENGTH):
        raise InputError(
            node,
            "strength",
            f"{strength:g} is not between 0 and {MAX_STRENGTH:g}; to pull the other way, swap the two prompts",
        )


def _check(node: str, strength: float, end_percent: float, blur_rounds: int, schedule: str) -> None:
    """The host keeps widgets within their bounds; values that come by a link are checked here only."""
    _check_strength(node, strength)
    if not 0 <= end_percent <= 1:
        problem = f"{end_percent:g} is not between 0 (the start of the sampling) and 1 (its end)"
        raise InputError(node, "end_percent", problem)
    if not 0 <= blur_rounds <= MAX_BLUR_ROUNDS:
        raise InputError(node, "blur_rounds", f"{blur_rounds} is not between 0 (no smoothing) and {MAX_BLUR_ROUNDS}")
    if schedule not in SCHEDULES:
        raise InputError(node, "schedule", f"there is no '{schedule}'; choose one of: {', '.join(SCHEDULES)}")


NODES: list[type[io.ComfyNode]] = [EnsembleDeltaBridgeGuider, EnsembleDeltaBridge]
