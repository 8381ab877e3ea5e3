"""The settings of ASTRA's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..attention_patches.dsm_adapter import FLUX_DSM
from ..attention_patches.europe import EUROPE
from .config import at_least, share
from .errors import TrainingError
from .flux_config import FluxConfig


@dataclass(frozen=True)
class ASTRAConfig(FluxConfig):
    """The paper's numbers; where it prints none (learning rate, sizes of DSM, dropout), a choice of ours.

    Attributes:
        lora_rank: of the LoRA.
        mode: where references and pose map stand. The symmetric modes are rows of the paper's Table 4.
        dsm: whether there is a DSM; without, it is a row of Table 4.
        dsm_width, dsm_heads, dsm_subjects: of a fresh DSM: of its trunk, and the most subjects it can tell apart.
        dsm_layers: layers of the CLIP vision model that a fresh DSM reads, counted from 0; empty for four of them, a quarter of
            the model apart.
        dsm_dropout: share of samples that learn without DSM's features.
        per_item: the words that describe a subject look at that subject only, as with DSM's `per_item`.
        lora, dsm_name: files in models/loras and models/ensemble_dsm to begin with; empty for fresh ones.
    """

    steps: int = 100_000
    batch_size: int = 1
    learning_rate: float = 1e-5
    pose_dropout: float = 0.1
    lora_rank: int = 512
    mode: Literal["EURoPE", "symmetric RoPE", "symmetric UnoPE"] = EUROPE
    dsm: bool = True
    dsm_width: int = FLUX_DSM.width
    dsm_heads: int = FLUX_DSM.heads
    dsm_layers: tuple[int, ...] = ()
    dsm_subjects: int = FLUX_DSM.subjects
    dsm_dropout: float = 0.0
    per_item: bool = False
    lora: str = ""
    dsm_name: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_rank", "dsm_width", "dsm_heads", "dsm_subjects"):
            at_least(self, name, 1)
        share(self, "dsm_dropout")
        if self.dsm_width % self.dsm_heads:
            raise TrainingError(
                f"dsm_width is {self.dsm_width} and dsm_heads {self.dsm_heads}; choose a width that they divide"
            )
