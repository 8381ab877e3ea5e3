"""The embedded default's vision encoder: CLIP's own architecture, in the host's own class, a thousandth of its size.

The host's Load CLIP Vision knows the published sizes alone, so this one is built from the configuration below.
"""

from __future__ import annotations

from pathlib import Path

import comfy.utils
from comfy.clip_vision import ClipVisionModel

CONFIG = {
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_channels": 3,
    "patch_size": 32,
    "image_size": 224,
    "projection_dim": 64,
}


def load_tiny_vision(path: Path) -> ClipVisionModel:
    """The encoder of `path` as a host CLIP_VISION object: 50 tokens of width 64, six layers."""
    model = ClipVisionModel(CONFIG)
    model.load_sd(comfy.utils.load_torch_file(str(path), safe_load=True))
    return model
