"""What is kept of AnyStory's maps, and how it is read."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches import anystory_routing
from comfyui_ensemble.attention_patches.anystory_routing import (
    CallRouting,
    RoutingMap,
    StepMaps,
    partition,
    resize_owners,
    shares,
    split_by_owner,
)

GRIDS = [(8, 8), (4, 4), (9, 12), (5, 6), (16, 10), (1, 3)]


def random_owners(rows: int, grid: tuple[int, int], entries: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 7 + grid[0] * 100 + grid[1])
    return torch.randint(0, entries, (rows, grid[0] * grid[1]), generator=generator)


@pytest.mark.parametrize("grid, to", list(itertools.product(GRIDS, GRIDS)))
def test_a_resized_map_has_the_owner_nearest_to_each_centre(grid, to):
    owners = random_owners(2, grid, 5)
    resized = resize_owners(owners, grid, to).reshape(2, *to)
    for row, y, x in itertools.product(range(2), range(to[0]), range(to[1])):
        centre = ((y + 0.5) * grid[0] / to[0], (x + 0.5) * grid[1] / to[1])
        assert resized[row, y, x] == owners.reshape(2, *grid)[row, int(centre[0]), int(centre[1])]


def test_pixels_are_shared_out_completely_and_in_order():
    owners = random_owners(3, (5, 4), 4)
    for row, members in zip(owners, split_by_owner(owners, 6), strict=True):
        assert len(members) == 6
        for entry, pixels in enumerate(members):
            assert pixels.tolist() == [pixel for pixel in range(20) if row[pixel] == entry]


def test_owned_speaks_of_the_cast_whatever_the_order_of_the_entries():
    routing = CallRouting([2, 0, 1, 3])
    assert routing.owned(0, (4, 4)) is None
    owners = random_owners(2, (4, 4), 4)
    routing.maps.append(RoutingMap((4, 4), torch.zeros_like(owners), 4))
    routing.maps.append(RoutingMap((4, 4), owners, 4))
    for subject, entry in enumerate((2, 0, 1)):
        for grid in ((4, 4), (8, 8)):
            owned = routing.owned(subject, grid)
            assert owned is not None and torch.equal(owned, resize_owners(owners, (4, 4), grid) == entry)


def test_maps_are_written_down_in_cast_order():
    routing = CallRouting([1, 0, 2])
    routing.maps = [RoutingMap(grid, random_owners(6, grid, 3), 3) for grid in ((4, 4), (2, 3))]
    written = routing.in_cast_order([0, 1, 4, 5], pictures=2)
    for routed, found in zip(routing.maps, written, strict=True):
        assert found.shape == (2, 2, *routed.grid) and found.dtype == torch.uint8
        expected = np.array([1, 0, 2])[routed.owners.numpy()].reshape(6, *routed.grid)
        np.testing.assert_array_equal(found.flatten(0, 1).numpy(), expected[[0, 1, 4, 5]])


def test_a_map_is_split_once():
    routed = RoutingMap((4, 4), random_owners(2, (4, 4), 3), 3)
    assert routed.members is routed.members and len(routed.members) == 2
    assert routed.resized((4, 4)) is routed and routed.resized((2, 2)).owners.shape == (2, 4)


def records() -> list[StepMaps]:
    made = []
    for step in (1, 2):
        grids = ((4, 4), (2, 2))
        maps = [random_owners(6 * step, grid, 3)[: 2 * 3].to(torch.uint8).reshape(2, 3, *grid) for grid in grids]
        made.append(StepMaps(step, (20, 20), tuple(maps)))
    return made


def test_shares_count_calls_prompts_and_layers():
    made = records()
    fine = shares(made, [0], 1, 3)
    for entry, y, x in itertools.product(range(3), range(4), range(4)):
        seen = [record.maps[0][prompt, 1, y, x] == entry for record in made for prompt in range(2)]
        assert fine[entry, y, x] == pytest.approx(sum(map(int, seen)) / 4)
    coarse = torch.nn.functional.interpolate(shares(made, [1], 1, 3)[None], size=(4, 4), mode="bilinear")[0]
    torch.testing.assert_close(shares(made, [0, 1], 1, 3), (fine + coarse) / 2)
    torch.testing.assert_close(shares(made, [0, 1], 1, 3).sum(dim=0), torch.ones(4, 4))


def test_shares_of_a_layer_whose_grid_changed():
    """Two thirds of the calls on the finer grid count two thirds."""
    made = records()
    small = dataclasses.replace(made[1], maps=(made[1].maps[0][:, :, ::2, ::2], made[1].maps[1]))
    fine, coarse = shares([made[0]], [0], 0, 3), shares([small], [0], 0, 3)
    found = shares([made[0], small, made[0]], [0], 0, 3)
    torch.testing.assert_close(found, (2 * fine + anystory_routing.fit(coarse, (4, 4))) / 3)


def test_masks_share_the_picture_out():
    masks = partition(shares(records(), [0, 1], 0, 3), (37, 53))
    assert masks.shape == (3, 37, 53) and torch.equal(masks.sum(dim=0), torch.ones(37, 53))
