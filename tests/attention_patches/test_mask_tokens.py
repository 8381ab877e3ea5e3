"""Masks on token grids against means taken by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from comfyui_ensemble.attention_patches.mask_tokens import coverage, covered_tokens


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("part", [(0, 0, 8, 12), (2, 4, 4, 8), (4, 0, 4, 12)])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_coverage_is_the_mean_over_each_tokens_area(scale, part, factor):
    mask = torch.rand(8 * scale, 12 * scale, generator=torch.Generator().manual_seed(0))
    y, x, height, width = part
    expected = []
    for row, column in itertools.product(range(height // factor), range(width // factor)):
        top, left = (y + row * factor) * scale, (x + column * factor) * scale
        expected.append(mask[top : top + factor * scale, left : left + factor * scale].mean())
    found = coverage(mask, (8, 12), part, (height // factor, width // factor))
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize(
    "mask, canvas, grid", [((64, 64), (17, 23), (9, 12)), ((3, 5), (16, 16), (8, 8)), ((1, 1), (5, 5), (3, 3))]
)
def test_sizes_that_do_not_divide(mask, canvas, grid):
    covered = coverage(torch.ones(mask), canvas, (0, 0, *canvas), grid)
    assert covered.shape == (grid[0] * grid[1],)
    torch.testing.assert_close(covered, torch.ones_like(covered))
    half = torch.zeros(mask)
    half[:, : mask[1] // 2] = 1
    covered = coverage(half, canvas, (0, 0, *canvas), grid).unflatten(0, grid)
    assert (covered.diff(dim=1) <= 1e-6).all() and ((covered >= 0) & (covered <= 1)).all()


def test_a_token_is_the_subjects_when_half_of_it_is():
    mask = torch.zeros(16, 16)
    mask[:, :6] = 1
    assert covered_tokens(mask, (16, 16), (2, 4)).tolist() == [0, 1, 4, 5]  # columns 0 to 3 whole, 4 to 7 half


def test_a_subject_smaller_than_a_token_still_has_one():
    mask = torch.zeros(16, 16)
    mask[9, 3] = 1
    assert covered_tokens(mask, (16, 16), (2, 2)).tolist() == [2]
