"""The pack as ComfyUI sees it: its folders and its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..models_info.registry import register_folders
from . import (
    anchor_align,
    anystory,
    anystory_encode,
    appearance,
    cast,
    condition_positions,
    dam,
    delta_bridge,
    dsm,
    encoders,
    evaluation,
    flux,
    infusion,
    inspector,
    item_prompt,
    pose,
    pose_browser,
    pose_factory,
    pose_layout,
    prompt_normalizer,
    sam,
    training_anystory,
    training_construction,
    training_data,
    training_flux,
    training_weights,
)
from .given import guarded


class EnsembleExtension(ComfyExtension):
    """Registers the model folders, then hands over the nodes."""

    async def on_load(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        families = (
            cast,
            encoders,
            pose,
            pose_browser,
            pose_layout,
            prompt_normalizer,
            pose_factory,
            item_prompt,
            flux,
            condition_positions,
            dsm,
            dam,
            inspector,
            anystory_encode,
            anystory,
            sam,
            anchor_align,
            appearance,
            infusion,
            delta_bridge,
            training_construction,
            training_data,
            training_flux,
            training_anystory,
            training_weights,
            evaluation,
        )
        return [guarded(node) for family in families for node in family.NODES]
