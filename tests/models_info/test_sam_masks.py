"""What SAM takes for the subject of a picture, and what is made of its masks."""

from __future__ import annotations

import math

import comfy.model_management
import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.anchor_align import mask_box
from comfyui_ensemble.models_info.sam import load_sam
from comfyui_ensemble.models_info.sam_masks import (
    MIDDLE,
    look_at,
    prompted_logits,
    subject_mask,
    subject_scores,
    without_specks,
)
from devtools.small_sam import brightness_sam

pytest.importorskip("segment_anything")


def lit(size: tuple[int, int], box: tuple[int, int, int, int]) -> torch.Tensor:
    """A noisy dark picture with a bright box."""
    picture = 0.4 * torch.rand(*size, 3, generator=torch.Generator().manual_seed(0))
    left, top, right, bottom = box
    picture[top:bottom, left:right] += 0.5
    return picture


def rectangle(box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def same_but_for_corners(mask: torch.Tensor, box: tuple[int, int, int, int]) -> bool:
    """Whether a mask is a box, apart from the corners that smooth enlarging rounds off."""
    expected = rectangle(box, (mask.shape[0], mask.shape[1]))
    return mask_box(mask.float()) == box and int((mask ^ expected).sum()) <= 16


@pytest.mark.parametrize("size, box", [((256, 256), (96, 48, 176, 208)), ((192, 256), (64, 32, 144, 192))])
def test_the_subject_without_a_prompt(bright_sam, size, box):
    mask = subject_mask(bright_sam, look_at(bright_sam, lit(size, box)))
    assert mask is not None and mask.shape == size and mask.dtype == torch.bool
    assert same_but_for_corners(mask, box)


def test_a_picture_of_another_size_and_shape(bright_sam):
    """SAM sees it smaller; patches of 16 of its pixels are what this one can tell apart."""
    size, box = (1000, 640), (160, 250, 480, 1000)
    mask = subject_mask(bright_sam, look_at(bright_sam, lit(size, box)))
    assert mask is not None and mask.shape == size
    both, either = (mask & rectangle(box, size)).sum(), (mask | rectangle(box, size)).sum()
    assert float(both / either) > 0.8


def test_a_prompt_needs_no_middle(bright_sam):
    seen = look_at(bright_sam, lit((256, 256), (0, 0, 48, 64)))
    logits = prompted_logits(bright_sam, seen, box=(0, 0, 50, 60))
    assert same_but_for_corners(logits > 0, (0, 0, 48, 64))


def test_not_sure_of_anything(tmp_path):
    torch.save(brightness_sam(quality=0.5).state_dict(), tmp_path / "unsure.pth")
    sam = load_sam(tmp_path / "unsure.pth")
    assert subject_mask(sam, look_at(sam, lit((256, 256), (96, 48, 176, 208)))) is None


def test_nothing_or_everything_is_no_subject(bright_sam):
    for picture in (torch.zeros(64, 64, 3), torch.ones(64, 64, 3)):
        assert subject_mask(bright_sam, look_at(bright_sam, picture)) is None


def test_too_narrow_for_sam(bright_sam):
    with pytest.raises(ValueError, match="a picture of 4000 x 2 pixels is too narrow for SAM; crop it"):
        look_at(bright_sam, torch.zeros(2, 4000, 3))
    assert look_at(bright_sam, torch.zeros(16, 8000, 3)).fitted == (1, 256)


def test_an_interrupt_while_looking_for_the_subject(bright_sam):
    seen = look_at(bright_sam, lit((64, 64), (16, 16, 48, 48)))
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        subject_mask(bright_sam, seen)


def test_the_picture_given_is_left_alone(bright_sam):
    picture = lit((64, 64), (16, 16, 48, 48))
    before = picture.clone()
    look_at(bright_sam, picture)
    assert torch.equal(picture, before)


def test_scores_are_covered_middle_times_free_border():
    height, width = 24, 32
    generator = torch.Generator().manual_seed(3)
    logits = 10 * torch.randn(5, 1, 1, generator=generator) + torch.randn(5, height, width, generator=generator)
    logits = torch.where(logits.abs() < 1.5, torch.full_like(logits, -5.0), logits)  # stable
    scores = subject_scores(logits, torch.ones(5))
    for number in range(5):
        covered = total = free = border = 0.0
        for y in range(height):
            for x in range(width):
                across, down = (x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5
                weight = math.exp(-(across**2 + down**2) / (2 * MIDDLE**2))
                inside = bool(logits[number, y, x] > 0)
                covered, total = covered + weight * inside, total + weight
                sides = (y == 0) + (y == height - 1) + (x == 0) + (x == width - 1)
                free, border = free + sides * (not inside), border + sides
        assert np.isclose(float(scores[number]), covered / total * free / border, atol=1e-5)


def test_who_is_the_subject():
    """A person in the middle before a wall: the whole beats the shirt, the wall, all of the picture, and a thing aside."""
    size = (48, 64)
    person, shirt, aside = (rectangle(box, size) for box in [(22, 6, 42, 48), (24, 16, 40, 28), (2, 30, 12, 44)])
    masks = torch.stack([shirt, ~person, torch.ones(size, dtype=torch.bool), aside, person])
    logits = torch.where(masks, 8.0, -8.0)
    assert int(subject_scores(logits, torch.full((5,), 0.9)).argmax()) == 4
    quality = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.79])
    assert float(subject_scores(logits, quality)[4]) == 0
    unstable = torch.where(masks, 8.0, -0.5)
    assert not subject_scores(unstable, torch.full((5,), 0.9))[[0, 3, 4]].any()
    assert not subject_scores(torch.full((1, *size), -8.0), torch.ones(1)).any()  # an empty mask


def test_specks_are_left_out():
    mask = rectangle((10, 10, 40, 50), (60, 80))
    whole = mask.clone()
    whole[2:4, 70:72] = True  # 4 of 1200 pixels
    whole[52:58, 60:70] = True  # 60 of them
    cleaned = without_specks(whole)
    assert torch.equal(cleaned, mask | rectangle((60, 52, 70, 58), (60, 80)))
    assert not without_specks(torch.zeros(6, 8, dtype=torch.bool)).any()
