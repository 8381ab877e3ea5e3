"""Reference augmentation and dropout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from comfyui_ensemble.training import augment
from comfyui_ensemble.training.augment import augment_reference, dropped
from comfyui_ensemble.training.randomness import generator


def figure(size: tuple[int, int] = (60, 80)) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture (h, w, 3) with a bright subject on grey, and its mask."""
    height, width = size
    mask = torch.zeros(size)
    mask[height // 4 : 3 * height // 4, width // 3 : 2 * width // 3] = 1
    shade = torch.linspace(0.2, 0.9, width).expand(size)
    return torch.stack([shade, 0.3 + 0.5 * mask, mask], dim=-1), mask


def by_hand(values: np.ndarray, degrees: float, zoom: float, place: tuple[float, float]) -> np.ndarray:
    """Pixel by pixel, in pixels: turn clockwise about the middle, then show a part of `zoom` times the size.

    Args:
        values: (h, w) float64; outside of it is 0.
        place: of that part, 0 at the left or upper end, 1 at the other, x and y.
    """
    height, width = values.shape
    out = np.zeros_like(values)
    angle = math.radians(degrees)
    for row in range(height):
        for column in range(width):
            # Where this pixel's middle lies in the turned picture, the part's middle being at the origin...
            x = (column + 0.5 - width / 2) * zoom
            y = (row + 0.5 - height / 2) * zoom
            # ... turned back ...
            x, y = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
            # ... and moved to the part.
            x += width / 2 + (2 * place[0] - 1) * abs(1 - zoom) * width / 2
            y += height / 2 + (2 * place[1] - 1) * abs(1 - zoom) * height / 2
            out[row, column] = bilinear(values, x - 0.5, y - 0.5)
    return out


def bilinear(values: np.ndarray, x: float, y: float) -> float:
    left, top = math.floor(x), math.floor(y)
    total = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < values.shape[0] and 0 <= column < values.shape[1]:
                total += values[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


@pytest.mark.parametrize(
    "degrees, zoom, place",
    [(0, 1.0, (0.5, 0.5)), (20, 1.0, (0.5, 0.5)), (-25, 0.8, (0.2, 0.9)), (10, 1.3, (1.0, 0.0)), (0, 0.7, (0.0, 1.0))],
)
def test_pictures_are_moved_as_by_hand(degrees: float, zoom: float, place: tuple[float, float]):
    picture, mask = figure((20, 30))
    matrix = augment.affine_matrix(degrees, zoom, (2 * place[0] - 1, 2 * place[1] - 1), (30, 20))
    moved = augment.moved(torch.cat([picture, mask[..., None]], dim=-1), matrix)
    for channel in range(4):
        values = (picture[..., channel] if channel < 3 else mask).double().numpy()
        assert np.abs(moved[..., channel].numpy() - by_hand(values, degrees, zoom, place)).max() < 1e-4


def test_a_quarter_turn_clockwise_is_one():
    values = torch.rand(9, 9, 1)
    turned = augment.moved(values, augment.affine_matrix(90, 1.0, (0, 0), (9, 9)))
    assert torch.allclose(turned[..., 0], torch.rot90(values[..., 0], -1), atol=1e-5)


def test_picture_and_mask_move_together():
    picture, mask = figure()
    for position in range(50):
        moved, moved_mask = augment_reference(picture, mask, generator(0, "x", position))
        assert moved.shape == picture.shape and moved_mask.shape == mask.shape
        assert torch.allclose(moved[..., 2], moved_mask, atol=1e-6)  # the blue channel was the mask
        assert float(moved.min()) >= 0 and float(moved.max()) <= 1


def test_the_subject_stays_and_changes():
    picture, mask = figure()
    areas = []
    for position in range(300):
        _, moved_mask = augment_reference(picture, mask, generator(0, "x", position))
        areas.append(float(moved_mask.sum() / mask.sum()))
        assert float(moved_mask.max()) > 0.9
    low, high = (1 - augment.MAX_PADDING) ** 2, 1 / augment.MIN_CROP**2
    assert low - 0.02 < min(areas) < low + 0.15 and high - 0.6 < max(areas) < high + 0.02
    assert 0.25 < sum(area < 0.99 for area in areas) / 300 < 0.75  # crops and paddings are about as many


def test_a_subject_at_the_edge_is_not_cut_away():
    mask = torch.zeros(60, 60)
    mask[:6, :6] = 1
    picture = mask[..., None].repeat(1, 1, 3)
    kept = []
    for position in range(200):
        moved, moved_mask = augment_reference(picture, mask, generator(0, "x", position))
        kept.append(float(moved_mask.sum()))
        if torch.equal(moved, picture):
            assert torch.equal(moved_mask, mask)
    assert min(kept) > 0.4 * augment.KEPT_SUBJECT * float(mask.sum())  # a padded picture's subject is smaller
    assert len(set(kept)) > 50


def test_padding_is_black():
    picture, mask = torch.ones(40, 40, 3), torch.ones(40, 40)
    corners = []
    for position in range(100):
        moved, moved_mask = augment_reference(picture, mask, generator(0, "x", position))
        assert torch.equal(moved[..., 0] > 0, moved_mask > 0)
        corners.append(float(moved[0, 0, 0]))
    assert 0.0 in corners


def test_inputs_are_left_alone_and_draws_repeat():
    picture, mask = figure()
    before = picture.clone(), mask.clone()
    first = augment_reference(picture, mask, generator(0, "x", 5))
    second = augment_reference(picture, mask, generator(0, "x", 5))
    other = augment_reference(picture, mask, generator(0, "x", 6))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(picture, before[0]) and torch.equal(mask, before[1])


def test_dropout_is_of_the_share_that_is_asked_for():
    for share in (0.0, 0.1, 0.5, 1.0):
        count = sum(dropped(3, "caption", position, share) for position in range(4000))
        assert abs(count / 4000 - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


def test_conditions_are_dropped_independently_and_repeatably():
    one = [dropped(0, "caption", position, 0.5) for position in range(2000)]
    other = [dropped(0, "references", position, 0.5) for position in range(2000)]
    assert one == [dropped(0, "caption", position, 0.5) for position in range(2000)]
    assert 0.45 < sum(a == b for a, b in zip(one, other, strict=True)) / 2000 < 0.55
