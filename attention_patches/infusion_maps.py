"""Where identity was infused: what `appearance_patch` writes down, and the heat maps made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import comfy.model_management
import torch

from .recording import BoundedRecording
from .unet_call import Part, Size, UNetCall
from .unet_layers import AttentionLayer


@dataclass(frozen=True)
class InfusionRecord:
    """One call of the model.

    Attributes:
        progress: of the run, 0 to 1; calls of one step share it.
        appearances: how many there are.
        canvas, parts, batch: as in `UNetCall`.
        numbers: layer -> (rows, h, w) uint8 on the CPU: the appearance, from 1, that each token took from; 0 for none.
    """

    progress: float
    appearances: int
    canvas: Size
    parts: tuple[Part | None, ...]
    batch: int
    numbers: Mapping[AttentionLayer, torch.Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(value.nbytes for value in self.numbers.values())

    @classmethod
    def of(cls, call: UNetCall, appearances: int, numbers: Mapping[AttentionLayer, torch.Tensor]) -> InfusionRecord:
        """Bring a call's numbers to the CPU, all in one transfer that nobody waits for."""
        if numbers:
            shapes = [value.shape for value in numbers.values()]
            flat = torch.cat([value.flatten() for value in numbers.values()])
            later = comfy.model_management.device_supports_non_blocking(flat.device)
            parts = flat.to("cpu", non_blocking=later).split([shape.numel() for shape in shapes])
            numbers = {layer: part.view(shape) for layer, part, shape in zip(numbers, parts, shapes, strict=True)}
        return cls(call.progress, appearances, call.canvas, call.parts, call.batch, numbers)


class InfusionRecording(BoundedRecording[InfusionRecord]):
    """What an infusion patch wrote down; its own class, so that a node can tell it from other recordings.

    SDXL's 46 layers take 0.13 MB a call at 1024 x 1024; the first steps, which go first, are those of which least is infused.
    """


def steps(records: Iterable[InfusionRecord]) -> list[float]:
    """The progress of every step that infused, in order."""
    return sorted({record.progress for record in records})


def layers(records: Iterable[InfusionRecord]) -> list[AttentionLayer]:
    """Every layer that infused, in the order in which a forward runs through them."""
    return list(dict.fromkeys(layer for record in records for layer in record.numbers))


def share_infused(records: Iterable[InfusionRecord], chosen: Sequence[AttentionLayer]) -> float:
    """The share of some layers' tokens that took something over, 0 to 1."""
    found = [record.numbers[layer] for record in records for layer in chosen if layer in record.numbers]
    return sum(int(numbers.count_nonzero()) for numbers in found) / max(1, sum(map(torch.numel, found)))


def heat(records: Sequence[InfusionRecord], chosen: Sequence[AttentionLayer]) -> torch.Tensor:
    """How often each place took from each appearance, over records, layers and prompts.

    Args:
        records: of one run.
        chosen: the layers to count.

    Returns:
        (B, A, H, W) float32 in [0, 1] at the latent's size: B pictures of the batch, A appearances. Where several calls
        show a place, each counts; a place that none shows is 0, and rows of which nobody knows what they show are left out.
    """
    canvas = records[0].canvas
    total = torch.zeros(records[0].batch, records[0].appearances, *canvas)
    seen = torch.zeros(canvas)
    for record in records:
        for layer in chosen:
            if layer in record.numbers:
                _add(total, seen, record, record.numbers[layer])
    return total / seen.clamp(min=1)


def _add(total: torch.Tensor, seen: torch.Tensor, record: InfusionRecord, numbers: torch.Tensor) -> None:
    for part, rows in zip(record.parts, numbers.split(record.batch), strict=True):
        if part is None:
            continue
        y, x, height, width = part
        one_hot = torch.stack([rows == number for number in range(1, total.shape[1] + 1)], dim=1).float()
        shown = torch.nn.functional.interpolate(one_hot, (height, width), mode="nearest-exact")
        total[:, :, y : y + height, x : x + width] += shown
        seen[y : y + height, x : x + width] += 1
