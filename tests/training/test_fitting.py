"""Pictures, masks, boxes and poses at the training's sizes.

Coordinates are checked against pixels: what is drawn at a place must be found, in the resized picture, where the place was
moved to.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.training.buckets import Size, nearest_bucket
from comfyui_ensemble.training.fitting import Fit, cover, fit_box, fit_mask, fit_person, fit_picture, fit_sample, resize
from comfyui_ensemble.training.sample import TrainingSample, TrainingSubject

BODY = "pose_keypoints_2d"


def blob(size: Size, x: float, y: float, width: float) -> torch.Tensor:
    """(h, w): a round spot whose middle is at (x, y), counted from the upper left corner."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    return torch.from_numpy(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2))).float()


def middle(picture: torch.Tensor) -> tuple[float, float]:
    """Where the spot of a picture (h, w) is."""
    values = picture.double().numpy()
    rows, columns = np.mgrid[0 : values.shape[0], 0 : values.shape[1]] + 0.5
    return float((columns * values).sum() / values.sum()), float((rows * values).sum() / values.sum())


def fits() -> list[Fit]:
    draw = random.Random(1)
    found = []
    for _ in range(40):
        size = draw.randint(60, 400), draw.randint(60, 400)
        found.append(cover(size, nearest_bucket(size, draw.choice([96, 128, 160, 256]))))
    return found


def test_a_fit_covers_its_bucket_and_cuts_evenly():
    for fit in fits():
        (left, top), (width, height) = fit.offset, fit.bucket
        assert fit.whole[0] == width or fit.whole[1] == height
        assert left >= 0 and top >= 0
        assert fit.whole[0] - width - 2 * left in (0, 1) and fit.whole[1] - height - 2 * top in (0, 1)
        assert abs(fit.scale[0] / fit.scale[1] - 1) < 1 / min(fit.bucket) + 0.001


def test_a_keypoint_moves_with_what_is_drawn_there():
    draw = random.Random(2)
    for fit in fits():
        scale, margin = fit.scale[0], 12
        x = (fit.offset[0] + draw.uniform(margin, fit.bucket[0] - margin)) / fit.scale[0]
        y = (fit.offset[1] + draw.uniform(margin, fit.bucket[1] - margin)) / fit.scale[1]
        picture = blob(fit.source, x, y, 2.5 / scale)[..., None].expand(-1, -1, 3)
        person = fit_person({BODY: [x, y, 0.9]}, fit)
        assert person is not None
        assert middle(fit_picture(picture, fit)[..., 1]) == pytest.approx(person[BODY][:2], abs=0.15)
        assert middle(fit_mask(picture[..., 0], fit)) == pytest.approx(person[BODY][:2], abs=0.15)


def test_a_box_moves_with_the_mask_in_it():
    draw = random.Random(3)
    for fit in fits():
        x0, x1 = sorted(draw.sample(range(fit.source[0] + 1), 2))
        y0, y1 = sorted(draw.sample(range(fit.source[1] + 1), 2))
        mask = torch.zeros(fit.source[1], fit.source[0])
        mask[y0:y1, x0:x1] = 1
        box, moved = fit_box((x0, y0, x1, y1), fit), fit_mask(mask, fit)
        rows, columns = torch.nonzero(moved > 0.5, as_tuple=True)
        if len(rows) == 0:
            assert box is None or min(box[2] - box[0], box[3] - box[1]) < 1
            continue
        assert box is not None
        edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert [int(edge) for edge in edges] == pytest.approx(box, abs=0.51 + max(fit.scale))


def test_masks_keep_their_area():
    for fit in fits():
        mask = blob(fit.source, fit.source[0] / 2, fit.source[1] / 2, 10)
        area = float(fit_mask(mask, fit).sum()) / (fit.scale[0] * fit.scale[1])
        assert area == pytest.approx(float(mask.sum()), rel=0.02)


