"""The training of a whole FLUX-architecture model on captions; it made the base of this pack's tiny models.

With references and pose maps as context, by choice, so that such a base knows what they are for, as FLUX.1-Kontext does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from comfy.ldm.flux.layers import timestep_embedding
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..attention_patches.europe import EUROPE, apply_europe
from ..attention_patches.layout import Layout
from .config import SavedAs
from .data import TrainingData
from .encoding import Keep, keep_in_memory
from .flux_config import FluxConfig
from .flux_encoding import FluxEncoders
from .flux_setup import drawn_data, flux_encoders, shown_sample
from .flux_task import Absent, FluxTask, require_smaller_references
from .model import TrainableModel
from .sample import TrainingSample
from .task import Prepared, WeightFile, Weights

DIFFUSION_MODELS = "diffusion_models"
OWN = "the model's own"


@dataclass(frozen=True)
class FluxBaseConfig(FluxConfig):
    """Settings for small models.

    Attributes:
        references, pose_maps: whether these are shown as context.
        mode: where they stand: where the host puts references when no node places them, or as in EURoPE Positions.
        anew: begin with weights that suit a training from nothing, rather than with the model's own.
        hears_guidance: whether what is saved goes on hearing FluxGuidance, as a guidance-distilled model does. Others have been
            told one guidance alone, and answer any other as they do that one.
    """

    steps: int = 100_000
    batch_size: int = 16
    learning_rate: float = 3e-4
    warmup_steps: int = 1_000
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    ema_decay: float = 0.999
    condition_dropout: float = 0.1
    reference_dropout: float = 0.1
    pose_dropout: float = 0.1
    picture_guidance: float = 1.0
    references: bool = True
    pose_maps: bool = True
    mode: Literal["the model's own", "EURoPE", "symmetric RoPE", "symmetric UnoPE"] = EUROPE
    anew: bool = False
    hears_guidance: bool = False
    saved_as: SavedAs = "bf16"


class FluxBase(FluxTask):
    """Trains every weight of a FLUX."""

    name = "FLUX base"
    config: FluxBaseConfig

    def __init__(
        self, model: TrainableModel, encoders: FluxEncoders, config: FluxBaseConfig, shown: TrainingSample | None = None
    ) -> None:
        self.shows_references, self.shows_pose = config.references, config.pose_maps
        super().__init__(model, encoders, config, shown)

    def place(self, model: ModelPatcher, layout: Layout) -> ModelPatcher:
        return model if self.config.mode == OWN else apply_europe(model, layout, self.config.mode)

    def encode(self, sample: TrainingSample, absent: Absent) -> Prepared:
        prepared = super().encode(sample, absent)
        return prepared if self.config.mode == OWN else require_smaller_references(prepared)

    def weights(self) -> Weights:
        state = self.model.full_state()
        if not self.config.hears_guidance:
            state |= deaf_to_guidance(self.model.network, self.config.guidance)
        return Weights((WeightFile(DIFFUSION_MODELS, "", state, {}),))


def deaf_to_guidance(network: torch.nn.Module, guidance: float) -> dict[str, torch.Tensor]:
    """The weights that have to change for a FLUX to answer every guidance as it answers this one, float32 on the CPU."""
    told: Any = network.guidance_in
    if isinstance(told, torch.nn.Identity):  # a FLUX that hears none anyway
        return {}
    with torch.no_grad():
        weight = told.out_layer.weight
        answer = told(timestep_embedding(torch.tensor([guidance], device=weight.device), 256).to(weight.dtype))[0]
    return {
        "guidance_in.out_layer.weight": torch.zeros(weight.shape),
        "guidance_in.out_layer.bias": answer.to("cpu", torch.float32),
    }


def begin_anew(network: torch.nn.Module, seed: int) -> None:
    """First weights as in DiT (Peebles and Xie 2023, adaLN-Zero): every block passes on what it gets, the output is zero.

    Matrices are Xavier's (Glorot and Bengio 2010).
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.no_grad():
        for name, value in network.named_parameters():
            silent = any(part in name for part in ("mod.lin", "modulation", "final_layer.linear"))
            if value.ndim == 2 and not silent:
                drawn = torch.randn(value.shape, generator=rng) * math.sqrt(2 / sum(value.shape))
                value.copy_(drawn)
            elif "_norm." in name:
                value.fill_(1)
            else:
                value.zero_()


def flux_base(
    model: ModelPatcher, vae: VAE, clip: CLIP, data: TrainingData, config: FluxBaseConfig, keep: Keep | None = None
) -> tuple[FluxBase, TrainingData]:
    """The training of a whole FLUX and the data as it draws them.

    Args:
        keep: how encodings are kept; in memory, unless the data is as good as endless, where it is None.

    Raises:
        TrainingError: something does not fit; says at which input.
    """
    encoders = flux_encoders(model, vae, clip, None, keep or keep_in_memory(len(data)))
    trainable = TrainableModel(model, "full", gradient_checkpointing=config.gradient_checkpointing)
    if config.anew:
        begin_anew(trainable.network, config.seed)
    return FluxBase(trainable, encoders, config, shown_sample(data, config)), drawn_data(data, config)
