"""The embedded default's text and vision encoders as nodes."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..models_info.minilm import load_minilm_clip
from ..models_info.registry import TINY_VISION, MissingModelError, find_file, find_minilm
from ..models_info.tiny_vision import load_tiny_vision


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


class EnsembleTinyCLIPVision(io.ComfyNode):
    """Loads the tiny CLIP vision encoder."""

    DISPLAY_NAME = "Tiny CLIP Vision"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleTinyCLIPVision",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/cast",
            description="The CLIP vision encoder of the tiny models that come with this pack. For FLUX.1 use Load CLIP"
            " Vision instead.",
            search_aliases=["clip vision loader", "image encoder", "tiny", "ensemble"],
            inputs=[],
            outputs=[io.ClipVision.Output(display_name="clip_vision")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        path = find_file(TINY_VISION.folder, TINY_VISION.name)
        if path is None:
            raise MissingModelError(f"{cls.DISPLAY_NAME}: {TINY_VISION.missing()}.")
        return io.NodeOutput(load_tiny_vision(path))


NODES: list[type[io.ComfyNode]] = [EnsembleMiniLMTextEncoder, EnsembleTinyCLIPVision]
