"""DAM: every token of FLUX's attention gets a temperature of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..attention_patches.dam import apply_dam
from ..attention_patches.dam_file import DAMError, load_dam
from ..attention_patches.dam_generator import DAMConfig
from ..models_info.registry import DAM_ADAPTERS, list_files
from .errors import InputError, sentence_or_true
from .flux import require_flux
from .model_choice import chosen_file, file_version, load_chosen
from .types import DAM

MAX_STRENGTH = 2.0


class EnsembleDAMLoader(io.ComfyNode):
    """Loads a DAM."""

    DISPLAY_NAME = "Load DAM"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleDAMLoader",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="Loads a DAM, small networks that decide for every token of FLUX how sharply it looks at others.",
            search_aliases=[
                "Dynamic Attention Modulation",
                "One-for-All",
                "temperature generator",
                "attention dilution",
                "ensemble",
            ],
            inputs=[
                io.Combo.Input(
                    "dam_name",
                    options=list_files(DAM_ADAPTERS),
                    tooltip=f"A safetensors file of models/{DAM_ADAPTERS}.",
                )
            ],
            outputs=[DAM.Output(display_name="dam")],
        )

    @classmethod
    def validate_inputs(cls, dam_name: str | None = None) -> bool | str:  # no value while it comes by a link
        return sentence_or_true(_find_adapter, dam_name)

    @classmethod
    def fingerprint_inputs(cls, dam_name: str) -> float:
        """A DAM that was rewritten under the same name is loaded again."""
        return file_version(DAM_ADAPTERS, dam_name)

    @classmethod
    def execute(cls, dam_name: str) -> io.NodeOutput:
        path = _find_adapter(dam_name)
        load = partial(load_dam, path)
        return io.NodeOutput(load_chosen(cls.DISPLAY_NAME, "dam_name", dam_name, load, DAMError))


def _find_adapter(name: str) -> Path:
    return chosen_file(
        EnsembleDAMLoader.DISPLAY_NAME, "dam_name", DAM_ADAPTERS, name, "put the DAM's file there or choose"
    )


class EnsembleDAM(io.ComfyNode):
    """Gives every token of a model's attention its temperature."""

    DISPLAY_NAME = "DAM"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleDAM",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/flux",
            description="Lets every part of the picture decide, in every block and step, how sharply it looks: at what"
            " concerns it most, or at much. Keeps several references from crowding each other out.",
            search_aliases=[
                "Dynamic Attention Modulation",
                "One-for-All",
                "attention temperature",
                "attention dilution",
                "multi-subject",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The FLUX model the DAM was made for."),
                DAM.Input("dam", tooltip="From Load DAM."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=MAX_STRENGTH,
                    step=0.01,
                    tooltip="0 leaves the attention as it is, 1 is what the DAM was trained for, 2 doubles its effect.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, dam: ModelPatcher, strength: float) -> io.NodeOutput:
        _check_model(model, dam.model.config)
        if strength == 0:
            return io.NodeOutput(model)
        try:
            return io.NodeOutput(apply_dam(model, dam, strength))
        except ValueError as error:
            raise InputError(cls.DISPLAY_NAME, "model", str(error)) from None


def _check_model(model: ModelPatcher, config: DAMConfig) -> None:
    network = require_flux(EnsembleDAM.DISPLAY_NAME, model)
    its = (network.hidden_size, len(network.double_blocks), len(network.single_blocks))
    made_for = (config.model_width, config.double_blocks, config.single_blocks)
    if its != made_for:
        raise InputError(
            EnsembleDAM.DISPLAY_NAME,
            "dam",
            f"it was made for a model of {_spell_sizes(*made_for)}, this one has {_spell_sizes(*its)};"
            " connect the DAM of this model",
        )


def _spell_sizes(width: int, double: int, single: int) -> str:
    return f"width {width} and {double} + {single} blocks"


NODES: list[type[io.ComfyNode]] = [EnsembleDAMLoader, EnsembleDAM]
