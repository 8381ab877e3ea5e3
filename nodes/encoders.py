"""The embedded default's models that no stock loader reads, as nodes."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..models_info.minilm import load_minilm_clip
from ..models_info.registry import TINY_SDXL, TINY_VISION, MissingModelError, ModelFile, find_file, find_minilm
from ..models_info.tiny_sdxl import load_tiny_sdxl
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
        return io.NodeOutput(load_tiny_vision(_path(cls.DISPLAY_NAME, TINY_VISION)))


class EnsembleTinySDXL(io.ComfyNode):
    """Loads the tiny SDXL."""

    DISPLAY_NAME = "Tiny SDXL"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleTinySDXL",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/cast",
            description="The tiny SDXL that comes with this pack. With a checkpoint of your own use Load Checkpoint instead.",
            search_aliases=["sdxl", "unet loader", "checkpoint", "tiny", "ensemble"],
            inputs=[],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_tiny_sdxl(_path(cls.DISPLAY_NAME, TINY_SDXL)))


def _path(node: str, entry: ModelFile) -> Path:
    path = find_file(entry.folder, entry.name)
    if path is None:
        raise MissingModelError(f"{node}: {entry.missing()}.")
    return path


NODES: list[type[io.ComfyNode]] = [EnsembleMiniLMTextEncoder, EnsembleTinyCLIPVision, EnsembleTinySDXL]
