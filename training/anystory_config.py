"""The settings of AnyStory's two trainings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..attention_patches.anystory_network import SDXL_ANYSTORY
from ..attention_patches.reference_net import LATENT_FACTOR
from .config import at_least, share
from .errors import TrainingError
from .sdxl_config import SDXLConfig

PICTURE, MASKS = "picture", "masks"


@dataclass(frozen=True)
class AnyStoryEncoderConfig(SDXLConfig):
    """The paper's numbers; where it prints none (widths, steps), a choice of ours.

    Attributes:
        regions: where a subject's features go; see `anystory_encoder`.
        reference_dropout: share of samples that learn without the ReferenceNet's features.
        queries, qformer_width, qformer_heads, qformer_layers, router_width, reference_size: of a fresh network; see
            `AnyStoryConfig`.
    """

    steps: int = 100_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    condition_dropout: float = 0.1
    regions: Literal["picture", "masks"] = PICTURE
    reference_dropout: float = 0.0
    queries: int = SDXL_ANYSTORY.queries
    qformer_width: int = SDXL_ANYSTORY.qformer_width
    qformer_heads: int = SDXL_ANYSTORY.qformer_heads
    qformer_layers: int = SDXL_ANYSTORY.qformer_layers
    router_width: int = SDXL_ANYSTORY.router_width
    reference_size: int = SDXL_ANYSTORY.reference_size

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "reference_dropout")
        for name in ("queries", "qformer_width", "qformer_heads", "qformer_layers", "router_width"):
            at_least(self, name, 1)
        if self.qformer_width % self.qformer_heads:
            raise TrainingError(
                f"qformer_width is {self.qformer_width}, which {self.qformer_heads} heads do not divide; choose"
                " qformer_heads that do"
            )
        at_least(self, "reference_size", 4 * LATENT_FACTOR)
        if self.reference_size % LATENT_FACTOR:
            raise TrainingError(f"reference_size is {self.reference_size}; it must be a multiple of {LATENT_FACTOR}")


@dataclass(frozen=True)
class AnyStoryRouterConfig(SDXLConfig):
    """The paper's numbers; where it prints none (steps, temperature), a choice of ours.

    Attributes:
        routing_weight: lambda of Eq. 4.
        temperature: of the Gumbel-softmax.
    """

    steps: int = 30_000
    batch_size: int = 64
    learning_rate: float = 1e-4
    condition_dropout: float = 0.1
    routing_weight: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "routing_weight", 0)
        if not 0 < self.temperature < float("inf"):
            raise TrainingError(f"temperature is {self.temperature}; it must be above 0, such as 1")
