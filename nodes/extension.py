"""The pack as ComfyUI sees it: its folders and its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..models_info.registry import register_folders
from . import cast, dsm, encoders, flux, pose, pose_browser, pose_factory, pose_layout, prompt_normalizer


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
            flux,
            dsm,
        )
        return [node for family in families for node in family.NODES]
