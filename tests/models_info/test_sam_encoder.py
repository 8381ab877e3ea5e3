"""The pieces of SAM's image encoder against loops; the whole of it is compared with the library in test_sam."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfyui_ensemble.models_info.sam_encoder import (
    ALIGNMENT,
    distance_terms,
    into_windows,
    out_of_windows,
    with_distances,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_term_for_every_distance():
    table = normal(9, 3)  # distances -4 .. 4
    terms = distance_terms(table)
    assert terms.shape == (5, 5, 3)
    for query in range(5):
        for key in range(5):
            assert torch.equal(terms[query, key], table[query - key + 4])


@pytest.mark.parametrize("height, breadth, width", [(3, 5, 4), (4, 4, 12), (1, 7, 5)])
def test_wide_products_are_logits_with_distances(height, breadth, width):
    tokens = height * breadth
    q, k = normal(2, 3, tokens, width), normal(2, 3, tokens, width, seed=1)
    vertical, horizontal = normal(height, height, width, seed=2), normal(breadth, breadth, width, seed=3)
    wide_q, wide_k = with_distances(q, k, vertical, horizontal)
    assert wide_q.shape[-1] % ALIGNMENT == 0
    logits = wide_q @ wide_k.transpose(-1, -2) / wide_q.shape[-1] ** 0.5
    expected = np.zeros(logits.shape)
    for query in range(tokens):
        for key in range(tokens):
            (y, x), (other_y, other_x) = divmod(query, breadth), divmod(key, breadth)
            product = (q[:, :, query] * k[:, :, key]).sum(-1) / width**0.5
            product += (q[:, :, query] * (vertical[y, other_y] + horizontal[x, other_x])).sum(-1)
            expected[:, :, query, key] = product
    np.testing.assert_allclose(logits, expected, atol=1e-10)


@pytest.mark.parametrize("height, breadth, window", [(6, 6, 3), (7, 5, 3), (4, 9, 4), (2, 2, 5)])
def test_windows_and_back(height, breadth, window):
    x = normal(2, height, breadth, 3)
    windows = into_windows(x, window)
    down, across = -(-height // window), -(-breadth // window)
    assert windows.shape == (2 * down * across, window, window, 3)
    for number, (y, cell) in enumerate((y, cell) for y in range(down) for cell in range(across)):
        part = x[0, y * window : (y + 1) * window, cell * window : (cell + 1) * window]
        assert torch.equal(windows[number, : part.shape[0], : part.shape[1]], part)
        assert not windows[number, part.shape[0] :].any() and not windows[number, :, part.shape[1] :].any()
    assert torch.equal(out_of_windows(windows, window, height, breadth), x)
