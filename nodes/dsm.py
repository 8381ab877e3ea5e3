"""DSM: the cast's identities as offsets on the prompt and on the text stream of every FLUX block."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention_patches.dsm import KEY, apply_dsm, item_mask, modulate
from ..attention_patches.dsm_adapter import DSMConfig
from ..attention_patches.dsm_file import DSMError, load_dsm
from ..attention_patches.item_spans import SPANS_KEY
from ..models_info.registry import DSM_ADAPTERS, list_files
from .cast import Cast
from .errors import InputError, sentence_or_true
from .flux import require_flux
from .model_choice import chosen_file, file_version, load_chosen
from .types import CAST, DSM
from .vision import check_clip_vision, hidden_states

MAX_STRENGTH = 10.0


class EnsembleDSMLoader(io.ComfyNode):
    """Loads a DSM adapter."""

    DISPLAY_NAME = "Load DSM"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleDSMLoader",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="Loads a DSM adapter, which turns the pictures of the cast into offsets on FLUX's text.",
            search_aliases=["Disentangled Semantic Modulation", "ASTRA", "identity adapter", "ensemble"],
            inputs=[
                io.Combo.Input(
                    "dsm_name",
                    options=list_files(DSM_ADAPTERS),
                    tooltip=f"A safetensors file of models/{DSM_ADAPTERS}.",
                )
            ],
            outputs=[DSM.Output(display_name="dsm")],
        )

    @classmethod
    def validate_inputs(cls, dsm_name: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_find_adapter, dsm_name)

    @classmethod
    def fingerprint_inputs(cls, dsm_name: str) -> float:
        """An adapter that was rewritten under the same name is loaded again."""
        return file_version(DSM_ADAPTERS, dsm_name)

    @classmethod
    def execute(cls, dsm_name: str) -> io.NodeOutput:
        path = _find_adapter(dsm_name)
        load = partial(load_dsm, path)
        return io.NodeOutput(load_chosen(cls.DISPLAY_NAME, "dsm_name", dsm_name, load, DSMError))


def _find_adapter(name: str) -> Path:
    return chosen_file(
        EnsembleDSMLoader.DISPLAY_NAME, "dsm_name", DSM_ADAPTERS, name, "put the adapter's file there or choose"
    )


class EnsembleDSM(io.ComfyNode):
    """Modulates a prompt, and the blocks of the model, by the identities of the cast."""

    DISPLAY_NAME = "DSM"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleDSM",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="Tells the words of the prompt who is meant: what a CLIP vision model sees in the cast becomes"
            " offsets on the prompt and on the text inside every block. Connect both outputs.",
            search_aliases=[
                "Disentangled Semantic Modulation",
                "ASTRA",
                "identity",
                "adapter",
                "multi-subject",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The FLUX model the adapter was made for."),
                io.Conditioning.Input("conditioning", tooltip="The positive prompt. The negative needs no DSM."),
                DSM.Input("dsm", tooltip="From Load DSM."),
                CAST.Input("cast", tooltip="The subjects, in the order of your references."),
                io.ClipVision.Input("clip_vision", tooltip="The CLIP vision model the adapter was trained with."),
                io.Float.Input(
                    "global_strength",
                    default=1.0,
                    min=-MAX_STRENGTH,
                    max=MAX_STRENGTH,
                    step=0.01,
                    tooltip="How much the prompt itself is shifted towards the cast. 0 leaves it as it is.",
                ),
                io.Float.Input(
                    "layer_strength",
                    default=1.0,
                    min=-MAX_STRENGTH,
                    max=MAX_STRENGTH,
                    step=0.01,
                    tooltip="How much identity the text is given again in every block. 0 leaves them as they are.",
                ),
                io.Boolean.Input(
                    "per_item",
                    default=False,
                    optional=True,
                    tooltip="The words that describe a subject look at that subject only, all others at everybody."
                    " Needs a prompt that knows which words these are (Item Prompt); without it, all look everywhere.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model"), io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        conditioning: Any,
        dsm: ModelPatcher,
        cast: Cast,
        clip_vision: ClipVisionModel,
        global_strength: float,
        layer_strength: float,
        per_item: bool = False,
    ) -> io.NodeOutput:
        config = dsm.model.config
        _check_model(model, config)
        _check_conditioning(conditioning, config)
        _check_cast(cast, config)
        check_clip_vision(cls.DISPLAY_NAME, clip_vision, config.clip_width, config.clip_depth)
        if global_strength == 0 and layer_strength == 0:
            return io.NodeOutput(model, conditioning)
        hidden = hidden_states(clip_vision, cast, config.clip_layers)  # (S, N, P, d_clip)
        modulated = []
        for text, options in conditioning:
            allowed = _allowed(options, cast, text.shape[1], hidden.shape[1] * hidden.shape[2]) if per_item else None
            result = modulate(dsm, text, hidden, global_strength, allowed)
            carried = {} if layer_strength == 0 else {KEY: layer_strength * result.trunk}
            modulated.append([result.text, {**options, **carried}])
        if layer_strength != 0:
            model = _apply(model, dsm)
        return io.NodeOutput(model, modulated)


def _apply(model: ModelPatcher, dsm: ModelPatcher) -> ModelPatcher:
    try:
        return apply_dsm(model, dsm)
    except ValueError as error:
        raise InputError(EnsembleDSM.DISPLAY_NAME, "model", str(error)) from None


def _allowed(options: Mapping[str, Any], cast: Cast, length: int, tokens_per_subject: int) -> torch.Tensor | None:
    """(L, features) bool from the conditioning's item spans; None where it has none."""
    spans = options.get(SPANS_KEY)
    if spans is None:
        return None
    if any(not 0 <= start < stop <= length for ranges in spans.values() for start, stop in ranges):
        raise InputError(
            EnsembleDSM.DISPLAY_NAME,
            "conditioning",
            f"its item spans do not fit its {length} tokens; connect the prompt as it comes from Item Prompt",
        )
    return item_mask([spans.get(subject.name, ()) for subject in cast.subjects], length, tokens_per_subject)


