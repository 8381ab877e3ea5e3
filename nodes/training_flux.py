"""Training on FLUX: ASTRA and One-for-All.

The trainers are imported where they are used: dozens of modules that no start of ComfyUI needs.
"""

from __future__ import annotations

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..training.astra_config import ASTRAConfig
from ..training.data import TrainingData
from ..training.one_for_all_config import OneForAllConfig
from .training_config import check_config, config_input, config_sentence
from .types import DATA, WEIGHTS


class EnsembleTrainASTRA(io.ComfyNode):
    """Trains ASTRA's LoRA and DSM."""

    DISPLAY_NAME = "Train ASTRA"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleTrainASTRA",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Teaches a FLUX model to put several people into one picture, each with the looks of a reference and"
            " a pose of its own: a LoRA and a DSM, trained together. Save Weights makes files of them.",
            search_aliases=[
                "ASTRA",
                "Disentangled Semantic Modulation",
                "EURoPE",
                "fine-tune",
                "LoRA training",
                "multi-subject",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The FLUX.1 model to train for. It stays as it is."),
                io.Vae.Input("vae", tooltip="FLUX's VAE."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The CLIP vision model that DSM will look with, at inference too."
                ),
                DATA.Input("data", tooltip="From Training Data: targets with captions, references and poses."),
                config_input(ASTRAConfig, 'Such as "lora_rank", "mode" or "pose_dropout"; the help page lists all.'),
            ],
            outputs=[WEIGHTS.Output(display_name="weights"), io.Image.Output(display_name="loss_plot")],
        )

    @classmethod
    def validate_inputs(cls, config: str | None = None) -> bool | str:  # no value while it comes by a link
        return config_sentence(cls.DISPLAY_NAME, ASTRAConfig, config)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        clip: CLIP,
        clip_vision: ClipVisionModel,
        data: TrainingData,
        config: str,
    ) -> io.NodeOutput:
        from ..training.astra import astra
        from .training_run import run_training

        settings = check_config(cls.DISPLAY_NAME, ASTRAConfig, config)
        result, plot = run_training(
            cls.DISPLAY_NAME, lambda: astra(model, vae, clip, clip_vision, data, settings), settings
        )
        return io.NodeOutput(result.weights, plot)


class EnsembleTrainOneForAll(io.ComfyNode):
    """Trains One-for-All's LoRA and DAM."""

    DISPLAY_NAME = "Train One-for-All"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleTrainOneForAll",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Teaches a FLUX model to combine face, clothes and things of many references, from pictures that show"
            " one of them at a time: a LoRA and a DAM, trained together. Save Weights makes files of them.",
            search_aliases=[
                "One-for-All",
                "Dynamic Attention Modulation",
                "CCPA",
                "condition ids",
                "fine-tune",
                "LoRA training",
                "ensemble",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The FLUX.1 model to train for, best Kontext. It stays as it is."),
                io.Vae.Input("vae", tooltip="FLUX's VAE."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                DATA.Input(
                    "data",
                    tooltip="From Training Data. One subject is used at a time, categories in the paper's proportions.",
                ),
                config_input(
                    OneForAllConfig, 'Such as "lora_rank", "scheme" or "categories"; the help page lists all.'
                ),
            ],
            outputs=[WEIGHTS.Output(display_name="weights"), io.Image.Output(display_name="loss_plot")],
        )

    @classmethod
    def validate_inputs(cls, config: str | None = None) -> bool | str:  # no value while it comes by a link
        return config_sentence(cls.DISPLAY_NAME, OneForAllConfig, config)

    @classmethod
    def execute(cls, model: ModelPatcher, vae: VAE, clip: CLIP, data: TrainingData, config: str) -> io.NodeOutput:
        from ..training.one_for_all import one_for_all
        from .training_run import run_training

        settings = check_config(cls.DISPLAY_NAME, OneForAllConfig, config)
        result, plot = run_training(cls.DISPLAY_NAME, lambda: one_for_all(model, vae, clip, data, settings), settings)
        return io.NodeOutput(result.weights, plot)


NODES: list[type[io.ComfyNode]] = [EnsembleTrainASTRA, EnsembleTrainOneForAll]
