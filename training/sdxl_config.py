"""The settings that all trainings of SDXL have."""

from __future__ import annotations

from dataclasses import dataclass

from .config import TrainingConfig, at_least


@dataclass(frozen=True)
class SDXLConfig(TrainingConfig):
    """Settings of all trainings on SDXL.

    Attributes:
        min_snr_gamma: of the min-SNR weighting of noise levels; its paper's is 5. 0 for the model's own loss.
    """

    min_snr_gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "min_snr_gamma", 0)
