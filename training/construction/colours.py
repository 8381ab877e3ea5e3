"""Colours of a subject, as a second opinion beside CLIP: a histogram in CIELAB and how much two of them share."""

from __future__ import annotations

import numpy as np

BINS = (6, 10, 10)  # lightness, green to red, blue to yellow
LOW, HIGH = (0.0, -80.0, -80.0), (100.0, 80.0, 80.0)


def histogram(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Shares of colours among the pixels of a mask, (600,) float32, sum 1; zeros for an empty mask.

    Args:
        picture: (H, W, 3) float32 in [0, 1], sRGB.
        mask: (H, W) bool.

    A colour counts for the eight cells around it by its distance to them, so that a little more light changes little.
    """
    import cv2  # slow to import

    pixels = np.ascontiguousarray(picture[mask], dtype=np.float32)[None]  # (1, n, 3)
    if pixels.shape[1] == 0:
        return np.zeros(int(np.prod(BINS)), np.float32)
    colours = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[0]
    last = np.array(BINS) - 1
    places = ((colours - LOW) / np.subtract(HIGH, LOW)).clip(0, 1) * last  # (n, 3)
    lower = np.minimum(places.astype(np.int64), last - 1)
    share = places - lower
    counts = np.zeros(np.prod(BINS))
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, share, 1 - share).prod(axis=1)
        cells = np.ravel_multi_index(tuple((lower + corner).T), BINS)
        counts += np.bincount(cells, weight, minlength=len(counts))
    return (counts / counts.sum()).astype(np.float32)


def in_common(first: np.ndarray, second: np.ndarray) -> float:
    """The share of two histograms that is the same, 0 to 1."""
    return float(np.minimum(first, second).sum())
