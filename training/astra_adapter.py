"""The DSM that a training of ASTRA begins with."""

from __future__ import annotations

from dataclasses import replace

from comfy.clip_model import CLIPVisionModelProjection
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher

from ..attention_patches.adapter_file import AdapterError
from ..attention_patches.dsm_adapter import DSMConfig, fresh_dsm
from ..attention_patches.dsm_file import load_dsm, make_dsm
from ..attention_patches.flux_call import flux_network
from ..models_info.registry import DSM_ADAPTERS
from .adapters import existing_file, resident
from .astra_config import ASTRAConfig
from .errors import TrainingError


def dsm_to_train(model: ModelPatcher, clip_vision: ClipVisionModel | None, config: ASTRAConfig) -> ModelPatcher:
    """The DSM to train: a fresh one, or the one that the settings name.

    Raises:
        TrainingError: it does not fit the models; says at which input.
    """
    if clip_vision is None or not isinstance(clip_vision.model, CLIPVisionModelProjection):
        raise TrainingError("DSM looks at the references with a CLIP vision model; connect one", "clip_vision")
    fresh = _fresh_config(model, clip_vision, config)
    if not config.dsm_name:
        return resident(make_dsm(fresh_dsm(fresh, config.seed), fresh))
    try:
        adapter = load_dsm(existing_file("dsm_name", DSM_ADAPTERS, config.dsm_name))
    except AdapterError as error:
        raise TrainingError(f"dsm_name is '{config.dsm_name}': {error}") from None
    its: DSMConfig = adapter.model.config
    if replace(fresh, width=its.width, heads=its.heads, clip_layers=its.clip_layers, subjects=its.subjects) != its:
        raise TrainingError(
            f"dsm_name is '{config.dsm_name}', which was made for another model or another CLIP vision model; connect those"
        )
    return resident(adapter)


def _fresh_config(model: ModelPatcher, clip_vision: ClipVisionModel, config: ASTRAConfig) -> DSMConfig:
    network, depth = flux_network(model), clip_vision.config["num_hidden_layers"]
    layers = config.dsm_layers or tuple(
        sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3)} | {depth - 2})
    )
    if not all(0 <= layer < depth for layer in layers):
        raise TrainingError(
            f"dsm_layers is {list(layers)}, while the CLIP vision model has the layers 0 to {depth - 1}; choose among those"
        )
    return DSMConfig(
        text_width=network.params.context_in_dim,
        width=config.dsm_width,
        heads=config.dsm_heads,
        clip_width=clip_vision.config["hidden_size"],
        clip_depth=depth,
        clip_layers=tuple(layers),
        subjects=config.dsm_subjects,
        model_width=network.hidden_size,
        double_blocks=len(network.double_blocks),
        single_blocks=len(network.single_blocks),
    )