def _check_model(model: ModelPatcher, config: DSMConfig) -> None:
    network = require_flux(EnsembleDSM.DISPLAY_NAME, model)
    its = (network.hidden_size, len(network.double_blocks), len(network.single_blocks), network.params.context_in_dim)
    made_for = (config.model_width, config.double_blocks, config.single_blocks, config.text_width)
    if its != made_for:
        raise InputError(
            EnsembleDSM.DISPLAY_NAME,
            "dsm",
            f"it was made for a model of {_spell_sizes(*made_for)}, this one has {_spell_sizes(*its)};"
            " connect the adapter of this model",
        )


def _spell_sizes(width: int, double: int, single: int, text_width: int) -> str:
    return f"width {width}, {double} + {single} blocks and text width {text_width}"


def _check_conditioning(conditioning: Any, config: DSMConfig) -> None:
    node = EnsembleDSM.DISPLAY_NAME
    for text, options in conditioning:
        if text.shape[-1] != config.text_width:
            raise InputError(
                node,
                "conditioning",
                f"its text is {text.shape[-1]} wide, the adapter reads {config.text_width}; encode the prompt with"
                " this model's own text encoder",
            )
        if KEY in options:
            raise InputError(node, "conditioning", "it went through DSM before; put all subjects into one cast instead")


def _check_cast(cast: Cast, config: DSMConfig) -> None:
    if not cast.subjects:
        raise InputError(EnsembleDSM.DISPLAY_NAME, "cast", "it is empty; add a subject")
    if len(cast.subjects) > config.subjects:
        raise InputError(
            EnsembleDSM.DISPLAY_NAME,
            "cast",
            f"it has {len(cast.subjects)} subjects, this adapter tells {config.subjects} apart; leave some out",
        )


NODES: list[type[io.ComfyNode]] = [EnsembleDSMLoader, EnsembleDSM]
