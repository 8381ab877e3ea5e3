"""Condition positions and CCPA, Center-aligned Cross-modal Position Association (One-for-All, sections 3.2 and 3.3).

A reference stands in the slot of its condition id k (`condition_slots`), on a diagonal away from the canvas, and the words
that describe it stand with it. With slots of h x w tokens, the canvas at (0, y, x) and all other words at (0, 0, 0):

- Eq. 2, token (y, x) of the reference with id k: (1, y + k h, x + k w)
- Eq. 3, every token of the description of id k: (1, k h / 2, k w / 2). The paper's text calls this the centroid of the
  reference, which is ((k + 1/2) h - 1/2, (k + 1/2) w - 1/2); both are here.

h and w are the sizes of the references; where these differ the largest of each, so that slots never overlap. A reference
with two ids is given to the model twice. Words that describe what has several ids, or several subjects, stand at the mean
of these, fractions and all. A pose map, which the paper has none of, stands on the canvas like EURoPE's.

The other schemes are rows of the paper's ablations: condition ids without CCPA (Var. 3 of Table 4), all references at
(0, 0, 0) (Var. 1, without its trained index embeddings), and t = k without an offset (Var. 2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher

from .carried import Entry
from .condition_slots import Slots
from .item_spans import spans_of
from .layout import Grid, Layout, Reference, Role
from .position_ids import covering_ids, grid_ids
from .reference_positions import Placement, place

CCPA = "condition ids + CCPA"
CONDITION_IDS = "condition ids"
INDEX_EMBEDDINGS = "index embeddings"
VIRTUAL_TIME = "virtual time"
SCHEMES = (CCPA, CONDITION_IDS, INDEX_EMBEDDINGS, VIRTUAL_TIME)

EQUATION_3 = "equation 3"
SLOT_CENTRE = "slot centre"
ITEM_ANCHORS = (EQUATION_3, SLOT_CENTRE)

TIME = 1.0  # t of references and of the words that describe them


def slot_size(references: Sequence[Reference]) -> Grid:
    """(h, w) of a slot: the largest height and the largest width among the subjects' references."""
    grids = [reference.grid for reference in references if reference.role == "subject"]
    return (max((grid[0] for grid in grids), default=0), max((grid[1] for grid in grids), default=0))


def slot_ids(grid: Grid, slot: int, size: Grid, scheme: str, device: torch.device | None = None) -> torch.Tensor:
    """Eq. 2: ids of a reference of h x w tokens in a slot, (h * w, 3) float32; or what another scheme has in its place."""
    if scheme == INDEX_EMBEDDINGS:
        return torch.zeros((grid[0] * grid[1], 3), device=device)
    if scheme == VIRTUAL_TIME:
        ids = grid_ids(grid, device=device)
        ids[:, 0] = slot
        return ids
    ids = grid_ids(grid, (slot * size[0], slot * size[1]), device)
    ids[:, 0] = TIME
    return ids


def item_slots(spans: Mapping[str, Sequence[tuple[int, int]]], slots: Mapping[str, Slots], length: int) -> torch.Tensor:
    """The mean of the condition ids of what each of L tokens describes, (L,) float32; 0 where it describes nothing.

    Args:
        spans: token ranges [start, stop) of every subject's description; of one without a slot they are passed over.
        slots: condition ids of every subject.
        length: L.
    """
    total, number = torch.zeros(length), torch.zeros(length)
    for name, ranges in spans.items():
        described = torch.zeros(length)
        for start, stop in ranges:
            described[start:stop] = 1
        total += described * sum(slots.get(name, ()))
        number += described * len(slots.get(name, ()))
    return total / number.clamp(min=1)


def item_ids(slots: torch.Tensor, size: Grid, anchor: str) -> torch.Tensor:
    """Eq. 3: ids of text tokens, (L, 3) float32; zero where they describe nothing.

    Args:
        slots: (L,) as in `item_slots`.
        size: (h, w) of a slot.
        anchor: one of `ITEM_ANCHORS`.
    """
    sides = slots.new_tensor(size)
    places = slots[:, None] * sides / 2 if anchor == EQUATION_3 else (slots[:, None] + 0.5) * sides - 0.5  # (L, 2)
    ids = torch.cat((torch.full_like(slots, TIME)[:, None], places), dim=1)
    return torch.where(slots[:, None] > 0, ids, torch.zeros_like(ids))


@dataclass(frozen=True)
class ConditionPlacement(Placement):
    """The references of a layout in slots.

    Attributes:
        slots: condition ids of every reference, none for a pose map.
        scheme, item_anchor: of `SCHEMES` and `ITEM_ANCHORS`.
    """

    NAME = "Condition Positions"
    PRECEDENCE = {"subject": 1, "pose": 0}  # noqa: RUF012 (a ClassVar of the base class)

    slots: tuple[Slots, ...]
    scheme: str
    item_anchor: str

    def describes(self, layout: Layout) -> bool:
        return layout == self.layout

    def copies(self) -> tuple[int, ...]:
        return tuple(index for index, own in enumerate(self.slots) for _ in own[1:])

    def reference_ids(self, canvas: Grid, roles: Collection[Role], device: torch.device) -> list[torch.Tensor]:
        references, size = self.layout.references, slot_size(self.layout.references)

        def ids(index: int, slot: int) -> torch.Tensor:
            return slot_ids(references[index].grid, slot, size, self.scheme, device)

        first = [
            ids(index, own[0]) if own else covering_ids(references[index].grid, canvas, device)
            for index, own in enumerate(self.slots)
        ]
        return first + [ids(index, slot) for index, own in enumerate(self.slots) for slot in own[1:]]

    def text_ids(self, entry: Entry) -> torch.Tensor | None:
        if self.scheme != CCPA:
            return None
        length = entry["cross_attn"].shape[1]
        try:
            spans = spans_of(entry, length)
        except ValueError as error:
            raise ValueError(f"{self.NAME}: the prompt will not do, {error}.") from None
        slots = {reference.name: own for reference, own in zip(self.layout.references, self.slots, strict=True) if own}
        found = item_slots(spans, slots, length)
        return item_ids(found, slot_size(self.layout.references), self.item_anchor) if found.any() else None


def apply_condition_positions(
    model: ModelPatcher, layout: Layout, slots: Sequence[Slots], scheme: str, item_anchor: str
) -> ModelPatcher:
    """A clone of `model` that places the subjects of `layout`; a placement already there for other references stays.

    Args:
        slots: condition ids of every reference, as from `assign_slots`.
    """
    return place(model, ConditionPlacement(layout, tuple(slots), scheme, item_anchor))
