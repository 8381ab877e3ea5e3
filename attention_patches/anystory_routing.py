"""Where AnyStory's subjects are: the maps of one call, for whoever needs them, and of a run, for the artist.

During a call the model's transformer options carry a `CallRouting` under `ROUTING_KEY`. A patch whose turn comes later in the
call asks it whose pixels are whose (`owned`). What a run said is kept in a `RoutingMaps`: the hard map of every layer and
step, one byte a pixel; SDXL's 70 layers take 0.1 MB a call at 1024 x 1024. A run keeps `RUN_BYTES` at most and drops its
first steps beyond that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from .recording import BoundedRecording

ROUTING_KEY = "ensemble_routing"

Grid = tuple[int, int]


def resize_owners(owners: torch.Tensor, grid: Grid, to: Grid) -> torch.Tensor:
    """A map of indices on another grid, every pixel as the one nearest to its centre: (B, h * w) -> (B, h' * w')."""
    if grid == to:
        return owners
    picked = [
        (2 * torch.arange(new, device=owners.device) + 1) * old // (2 * new) for old, new in zip(grid, to, strict=True)
    ]
    return owners.unflatten(1, grid)[:, picked[0]][:, :, picked[1]].flatten(1)


def split_by_owner(owners: torch.Tensor, entries: int) -> list[list[torch.Tensor]]:
    """For every row and every entry the pixels it owns, (n,) int64 in order: (B, hw) -> B lists of `entries`.

    The host waits for the device here, once, to learn how many there are.
    """
    rows = torch.arange(len(owners), device=owners.device).unsqueeze(1)
    counts = torch.bincount((rows * entries + owners).flatten(), minlength=len(owners) * entries)
    order = owners.argsort(dim=1, stable=True)
    sizes = counts.unflatten(0, (len(owners), entries)).tolist()
    return [list(pixels.split(size)) for pixels, size in zip(order, sizes, strict=True)]


@dataclass(frozen=True)
class RoutingMap:
    """sigma(M) of one layer.

    Attributes:
        grid: (h, w) of the layer.
        owners: (B, h * w) int64, the entry that owns each pixel.
        entries: N + 1.
    """

    grid: Grid
    owners: torch.Tensor
    entries: int

    @cached_property
    def members(self) -> list[list[torch.Tensor]]:
        """`split_by_owner` of this map."""
        return split_by_owner(self.owners, self.entries)

    def resized(self, grid: Grid) -> RoutingMap:
        """The same map on another layer's grid."""
        if grid == self.grid:
            return self
        return RoutingMap(grid, resize_owners(self.owners, self.grid, grid), self.entries)


class CallRouting:
    """The maps of one call of the model, which the routers fill one after the other.

    Args:
        entry_of: for every subject in cast order, and last the background, the index its entry has in the maps.
    """

    def __init__(self, entry_of: Sequence[int]) -> None:
        self.entry_of = tuple(entry_of)
        self.maps: list[RoutingMap] = []

    @property
    def latest(self) -> RoutingMap | None:
        """Of the last cross-attention that was run; None before the first."""
        return self.maps[-1] if self.maps else None

    def owned(self, index: int, grid: Grid) -> torch.Tensor | None:
        """Where subject `index` of the cast is by the latest map: (B, h * w) bool on a layer's grid.

        Rows are those of the call, with the unconditional ones, whose pixels are routed too. None before the first map.
        """
        if self.latest is None:
            return None
        return self.latest.resized(grid).owners == self.entry_of[index]

    def in_cast_order(self, rows: Sequence[int], pictures: int) -> tuple[torch.Tensor, ...]:
        """All maps of some rows on the CPU, with indices in cast order: (rows / pictures, pictures, h, w) uint8 a layer."""
        device = self.maps[0].owners.device
        cast_index = torch.empty(len(self.entry_of), dtype=torch.uint8, device=device)
        cast_index[list(self.entry_of)] = torch.arange(len(self.entry_of), dtype=torch.uint8, device=device)
        chosen = [routed.owners[list(rows)] for routed in self.maps]
        moved = cast_index[torch.cat([owners.flatten() for owners in chosen])].to("cpu")  # at once: a copy waits
        parts = moved.split([owners.numel() for owners in chosen])
        return tuple(part.reshape(-1, pictures, *routed.grid) for part, routed in zip(parts, self.maps, strict=True))


@dataclass(frozen=True)
class StepMaps:
    """Whose the pixels were in one call of the model.

    Attributes:
        step: of the run, counted from 1.
        canvas: (h, w) of the latent.
        maps: for every layer (prompts, pictures, h, w) uint8: the subject's index in the cast, N for the background.
    """

    step: int
    canvas: Grid
    maps: tuple[torch.Tensor, ...]

    @property
    def size(self) -> int:
        """Of all maps, in bytes."""
        return sum(routed.numel() for routed in self.maps)


@dataclass(frozen=True)
class RoutingMaps:
    """What the runs of a model said about where its subjects are; what the output "routing" holds.

    Attributes:
        names: of the subjects, in cast order.
        layers: names of the layers that have a router, in execution order.
        recording: the runs.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    recording: BoundedRecording[StepMaps] = field(default_factory=BoundedRecording)


def shares(records: Sequence[StepMaps], layers: Sequence[int], picture: int, entries: int) -> torch.Tensor:
    """How often each entry owns a pixel, over calls, prompts and layers: (entries, h, w) float32 on the finest grid.

    Args:
        records: one or more calls.
        layers: indices of the layers to count.
        picture: index in the batch.
    """
    counted: dict[Grid, list[torch.Tensor]] = {}  # a layer's grid may change during a run
    for record, layer in itertools.product(records, layers):
        owners = record.maps[layer][:, picture]  # (prompts, h, w)
        counted.setdefault((owners.shape[1], owners.shape[2]), []).append(owners.unsqueeze(1))
    finest = max(counted, key=lambda grid: grid[0] * grid[1])
    total = torch.zeros(entries, *finest)
    for maps in counted.values():
        one_hot = torch.cat(maps) == torch.arange(entries)[:, None, None]  # (calls * prompts * layers, E, h, w)
        total += len(one_hot) * fit(one_hot.to(torch.float32).mean(dim=0), finest)
    return total / sum(len(owners) for maps in counted.values() for owners in maps)


def fit(shares_of: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(E, h, w) -> (E, height, width), smooth."""
    return torch.nn.functional.interpolate(shares_of[None], size=size, mode="bilinear", align_corners=False)[0]


def partition(shares_of: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks that share the picture out among the entries: (E, h, w) -> (E, height, width) float32 of zeros and ones."""
    owners = fit(shares_of, size).argmax(dim=0)
    return torch.stack([(owners == entry).to(torch.float32) for entry in range(len(shares_of))])
