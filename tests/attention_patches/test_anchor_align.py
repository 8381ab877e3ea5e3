"""AnchorAlign against the formula as the paper prints it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfyui_ensemble.attention_patches.anchor_align import (
    Box,
    align,
    background_colour,
    box_mask,
    cut_off,
    mask_box,
    moved_box,
    plain_subject,
    union,
)
from comfyui_ensemble.attention_patches.projection import Move, project, project_mask

RED, BLACK = torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3)


def rectangle(box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    left, top, right, bottom = box
    mask = torch.zeros(size)
    mask[top:bottom, left:right] = 1
    return mask


def random_case(seed: int):
    """Two pictures of random size with a random box of whole pixels in each."""
    rng = np.random.default_rng(seed)
    sizes, boxes = [], []
    for _ in range(2):
        height, width = rng.integers(24, 160, 2)
        left, top = rng.integers(0, width - 6), rng.integers(0, height - 6)
        right, bottom = rng.integers(left + 4, width), rng.integers(top + 4, height)
        sizes.append((int(height), int(width)))
        boxes.append(tuple(map(int, (left, top, right, bottom))))
    return sizes, boxes


@pytest.mark.parametrize("seed", range(100))
def test_boxes_and_colours_follow_the_formula(seed):
    sizes, boxes = random_case(seed)
    masks = [rectangle(box, size) for box, size in zip(boxes, sizes, strict=True)]
    found = [mask_box(mask) for mask in masks]
    assert found == [tuple(box) for box in boxes]
    (left, top, right, bottom), (a_left, a_top, a_right, a_bottom) = boxes
    # As printed: s = h_a / h_s, P the bottom centres, t = P_a - (s P_s).
    s = (a_bottom - a_top) / (bottom - top)
    t = np.array([(a_left + a_right) / 2, a_bottom]) - s * np.array([(left + right) / 2, bottom])
    move = align(*(Box(*box) for box in boxes))
    np.testing.assert_allclose(move, (s, *t), rtol=1e-12, atol=1e-9)
    analytic = np.array([s * left + t[0], s * top + t[1], s * right + t[0], s * bottom + t[1]])
    np.testing.assert_allclose(moved_box(Box(*boxes[0]), move), analytic, atol=1e-9)
    np.testing.assert_allclose(analytic[[1, 3]], [a_top, a_bottom], atol=1e-9)
    assert np.isclose(analytic[0] + analytic[2], a_left + a_right)

    height, width = sizes[1]
    aligned = mask_box(project_mask(masks[0], move, sizes[1]))
    shown = np.clip(analytic, 0, [width, height, width, height])
    if shown[2] - shown[0] >= 2:  # a thinner one may nowhere fill half a pixel
        assert aligned is not None
        assert np.abs(np.array(aligned) - shown).max() <= 1

    # A ramp tells of every canvas pixel which place of the structure it shows.
    y, x = np.meshgrid(np.arange(sizes[0][0]) + 0.5, np.arange(sizes[0][1]) + 0.5, indexing="ij")
    ramp = torch.from_numpy(np.stack([x, y, x + y], axis=-1)).float()
    drawn = project(ramp, move, sizes[1], BLACK).numpy()
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    from_x, from_y = (u - t[0]) / s, (v - t[1]) / s
    edge = max(1.0, 1 / s)  # nearer to the picture's edge the background is mixed in
    within = (from_x > edge) & (from_x < sizes[0][1] - edge) & (from_y > edge) & (from_y < sizes[0][0] - edge)
    exact = 1e-3 if s >= 1 else 0.2  # structure pixels: the samples of a mean are not quite symmetric
    np.testing.assert_allclose(drawn[..., 0][within], from_x[within], atol=exact)
    np.testing.assert_allclose(drawn[..., 1][within], from_y[within], atol=exact)
    away = (from_x < -edge) | (from_x > sizes[0][1] + edge) | (from_y < -edge) | (from_y > sizes[0][0] + edge)
    assert not drawn[away].any()


def test_an_aligned_structure_stays_as_it_is():
    box = Box(3, 5, 20, 30)
    assert align(box, box) == Move(1.0, 0.0, 0.0)


def test_boxes():
    assert Box(2, 3, 7, 11).anchor == (4.5, 11) and (Box(2, 3, 7, 11).width, Box(2, 3, 7, 11).height) == (5, 8)
    assert union([Box(2, 3, 7, 11), Box(-1, 5, 4, 20)]) == (-1, 3, 7, 20)
    assert mask_box(torch.zeros(4, 5)) is None and mask_box(torch.full((4, 5), 0.5)) is None
    assert mask_box(torch.ones(4, 5)) == (0, 0, 5, 4)
    mask = torch.zeros(4, 5)
    mask[2, 3] = 0.6
    assert mask_box(mask) == (3, 2, 4, 3)


def test_a_box_as_a_mask_covers_its_area():
    mask = box_mask(Box(1.25, -3.0, 4.5, 2.5), (6, 5))
    assert mask.shape == (6, 5) and np.isclose(float(mask.sum()), 3.25 * 2.5)
    assert torch.allclose(mask[0], torch.tensor([0, 0.75, 1, 1, 0.5]))
    assert torch.allclose(mask[:, 2], torch.tensor([1, 1, 0.5, 0, 0, 0]))
    assert not box_mask(Box(-9, -9, -1, -1), (6, 5)).any()


@pytest.mark.parametrize(
    "box, expected",
    [
        (Box(0, 0, 10, 20), (0, 0, 0, 0, 0)),
        (Box(-5, 0, 5, 20), (0.5, 0.5, 0, 0, 0)),
        (Box(5, 10, 15, 30), (0.75, 0, 0, 0.5, 0.5)),
        (Box(-5, -20, 15, 40), (1 - 1 / 6, 0.25, 1 / 3, 0.25, 1 / 3)),
        (Box(20, 0, 30, 20), (1, 0, 0, 1, 0)),
        (Box(-30, 0, -10, 20), (1, 1, 0, 0, 0)),
    ],
)
def test_what_is_cut_off(box, expected):
    assert np.allclose(cut_off(box, (20, 10)), expected)


def test_background_is_the_border_without_the_subject():
    picture = BLACK.expand(20, 30, 3).clone()
    picture[5:, 2:28] = RED  # reaches the lower edge, most of it
    assert torch.equal(background_colour(picture), BLACK)
    picture[:, :28] = RED
    mask = torch.zeros(20, 30)
    mask[:, :28] = 1
    assert torch.equal(background_colour(picture), RED)
    assert torch.equal(background_colour(picture, mask), BLACK)


def test_background_where_the_subject_takes_the_border_or_everything():
    picture = RED.expand(20, 30, 3).clone()
    picture[5:9, 5:9] = 0.25
    ring = torch.ones(20, 30)
    ring[5:9, 5:9] = 0
    assert background_colour(picture, ring).tolist() == [0.25] * 3
    assert torch.equal(background_colour(picture, torch.ones(20, 30)), RED)


def test_a_plain_background_tells_the_subject():
    picture = torch.full((40, 30, 3), 0.8)
    picture[10:, 8:20] = torch.tensor([0.8, 0.2, 0.8])  # one channel is enough; cut off below
    picture += 0.02 * torch.rand(40, 30, 3)
    mask = plain_subject(picture)
    assert mask is not None and torch.equal(mask, rectangle((8, 10, 20, 40), (40, 30)))
    nothing = plain_subject(torch.full((16, 16, 3), 0.3))
    assert nothing is not None and not nothing.any()


def test_a_photo_has_no_plain_background():
    assert plain_subject(torch.rand(40, 30, 3)) is None
    ramp = torch.linspace(0, 1, 40)[:, None, None].expand(40, 30, 3)
    assert plain_subject(ramp) is None