def test_pictures_are_resized_as_pillow_does_it():
    # Values from the middle: Pillow cuts off between its two passes what goes beyond 0 and 255.
    noise = np.random.default_rng(0).integers(64, 192, (90, 131, 3), dtype=np.uint8)
    for size in ((64, 48), (200, 160), (131, 40)):
        expected = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)).astype(int)
        for picture in (torch.from_numpy(noise), torch.from_numpy(noise).float() / 255):
            found = resize(picture, size, "bicubic")
            assert found.dtype == torch.float32 and found.shape == (size[1], size[0], 3)
            assert np.abs(found.numpy() * 255 - expected).max() <= 2.5


def test_a_picture_of_the_right_size_is_not_touched():
    picture = torch.rand(96, 128, 3)
    assert torch.equal(fit_picture(picture, cover((128, 96), (128, 96))), picture)
    pixels = torch.randint(0, 256, (96, 128, 3), dtype=torch.uint8)
    assert torch.equal(fit_picture(pixels, cover((128, 96), (128, 96))), pixels.float() / 255)


def test_what_is_cut_off_is_not_there_any_more():
    fit = cover((1000, 100), nearest_bucket((1000, 100), 128))  # a panorama loses its ends
    assert fit_box((0, 0, 20, 100), fit) is None
    box = fit_box((0, 0, 1000, 100), fit)
    assert box == (0, 0, *fit.bucket)
    person = {
        BODY: [5, 50, 1, 500, 50, 0.5, 400, 60, 0],
        "hand_left_keypoints_2d": [995, 50, 1],
        "face_keypoints_2d": None,
    }
    moved = fit_person(person, fit)
    assert moved is not None
    assert moved[BODY][:3] == [0, 0, 0] and moved[BODY][5] == 0.5 and moved[BODY][6:] == [0, 0, 0]
    assert moved["hand_left_keypoints_2d"] == [0, 0, 0] and moved["face_keypoints_2d"] is None
    assert person[BODY][0] == 5
    assert fit_person({BODY: [5, 50, 1]}, fit) is None


def test_a_whole_sample_is_moved_alike_and_left_alone():
    size = 300, 200
    mask = blob(size, 200, 90, 12)
    reference_mask = blob((90, 160), 30, 100, 8)
    subject = TrainingSubject(
        name="anna",
        description="a woman",
        category="person",
        reference=reference_mask[..., None].repeat(1, 1, 3),
        reference_mask=reference_mask,
        mask=mask,
        box=(190, 80, 210, 100),
        person={BODY: [200.0, 90.0, 1.0]},
    )
    sample = TrainingSample("key", mask[..., None].repeat(1, 1, 3), "a woman", (subject,))
    before = mask.clone(), reference_mask.clone()
    fitted = fit_sample(sample, 128, 96)
    one = fitted.subjects[0]
    assert fitted.target.shape == (*reversed(nearest_bucket(size, 128)), 3)
    assert one.mask is not None and one.mask.shape == fitted.target.shape[:2]
    assert one.reference.shape == (96, 48, 3) and one.reference_mask.shape == (96, 48)
    assert one.box is not None and one.person is not None
    place = one.person[BODY][:2]
    for found in (
        middle(fitted.target[..., 0]),
        middle(one.mask),
        ((one.box[0] + one.box[2]) / 2, (one.box[1] + one.box[3]) / 2),
    ):
        assert found == pytest.approx(place, abs=0.15)
    assert middle(one.reference[..., 0]) == pytest.approx((30 * 48 / 90, 100 * 96 / 160), abs=0.15)
    assert middle(one.reference_mask) == pytest.approx((30 * 48 / 90, 100 * 96 / 160), abs=0.15)
    assert fitted.target.is_contiguous() and one.reference.is_contiguous() and one.mask.is_contiguous()
    assert torch.equal(mask, before[0]) and torch.equal(reference_mask, before[1])
