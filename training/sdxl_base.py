"""Trains an SDXL-class U-Net on captions: every weight of it, with its own diffusion loss.

For the tiny SDXL whose pictures this pack draws without a download, and for any SDXL model. Where the caption is dropped, the
model learns the empty prompt, the other side of classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from .augment import dropped
from .data import TrainingData
from .encoding import Keep, keep_in_memory
from .groups import grouped, in_batch_order
from .model import TrainableModel
from .sample import TrainingSample
from .sdxl_config import SDXLConfig
from .sdxl_encoding import SDXLEncoders
from .sdxl_picture import sample_picture
from .sdxl_task import check_encoders, diffusion_loss, noisy_rows, prepare_target
from .task import Prepared, WeightFile, Weights

FOLDER = "diffusion_models"


@dataclass(frozen=True)
class SDXLBaseConfig(SDXLConfig):
    """`condition_dropout` is the share of samples without a caption."""

    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    condition_dropout: float = 0.1


class SDXLBaseTask:
    """A whole U-Net."""

    name = "SDXL"

    def __init__(
        self,
        model: ModelPatcher,
        encoders: SDXLEncoders,
        config: SDXLBaseConfig,
        shown: TrainingSample | None = None,
    ) -> None:
        check_encoders(model, encoders)
        self.encoders, self.config, self.shown = encoders, config, shown
        self.model = TrainableModel(model, "full", gradient_checkpointing=config.gradient_checkpointing)

    def identity(self) -> dict[str, str]:
        return {"model": self.model.identity(), **self.encoders.identity()}

    def modules(self) -> dict[str, torch.nn.Module]:
        return self.model.modules()

    def prepare(self, sample: TrainingSample, position: int) -> Prepared:
        silent = dropped(self.config.seed, "caption", position, self.config.condition_dropout)
        return prepare_target(self.model, self.encoders, sample, "" if silent else sample.caption)

    def losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        groups = grouped(batch, lambda row: row["latent"].shape)
        parts = [
            diffusion_loss(
                self.model,
                noisy_rows(self.model, [batch[i] for i in group], [positions[i] for i in group], self.config.seed),
                self.config,
            )
            for group in groups
        ]
        return {"loss": in_batch_order(groups, parts)}

    def weights(self) -> Weights:
        """One file in the names that a bare diffusion model's has, float32."""
        return Weights((WeightFile(FOLDER, "", self.model.full_state(), {}),))

    def picture(self) -> torch.Tensor | None:
        """The shown sample's caption as the present weights draw it."""
        if self.shown is None:
            return None
        return sample_picture(self.model.patcher, self.encoders, self.shown)


def sdxl_base(
    model: ModelPatcher, vae: VAE, clip: CLIP, data: TrainingData, config: SDXLBaseConfig, keep: Keep | None = None
) -> tuple[SDXLBaseTask, TrainingData]:
    """The training of a base model and its data.

    Args:
        keep: how encodings are kept; in memory, unless the data is as good as endless, where it is None.

    Raises:
        TrainingError: something does not fit; says at which input.
    """
    encoders = SDXLEncoders(vae, clip, keep=keep or keep_in_memory(len(data)))
    shown = data.load(data.batch(0, 1)[0]) if config.picture_every else None
    return SDXLBaseTask(model, encoders, config, shown), data
