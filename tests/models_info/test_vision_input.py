"""How pictures are shown to encoders."""

from __future__ import annotations

import pytest
import torch

from comfyui_ensemble.models_info.vision_input import cut_out, picture_latent, square, subject_picture, zero_picture


def test_a_picture_stands_in_the_middle_of_a_white_square():
    picture = torch.rand(1, 3, 6, 3)
    found = square(picture)
    assert found.shape == (1, 6, 6, 3)
    assert torch.equal(found[:, 1:4], picture) and (found[:, 0] == 1).all() and (found[:, 4:] == 1).all()


def test_what_is_no_subject_is_white():
    picture, mask = torch.rand(1, 4, 4, 3), torch.zeros(1, 4, 4)
    mask[:, 1:3] = 1
    mask[:, 3] = 0.25
    found = cut_out(picture, mask)
    assert torch.equal(found[:, 1:3], picture[:, 1:3]) and (found[:, 0] == 1).all()
    torch.testing.assert_close(found[:, 3], 0.25 * picture[:, 3] + 0.75)
    assert cut_out(picture, None) is picture


def test_a_subjects_mask_is_padded_with_nothing():
    found = subject_picture(torch.rand(1, 2, 4, 3), torch.ones(1, 2, 4))
    assert found.mask.shape == (1, 4, 4, 1)
    assert found.mask[0, :, :, 0].tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


@pytest.mark.parametrize("side", [32, 64])
def test_the_latent_has_the_size_that_was_asked_for(sdxl_vae, vision, side):
    found = picture_latent(sdxl_vae, zero_picture(vision), side)
    assert found.shape == (1, 4, side // 8, side // 8)
