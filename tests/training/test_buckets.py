"""Aspect buckets."""

from __future__ import annotations

import math
import random

import pytest

from comfyui_ensemble.training.buckets import MAX_ASPECT, buckets, nearest_bucket, reference_size

RESOLUTIONS = (16, 32, 64, 96, 128, 200, 256, 512, 768, 896, 1000, 1024, 2048)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_buckets_are_whole_tokens_of_nearly_the_same_area(resolution: int):
    found = buckets(resolution)
    square = resolution // 16 * 16
    assert (square, square) in found
    assert len(set(found)) == len(found) <= 33
    assert {(height, width) for width, height in found} == set(found)
    for width, height in found:
        assert width % 16 == height % 16 == 0
        assert width * height <= resolution**2
        # Another row of tokens would not fit, but for the square where the resolution is no multiple of 16.
        assert max(width, height) * (min(width, height) + 16) > resolution**2 or width == height
        assert max(width / height, height / width) <= MAX_ASPECT
    shapes = [width / height for width, height in found]
    assert shapes == sorted(shapes) and len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_the_nearest_bucket_is_the_nearest(resolution: int):
    draw = random.Random(resolution)
    for _ in range(200):
        size = draw.randint(1, 4000), draw.randint(1, 4000)
        chosen = nearest_bucket(size, resolution)

        def away(bucket: tuple[int, int], size: tuple[int, int] = size) -> float:
            return abs(math.atan2(*bucket) - math.atan2(*size))

        # Angles do not rank exactly as ratios do, but no bucket lies between a picture and its own.
        between = sorted([chosen[0] / chosen[1], size[0] / size[1]])
        assert not [one for one in buckets(resolution) if between[0] < one[0] / one[1] < between[1]]
        assert away(chosen) <= min(map(away, buckets(resolution))) + 0.1


def test_buckets_are_their_own_nearest():
    for resolution in RESOLUTIONS:
        assert all(nearest_bucket(bucket, resolution) == bucket for bucket in buckets(resolution))


def test_photos_lose_little():
    for shape in ((3, 2), (2, 3), (4, 3), (16, 9), (9, 16), (1, 1), (5, 4)):
        width, height = nearest_bucket((shape[0] * 300, shape[1] * 300), 1024)
        ratio = (width / height) / (shape[0] / shape[1])
        assert abs(math.log(ratio)) < math.log(1.14) / 2  # half of the way between two buckets


def test_references_keep_their_shape():
    assert reference_size((1000, 1000), 512) == (512, 512)
    assert reference_size((1000, 750), 768) == (768, 576)
    assert reference_size((300, 4000), 512) == (32, 512)
    assert reference_size((1, 4000), 512) == (16, 512)
    assert reference_size((512, 512), 500) == (496, 496)
