"""What every trainer learns from: one target picture, its caption, and the subjects in it, each with a reference of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class TrainingSubject:
    """One subject (or item) of a target picture. Pictures are float32 in [0, 1]; lengths are pixels of the target."""

    name: str
    description: str  # words that stand in the caption, as they stand there
    category: str  # one of the categories of a cast's subjects
    reference: torch.Tensor  # (h, w, 3): the same subject, seen elsewhere
    reference_mask: torch.Tensor  # (h, w): 1 on the subject
    mask: torch.Tensor | None = None  # (H, W): where the subject is in the target
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom
    person: dict[str, Any] | None = None  # one entry of an OpenPose frame's "people", in pixels of the target


@dataclass(frozen=True)
class TrainingSample:
    """One row of a manifest, or one scene of the puppets."""

    key: str  # equal keys mean equal content: what caches go by
    target: torch.Tensor  # (H, W, 3)
    caption: str
    subjects: tuple[TrainingSubject, ...]


class Source(Protocol):
    """Where samples come from. `sample(i)` gives the same sample whenever and wherever it is asked for, 0 <= i < len."""

    identity: str  # changes whenever any sample does

    def __len__(self) -> int: ...

    def sample(self, index: int) -> TrainingSample: ...
