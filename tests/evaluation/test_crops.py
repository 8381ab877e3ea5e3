"""Subjects cut out of pictures."""

from __future__ import annotations

import pytest
import torch

from comfyui_ensemble.evaluation.crops import box_of_mask, subject_crop, whole_pixels
from comfyui_ensemble.evaluation.errors import EvaluationError

PICTURE = torch.arange(6 * 8 * 3, dtype=torch.float32).reshape(6, 8, 3) / 200


def test_without_box_and_mask_the_picture_is_left_alone():
    assert subject_crop(PICTURE) is PICTURE


def test_a_box_is_cut_out_whole_and_padded_to_a_white_square():
    crop = subject_crop(PICTURE, (1.5, 0.9, 4.0, 5.2))  # columns 1 to 3, rows 0 to 5
    assert crop.shape == (6, 6, 3)
    assert torch.equal(crop[:, 1:4], PICTURE[:, 1:4])
    assert (crop[:, 0] == 1).all() and (crop[:, 4:] == 1).all()


def test_a_box_beyond_the_picture_gives_what_is_in_it():
    assert whole_pixels((-5, 2, 3, 99), 8, 6) == (0, 2, 3, 6)
    assert torch.equal(subject_crop(PICTURE, (-5, 3, 3, 99)), PICTURE[3:6, 0:3])


def test_a_mask_makes_the_rest_white_and_gives_the_box():
    mask = torch.zeros(6, 8)
    mask[2:4, 5:7] = 1
    mask[2, 5] = 0.6
    assert box_of_mask(PICTURE, mask) == (5, 2, 7, 4)
    crop = subject_crop(PICTURE, mask=mask)
    assert torch.equal(crop[1], PICTURE[3, 5:7])
    torch.testing.assert_close(crop[0, 0], PICTURE[2, 5] * 0.6 + 0.4)
    wider = subject_crop(PICTURE, (4, 2, 8, 6), mask)
    assert wider.shape == (4, 4, 3) and (wider[:, 0] == 1).all() and torch.equal(wider[1, 1], PICTURE[3, 5])


@pytest.mark.parametrize(
    ("box", "mask", "words"),
    [
        ((9, 0, 12, 3), None, "covers nothing of the 8 x 6"),
        ((3, 3, 3, 5), None, "covers nothing"),
        ((0, 0, float("nan"), 5), None, "is no box"),
        (None, torch.zeros(6, 8), "empty"),
        ((0, 0, 4, 4), torch.zeros(6, 8), "empty"),
        (None, torch.ones(8, 6), "6 x 8"),
    ],
)
def test_what_cannot_be_cut_out_is_told(box, mask, words):
    with pytest.raises(EvaluationError, match=words):
        subject_crop(PICTURE, box, mask)
