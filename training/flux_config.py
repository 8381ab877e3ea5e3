"""The settings that all trainings of FLUX have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .config import TrainingConfig, at_least, share

PICTURE_SIZE, FIXED, NONE = "picture size", "fixed", "none"


@dataclass(frozen=True)
class FluxConfig(TrainingConfig):
    """What the trainings of FLUX have in common.

    Attributes:
        guidance: what a guidance-distilled model is told while it learns. 1 asks for the picture as it is; inference goes on with
            the usual values.
        timestep_shift: how noise levels, which are logit-normal, are shifted towards noise: the more the larger the picture is, as
            FLUX.1's own sampler does; by the model's fixed shift; or not at all.
        pose_line_width: half the thickness of a limb on pose maps, in pixels; use the same on Render Pose.
        reference_dropout: share of batches that learn without their references; `condition_dropout` is of samples without caption.
        pose_dropout: share of batches that learn without their pose maps.
        picture_steps: of sample pictures.
        picture_guidance: what the model is told for them.
        picture_cfg: how far they are drawn away from what the model makes of no words, references and poses; 1 for not at all.
    """

    guidance: float = 1.0
    timestep_shift: Literal["picture size", "fixed", "none"] = PICTURE_SIZE
    pose_line_width: int = 4
    reference_dropout: float = 0.0
    pose_dropout: float = 0.0
    picture_steps: int = 20
    picture_guidance: float = 3.5
    picture_cfg: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pose_line_width", "picture_steps"):
            at_least(self, name, 1)
        for name in ("guidance", "picture_guidance", "picture_cfg"):
            at_least(self, name, 0)
        for name in ("reference_dropout", "pose_dropout"):
            share(self, name)
