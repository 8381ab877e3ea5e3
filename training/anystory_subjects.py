"""A cast for every sample of AnyStory's trainings.

Subjects of a batch are put through the encoders together, whoever's picture they belong to, and each row then takes its own
(`anystory_rows`). Rows with fewer subjects have empty places, which own no pixel and are looked at by none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .errors import TrainingError
from .sample import TrainingSample, TrainingSubject
from .task import Prepared


@dataclass(frozen=True)
class Subjects:
    """The subjects of a batch, S in all, and where they belong.

    Attributes:
        clip: F_clip of the S subjects and, last, of the zero image, (S + 1, P, d_clip).
        latents: of their pictures in SDXL's scale, (S, channels, h, w).
        masks: (S, 1, h, w).
        places: (B, N) int64, which of the S are each row's; S where a row has fewer than N.
    """

    clip: torch.Tensor
    latents: torch.Tensor
    masks: torch.Tensor
    places: torch.Tensor

    @property
    def absent(self) -> torch.Tensor:
        """Which of the N subjects and the background a row does not have: (B, N + 1) bool, False for the background."""
        return torch.nn.functional.pad(self.places == len(self.latents), (0, 1))

    def entries(self) -> torch.Tensor:
        """`places` with the background's behind them, which is that of the zero image: (B, N + 1)."""
        return torch.nn.functional.pad(self.places, (0, 1), value=len(self.latents))


def gather_subjects(batch: Sequence[Prepared], zero: torch.Tensor, device: torch.device) -> Subjects:
    """The subjects of some samples; `zero` is F_clip of the zero image, (1, P, d_clip)."""
    counts = [len(row["clip"]) for row in batch]
    places = torch.full((len(batch), max(counts)), sum(counts))
    first = 0
    for row, count in enumerate(counts):
        places[row, :count] = torch.arange(first, first + count)
        first += count
    together = {name: torch.cat([row[name] for row in batch]) for name in ("clip", "reference", "reference_mask")}
    clip = torch.cat((together["clip"], zero))
    return Subjects(*(each.to(device) for each in (clip, together["reference"], together["reference_mask"], places)))


def gather_masks(batch: Sequence[Prepared], device: torch.device) -> torch.Tensor:
    """The subjects' masks in the targets, (B, N, h, w); nothing where a row has fewer than N subjects."""
    longest = max(len(row["masks"]) for row in batch)
    padded = [torch.nn.functional.pad(row["masks"], (0, 0, 0, 0, 0, longest - len(row["masks"]))) for row in batch]
    return torch.stack(padded).to(device)


def target_mask(sample: TrainingSample, subject: TrainingSubject) -> torch.Tensor:
    """Where a subject is in the target, (H, W)."""
    if subject.mask is None:
        raise TrainingError(
            f"'{subject.name}' has no mask in the target picture, which this training learns from; add one to its row of the"
            " manifest",
            "data",
        )
    return subject.mask


def require_subjects(sample: TrainingSample) -> None:
    """Raise where there is nobody to learn from."""
    if not sample.subjects:
        raise TrainingError("the sample has no subject; give every row at least one", "data")
