"""Aspect buckets: the few picture sizes that a training uses, so that pictures of one batch fit together uncut.

All buckets of a resolution have about its area and keep both sides at multiples of 16, one FLUX token. Neighbouring
buckets are a sixteenth of the resolution apart, so every resolution has the same few dozen aspect ratios at most.
"""

from __future__ import annotations

import math
from functools import lru_cache

STEP = 16  # pixels: what a picture's sides are multiples of
STEPS = 16  # of a side of the square bucket, from one bucket to the next
MAX_ASPECT = 3.0  # longer panoramas are cut down to this

Size = tuple[int, int]  # width, height


@lru_cache(maxsize=64)
def buckets(resolution: int) -> tuple[Size, ...]:
    """All bucket sizes of a resolution, from the narrowest to the widest; none has more than resolution² pixels.

    Args:
        resolution: side of the square whose area a bucket has, in pixels; at least 16.
    """
    square = resolution // STEP * STEP
    step = max(STEP, square // STEPS // STEP * STEP)
    area = resolution * resolution
    found: set[Size] = {(square, square)}
    for longer in range(square, int(resolution * math.sqrt(MAX_ASPECT)) + 1, step):
        shorter = area // longer // STEP * STEP
        if shorter and longer <= MAX_ASPECT * shorter:
            found |= {(longer, shorter), (shorter, longer)}
    return tuple(sorted(found, key=_aspect))


def nearest_bucket(size: Size, resolution: int) -> Size:
    """The bucket whose aspect ratio is nearest to that of a picture of `size`; of two equally near the larger one."""
    wanted = math.log(_aspect(size))
    return min(
        buckets(resolution), key=lambda bucket: (abs(math.log(_aspect(bucket)) - wanted), -bucket[0] * bucket[1])
    )


def reference_size(size: Size, longer_side: int) -> Size:
    """A reference's size as the inference nodes encode it: its own aspect ratio, both sides multiples of 16.

    Args:
        longer_side: in pixels.
    """
    scale = longer_side / max(size)
    width, height = (max(STEP, round(side * scale / STEP) * STEP) for side in size)
    return width, height


def _aspect(size: Size) -> float:
    return size[0] / size[1]
