"""The settings of One-for-All's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..attention_patches.condition_positions import CCPA, EQUATION_3
from ..attention_patches.condition_slots import CATEGORY_SLOTS
from ..attention_patches.dam_generator import FLUX_DAM, T_MIN
from .categories import ONE_FOR_ALL
from .config import at_least
from .errors import TrainingError
from .flux_config import FluxConfig


@dataclass(frozen=True)
class OneForAllConfig(FluxConfig):
    """The paper's numbers; where it prints none (sizes of DAM), a choice of ours.

    Attributes:
        lora_rank: of the LoRA.
        categories: how many of so many samples show each category.
        scheme, item_anchor: where references and the words that describe them stand, as on Condition Positions. All but the
            first of each are rows of the paper's Table 4, or another reading of its Eq. 3.
        dam: whether there are temperature generators; without, it is a row of the paper's Table 4.
        dam_width: of the hidden layers of fresh generators.
        t_min: the smallest temperature of fresh generators.
        pose_maps: whether the model is given pose maps too, which the paper has none of.
        lora, dam_name: files in models/loras and models/ensemble_dam to begin with; empty for fresh ones.
    """

    steps: int = 30_000
    batch_size: int = 16
    learning_rate: float = 5e-6
    lora_rank: int = 512
    categories: dict[str, int] = field(default_factory=lambda: dict(ONE_FOR_ALL))
    scheme: Literal["condition ids + CCPA", "condition ids", "index embeddings", "virtual time"] = CCPA
    item_anchor: Literal["equation 3", "slot centre"] = EQUATION_3
    dam: bool = True
    dam_width: int = FLUX_DAM.width
    t_min: float = T_MIN
    pose_maps: bool = False
    lora: str = ""
    dam_name: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_rank", "dam_width"):
            at_least(self, name, 1)
        if not 0 < self.t_min < 1:
            raise TrainingError(f"t_min is {self.t_min}; it must lie between 0 and 1")
        if not any(count > 0 for count in self.categories.values()) or min(self.categories.values()) < 0:
            raise TrainingError('categories names none to learn from; write it like {"face": 2, "bag": 1}')
        for category in self.categories:
            if category not in CATEGORY_SLOTS:
                raise TrainingError(
                    f"categories holds '{category}', which has no place; choose among: {', '.join(CATEGORY_SLOTS)}"
                )
