"""The embedded default's text encoder as a node."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..models_info.minilm import load_minilm_clip
from ..models_info.registry import find_minilm


class EnsembleMiniLMTextEncoder(io.ComfyNode):
    """Loads all-MiniLM-L6-v2 as a CLIP object."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleMiniLMTextEncoder",
            display_name="MiniLM Text Encoder",
            category="ensemble/cast",
            description="all-MiniLM-L6-v2 as a CLIP object for the tiny models that come with this pack; stock text nodes work"
            " on it. For FLUX.1 use DualCLIPLoader instead.",
            search_aliases=["all-MiniLM-L6-v2", "text encoder", "clip loader", "tiny", "ensemble"],
            inputs=[],
            outputs=[io.Clip.Output(display_name="clip")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_minilm_clip(find_minilm(), folder_paths.get_folder_paths("embeddings")))


NODES: list[type[io.ComfyNode]] = [EnsembleMiniLMTextEncoder]
