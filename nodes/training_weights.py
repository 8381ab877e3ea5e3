"""A training's result, into the folders where the loader nodes find it."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..attention_patches.anystory_file import AnyStory, anystory_metadata
from ..models_info.registry import ANYSTORY_NETWORKS
from ..training.errors import TrainingError
from ..training.task import WeightFile, Weights
from ..training.weights import check_name, save_weights
from .errors import InputError, sentence_or_true
from .types import ANYSTORY, WEIGHTS


class EnsembleSaveWeights(io.ComfyNode):
    """Saves trained weights."""

    DISPLAY_NAME = "Save Weights"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleSaveWeights",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Saves what a training made into ComfyUI's models folders, where the loader nodes find it: a LoRA"
            " in models/loras, an adapter in its own folder.",
            search_aliases=[
                "export lora",
                "save trained",
                "checkpoint",
                "ASTRA",
                "One-for-All",
                "AnyStory",
                "ensemble",
            ],
            is_output_node=True,
            inputs=[
                io.MultiType.Input(
                    "weights",
                    types=[WEIGHTS, ANYSTORY],
                    tooltip="From a training node: weights, or an AnyStory that was trained.",
                ),
                io.String.Input(
                    "name",
                    default="my_cast",
                    tooltip="The files' name; a number is added where that name is taken.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Replace files of that name instead of adding a number.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="Where the files are, one a line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_name, name)

    @classmethod
    def execute(cls, weights: Weights | AnyStory, name: str, overwrite: bool = False) -> io.NodeOutput:
        files = _anystory_weights(weights) if isinstance(weights, AnyStory) else weights
        try:
            paths = save_weights(files, _check_name(name), overwrite)
        except TrainingError as error:
            raise InputError(cls.DISPLAY_NAME, error.input_name, str(error)) from None
        text = "\n".join(map(str, paths))
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def _check_name(name: str) -> str:
    try:
        return check_name(name)
    except TrainingError as error:
        raise InputError(EnsembleSaveWeights.DISPLAY_NAME, "name", str(error)) from None


def _anystory_weights(anystory: AnyStory) -> Weights:
    """Both halves of an AnyStory as the one file that they came from."""
    tensors = {
        name: value.detach().cpu()
        for half in (anystory.encoding, anystory.injecting)
        for name, value in half.model.state_dict().items()
    }
    return Weights((WeightFile(ANYSTORY_NETWORKS, "", tensors, anystory_metadata(anystory.config)),))


NODES: list[type[io.ComfyNode]] = [EnsembleSaveWeights]
