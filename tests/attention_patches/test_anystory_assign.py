"""Whose a pixel is in AnyStory's training, against counting."""

from __future__ import annotations

import itertools

import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_assign import GivenMasks, everywhere, owners_of
from comfyui_ensemble.attention_patches.unet_layers import AttentionLayer

LAYER = AttentionLayer(("input", 4, 0), 8, 2, 4, 8, 2)


def test_owners_are_those_who_cover_most_of_a_token():
    masks = torch.zeros(2, 2, 8, 8)
    masks[0, 0, :, :3] = 1  # of four columns: all of the first token, half of the second
    masks[0, 1, :3, 4:] = 1
    masks[1] = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    owners = owners_of(masks, (2, 4))
    for row, y, x in itertools.product(range(2), range(2), range(4)):
        covered = [float(mask[4 * y : 4 * y + 4, 2 * x : 2 * x + 2].sum()) / 8 for mask in masks[row]]
        covered.append(max(0.0, 1 - sum(covered)))
        best = max(covered)
        assert covered[int(owners[row, 4 * y + x])] == pytest.approx(best)


def test_given_masks_are_one_hot_and_made_once_a_grid():
    masks = torch.zeros(1, 2, 8, 8)
    masks[0, 0, :4] = 1
    assign, hidden = GivenMasks(masks), torch.zeros(1, 16, 8)
    found = assign(LAYER, (4, 4), hidden)
    assert found.owners is not None and found.owners.tolist() == [[0] * 8 + [2] * 8]
    assert torch.equal(found.shares, torch.nn.functional.one_hot(found.owners, 3).float())
    assert assign(LAYER, (4, 4), hidden) is found and assign(LAYER, (2, 2), hidden) is not found


def test_everything_is_the_one_entrys():
    found = everywhere(LAYER, (4, 4), torch.zeros(3, 16, 8))
    assert found.owners is None and found.shares.shape == (3, 16, 1) and (found.shares == 1).all()
