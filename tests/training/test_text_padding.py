"""Prompts of unequal length in one call, against each on its own."""

from __future__ import annotations

import torch

from comfyui_ensemble.training.model import TrainableModel
from comfyui_ensemble.training.text_padding import ignore_padding, pad_texts, padding_mask


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_mask_hides_what_is_padding_and_nothing_else():
    mask = padding_mask([2, 5, 4], 5, 3, torch.zeros((), dtype=torch.bfloat16))
    assert mask is not None and mask.shape == (3, 1, 1, 8) and mask.dtype == torch.bfloat16
    hidden = mask.isinf()[:, 0, 0]
    assert hidden.tolist() == [
        [False, False, True, True, True, False, False, False],
        [False] * 8,
        [False, False, False, False, True, False, False, False],
    ]
    assert not mask[~mask.isinf()].any()


def test_equal_lengths_need_no_mask(flux):
    assert padding_mask([5, 5], 5, 3, torch.zeros(())) is None
    assert ignore_padding(flux, [5, 5]) is flux


def test_each_prompt_as_if_it_stood_alone(flux):
    width = flux.model.diffusion_model.params.context_in_dim
    texts = [random(number, 1, length, width) for number, length in enumerate((3, 9, 5))]
    padded = pad_texts(texts)
    assert padded.shape == (3, 9, width) and torch.equal(padded[2, :5], texts[2][0]) and not padded[2, 5:].any()
    model = TrainableModel(flux, "frozen")
    x, sigma, reference = random(9, 3, 16, 6, 4), torch.tensor([0.9, 0.5, 0.2]), random(10, 1, 16, 4, 4)

    def prompt(text: torch.Tensor) -> list:
        return [[text, {"pooled_output": random(11, 1, width), "reference_latents": [reference]}]]

    patched = ignore_padding(model.patcher, [3, 9, 5])
    together = model.predict(x, sigma, [prompt(padded[row : row + 1]) for row in range(3)], patched)
    unhidden = model.predict(x, sigma, [prompt(padded[row : row + 1]) for row in range(3)])
    for row, text in enumerate(texts):
        alone = model.predict(x[row : row + 1], sigma[row : row + 1], [prompt(text)])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert (unhidden[0] - together[0]).abs().max() > 1e-3  # padding that is looked at does matter
