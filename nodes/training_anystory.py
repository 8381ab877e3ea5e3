"""Training AnyStory on SDXL: first what looks at the subjects, then what finds their places.

The trainers are imported where they are used: dozens of modules that no start of ComfyUI needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy_api.latest import io

from ..attention_patches.anystory_file import AnyStory, make_anystory
from ..training.anystory_config import AnyStoryEncoderConfig, AnyStoryRouterConfig
from ..training.config import TrainingConfig
from ..training.data import TrainingData
from .training_config import check_config, config_input, config_sentence
from .types import ANYSTORY, DATA

if TYPE_CHECKING:
    from ..training.anystory_task import AnyStoryTask


def _inputs(data: str, config: io.String.Input) -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The SDXL model to train for. It stays as it is."),
        io.Vae.Input("vae", tooltip="SDXL's VAE."),
        io.Clip.Input("clip", tooltip="The model's text encoders."),
        io.ClipVision.Input(
            "clip_vision",
            tooltip="The CLIP vision model that looks at the subjects, at inference too: ViT-H/14 for SDXL.",
        ),
        DATA.Input("data", tooltip=data),
        config,
    ]


def _outputs() -> list[io.Output]:
    return [ANYSTORY.Output(display_name="anystory"), io.Image.Output(display_name="loss_plot")]


def _train(
    node: str, build: Callable[[], tuple[AnyStoryTask, TrainingData]], settings: TrainingConfig
) -> io.NodeOutput:
    from .training_run import run_training

    tasks: list[AnyStoryTask] = []

    def build_and_keep() -> tuple[Any, TrainingData]:
        task, data = build()
        tasks.append(task)
        return task, data

    result, plot = run_training(node, build_and_keep, settings)
    (file,) = result.weights.files
    return io.NodeOutput(make_anystory(file.tensors, tasks[0].sizes), plot)


class EnsembleTrainAnyStoryEncoder(io.ComfyNode):
    """Stage 1 of AnyStory."""

    DISPLAY_NAME = "Train AnyStory Encoder"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleTrainAnyStoryEncoder",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Teaches AnyStory what subjects look like and how to draw them, for an SDXL model: the first of two"
            " trainings. Train AnyStory Router is the second.",
            search_aliases=[
                "AnyStory",
                "subject encoder",
                "QFormer",
                "ReferenceNet",
                "fine-tune",
                "stage 1",
                "ensemble",
            ],
            inputs=[
                *_inputs(
                    "From Training Data: pairs of a reference and a target that shows the same subject otherwise.",
                    config_input(AnyStoryEncoderConfig, 'Such as "regions" or "queries"; the help page lists all.'),
                ),
                ANYSTORY.Input(
                    "anystory",
                    optional=True,
                    tooltip="Where to start. Without one, a fresh network grows from the model.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, config: str | None = None) -> bool | str:  # no value while it comes by a link
        return config_sentence(cls.DISPLAY_NAME, AnyStoryEncoderConfig, config)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        clip: CLIP,
        clip_vision: ClipVisionModel,
        data: TrainingData,
        config: str,
        anystory: AnyStory | None = None,
    ) -> io.NodeOutput:
        from ..training.anystory_encoder import anystory_encoder

        settings = check_config(cls.DISPLAY_NAME, AnyStoryEncoderConfig, config)
        return _train(
            cls.DISPLAY_NAME,
            lambda: anystory_encoder(model, vae, clip, clip_vision, data, settings, anystory),
            settings,
        )


class EnsembleTrainAnyStoryRouter(io.ComfyNode):
    """Stage 2 of AnyStory."""

    DISPLAY_NAME = "Train AnyStory Router"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleTrainAnyStoryRouter",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/training",
            description="Teaches AnyStory to find each subject's place while a picture forms: the second of two trainings,"
            " after Train AnyStory Encoder.",
            search_aliases=[
                "AnyStory",
                "subject router",
                "instance-aware routing",
                "Gumbel-softmax",
                "fine-tune",
                "stage 2",
                "ensemble",
            ],
            inputs=[
                *_inputs(
                    "From Training Data: pictures of several subjects, each with a mask of its place in the target.",
                    config_input(AnyStoryRouterConfig, 'Such as "routing_weight"; the help page lists all.'),
                ),
                ANYSTORY.Input("anystory", tooltip="From Train AnyStory Encoder, or Load AnyStory."),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, config: str | None = None) -> bool | str:  # no value while it comes by a link
        return config_sentence(cls.DISPLAY_NAME, AnyStoryRouterConfig, config)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        clip: CLIP,
        clip_vision: ClipVisionModel,
        data: TrainingData,
        config: str,
        anystory: AnyStory,
    ) -> io.NodeOutput:
        from ..training.anystory_router import anystory_router

        settings = check_config(cls.DISPLAY_NAME, AnyStoryRouterConfig, config)
        return _train(
            cls.DISPLAY_NAME,
            lambda: anystory_router(model, vae, clip, clip_vision, data, settings, anystory),
            settings,
        )


NODES: list[type[io.ComfyNode]] = [EnsembleTrainAnyStoryEncoder, EnsembleTrainAnyStoryRouter]
