"""What the nodes for SDXL ask of a model."""

from __future__ import annotations

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher

from ..attention_patches.unet_layers import attention_layers
from .errors import InputError


def require_unet(node: str, model: ModelPatcher) -> UNetModel:
    """The model's network; `InputError` where it is not a U-Net with self-attention, as SDXL's is."""
    network = model.model.diffusion_model
    if not isinstance(network, UNetModel) or not attention_layers(network):
        raise InputError(node, "model", f"it is a {type(model.model).__name__} model; connect an SDXL model")
    return network
