"""Projection against float64 loops and against Pillow's resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.attention_patches.projection import Move, project, project_cast, project_mask

OUTSIDE = torch.tensor([0.1, 0.5, 0.9])
MOVES = [
    Move(1.0, 0.0, 0.0),
    Move(1.0, 3.0, -5.0),
    Move(1.0, 0.25, 0.5),
    Move(0.37, 4.3, 2.2),
    Move(0.05, 11.0, 7.7),
    Move(1.7, -30.2, -11.9),
    Move(5.3, -100.0, -90.0),
    Move(0.9, 29.5, 18.25),
]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(seed))


def axis_weights(place: float, move: float, scale: float, length: int) -> dict[int, float]:
    """Picture pixel -> weight of one canvas pixel along one axis; -1 stands for all pixels beyond the edge."""
    centre, half_width = (place + 0.5 - move) / scale, max(1.0, 1 / scale)
    found: dict[int, float] = {}
    for pixel in range(math.floor(centre - half_width) - 1, math.ceil(centre + half_width) + 1):
        weight = max(0.0, 1 - abs(pixel + 0.5 - centre) / half_width)
        key = pixel if 0 <= pixel < length else -1
        found[key] = found.get(key, 0.0) + weight
    total = sum(found.values())
    return {pixel: weight / total for pixel, weight in found.items() if weight}


def oracle(source: np.ndarray, move: Move, size: tuple[int, int], outside: np.ndarray) -> np.ndarray:
    source = source.astype(np.float64)
    canvas = np.zeros((*size, source.shape[2]))
    for y in range(size[0]):
        rows = axis_weights(y, move.y, move.scale, source.shape[0])
        for x in range(size[1]):
            for column, across in axis_weights(x, move.x, move.scale, source.shape[1]).items():
                for row, down in rows.items():
                    colour = outside if -1 in (row, column) else source[row, column]
                    canvas[y, x] += across * down * colour
    return canvas


@pytest.mark.parametrize("move", MOVES)
def test_every_pixel_is_the_weighted_mean(move):
    source = picture(23, 31)
    canvas = project(source, move, (19, 27), OUTSIDE)
    np.testing.assert_allclose(canvas, oracle(source.numpy(), move, (19, 27), OUTSIDE.numpy()), atol=2e-6)
    assert canvas.dtype == torch.float32 and canvas.is_contiguous()


@pytest.mark.parametrize("seed", range(20))
def test_equals_pillow_within_the_picture(seed):
    """Pillow takes the mean of a box given in fractions of pixels; a canvas pixel range corresponds to such a box."""
    rng = np.random.default_rng(seed)
    source = picture(64, 80, seed=seed)
    scale = float(np.exp(rng.uniform(np.log(0.3), np.log(4))))
    box = np.array([8, 8, 70, 55]) + rng.uniform(-1, 1, 4)  # room for the filter
    width, height = (int((box[2 + axis] - box[axis]) * scale) for axis in (0, 1))
    left, top = box[:2]
    canvas = project(source, Move(scale, -scale * left, -scale * top), (height, width), OUTSIDE)
    within = (left, top, left + width / scale, top + height / scale)
    for channel in range(3):
        whole = Image.fromarray(source[..., channel].numpy())
        cut = within if scale < 1 else (left - 1 / scale, top - 1 / scale, within[2] + 1 / scale, within[3] + 1 / scale)
        margin = 0 if scale < 1 else 1  # Pillow does not look beyond the box when enlarging
        resized = whole.resize((width + 2 * margin, height + 2 * margin), Image.Resampling.BILINEAR, box=cut)
        inner = slice(3, -3)
        np.testing.assert_allclose(
            canvas[inner, inner, channel],
            np.asarray(resized)[margin : margin + height, margin : margin + width][inner, inner],
            atol=1e-5,
        )


def test_whole_pixels_are_copied_exactly():
    source = picture(20, 30)
    assert torch.equal(project(source, Move(1.0, 0.0, 0.0), (20, 30), OUTSIDE), source)
    canvas = project(source, Move(1.0, 4.0, -3.0), (20, 30), OUTSIDE)
    assert torch.equal(canvas[:17, 4:], source[3:, :26])
    assert torch.equal(canvas[17:], OUTSIDE.expand(3, 30, 3))


def test_the_picture_given_is_left_alone():
    source, outside = picture(20, 30), OUTSIDE.clone()
    before = source.clone()
    project(source, Move(0.6, 1.0, 1.0), (20, 30), outside)
    assert torch.equal(source, before) and torch.equal(outside, OUTSIDE)


@pytest.mark.parametrize("move", MOVES)
def test_nothing_gets_brighter_or_darker(move):
    source = picture(23, 31).round()
    canvas = project(source, move, (19, 27), source.new_zeros(3))
    assert canvas.min() >= 0 and canvas.max() <= 1 + 1e-6
    flat = project(OUTSIDE.expand(23, 31, 3), move, (19, 27), OUTSIDE)
    torch.testing.assert_close(flat, OUTSIDE.expand(19, 27, 3))


@pytest.mark.parametrize("move", [Move(1.0, 500.0, 0.0), Move(2.0, 0.0, -500.0), Move(0.001, -50.0, -50.0)])
def test_a_picture_off_the_canvas_leaves_it_empty(move):
    assert torch.equal(project(picture(9, 7), move, (6, 5), OUTSIDE), OUTSIDE.expand(6, 5, 3))
    assert not project_mask(torch.ones(9, 7), move, (6, 5)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision(dtype):
    source = picture(23, 31)
    canvas = project(source.to(dtype), Move(1.3, -2.2, 1.7), (19, 27), OUTSIDE.to(dtype))
    assert canvas.dtype == dtype
    torch.testing.assert_close(
        canvas.float(), project(source, Move(1.3, -2.2, 1.7), (19, 27), OUTSIDE), atol=0.02, rtol=0
    )
    masks = torch.ones(2, 23, 31, dtype=dtype)
    drawn, seen = project_cast(source.to(dtype), masks, [Move(0.5, 1.0, 2.0)] * 2, (19, 27), OUTSIDE, [0, 1])
    assert drawn.dtype == seen.dtype == dtype


@pytest.mark.parametrize("size, canvas", [((8000, 24), (16, 16)), ((24, 8000), (600, 40)), ((16, 16), (40, 8000))])
def test_the_largest_and_the_smallest(size, canvas):
    scale = canvas[0] / size[0]
    drawn = project(picture(*size), Move(scale, 0.0, 0.0), canvas, OUTSIDE)
    assert drawn.shape == (*canvas, 3) and torch.isfinite(drawn).all()
    inside = drawn[2:-2, : max(1, round(scale * size[1]) - 3)]
    assert abs(float(inside.mean()) - 0.5) < 0.1  # the mean of the noise


@pytest.mark.parametrize("move", MOVES)
def test_a_mask_is_a_picture_on_nothing(move):
    mask = torch.zeros(23, 31)
    mask[5:17, 8:20] = torch.rand(12, 12, generator=torch.Generator().manual_seed(1))
    whole = project(mask[..., None], move, (19, 27), mask.new_zeros(1))[..., 0]
    torch.testing.assert_close(project_mask(mask, move, (19, 27)), whole)
    assert not project_mask(mask * 0, move, (19, 27)).any()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_subjects_cover_each_other_in_order(order):
    source = picture(23, 31)
    masks = torch.zeros(3, 23, 31)
    masks[0, 2:15, 3:12], masks[1, 5:20, 10:25], masks[2] = 1, 0.7, 0
    masks[2, 8:12, 20:29] = 1
    moves = [Move(1.3, 2.5, 0.3), Move(0.8, 0.1, 2.0), Move(1.0, -9.0, 1.5)]
    canvas, seen = project_cast(source, masks, moves, (19, 27), OUTSIDE, order)
    expected = np.broadcast_to(OUTSIDE.numpy(), (19, 27, 3)).astype(np.float64)
    visible = np.zeros((3, 19, 27))
    for number in order:
        alone = np.concatenate([source * masks[number][..., None], masks[number][..., None]], axis=-1)
        moved = oracle(alone, moves[number], (19, 27), np.zeros(4))
        cover = moved[..., 3]
        expected = expected * (1 - cover[..., None]) + moved[..., :3]
        visible *= 1 - cover
        visible[number] = cover
    np.testing.assert_allclose(canvas, expected, atol=2e-6)
    np.testing.assert_allclose(seen, visible, atol=2e-6)


def test_an_empty_mask_draws_nobody():
    masks = torch.zeros(2, 23, 31)
    masks[0, 2:9, 2:9] = 1
    canvas, seen = project_cast(
        picture(23, 31), masks, [Move(1.0, 0.0, 0.0), Move(9.0, 0.0, 0.0)], (23, 31), OUTSIDE, [0, 1]
    )
    assert torch.equal(canvas[2:9, 2:9], picture(23, 31)[2:9, 2:9]) and not seen[1].any()
    assert torch.equal(seen[0], masks[0])
