"""What a training of FLUX is built from, checked before its first step."""

from __future__ import annotations

from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..attention_patches.flux_call import flux_network
from .data import TrainingData
from .encoding import Keep
from .errors import TrainingError
from .flux_config import FluxConfig
from .flux_encoding import FluxEncoders
from .sample import TrainingSample


def drawn_data(data: TrainingData, config: FluxConfig) -> TrainingData:
    """The data as a training with these settings draws it."""
    return data.with_augmentation() if config.augment_references else data


def shown_sample(data: TrainingData, config: FluxConfig) -> TrainingSample | None:
    """What sample pictures are made of: the first sample of the run, as its source has it."""
    return data.load(data.batch(0, 1)[0]) if config.picture_every else None


def flux_encoders(
    model: ModelPatcher, vae: VAE, clip: CLIP, clip_vision: ClipVisionModel | None, keep: Keep
) -> FluxEncoders:
    """The encoders of a training of `model`.

    Raises:
        TrainingError: something does not fit; says at which input.
    """
    try:
        network = flux_network(model)
    except ValueError as error:
        raise TrainingError(str(error), "model") from None
    encoders = FluxEncoders(vae, clip, clip_vision, keep)
    channels = network.params.in_channels
    if vae.latent_channels != channels:
        raise TrainingError(
            f"it makes latents of {vae.latent_channels} channels, the model reads {channels}; connect the model's own VAE",
            "vae",
        )
    try:
        found = encoders.prompt("", {}).text.shape[-1]
    except ValueError as error:
        raise TrainingError(str(error), "clip") from None
    if found != network.params.context_in_dim:
        raise TrainingError(
            f"its text is {found} wide, the model reads {network.params.context_in_dim}; connect the model's own text encoder",
            "clip",
        )
    return encoders
