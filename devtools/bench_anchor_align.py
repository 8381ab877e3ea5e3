"""What Anchor Align takes at 1024 x 1024 without SAM: rows for ``dev.py bench``."""

from __future__ import annotations

import time
from typing import Any

import comfyui_ensemble.training  # noqa: F401 (tells the host about accelerators before anything of it is imported)

# isort: split
import torch

from comfyui_ensemble.nodes.anchor_align import EnsembleAnchorAlign
from devtools.bench_row import Row

SIDE = 1024  # pixels
STRUCTURE_BOX, APPEARANCE_BOX = (300, 150, 700, 1000), (120, 260, 460, 940)  # left, top, right, bottom
PROMISED = 50.0  # ms
REPEATS = 15


def rows() -> list[Row]:
    """The whole node, preview and report included: a mask for both pictures, and a drawn structure that needs none.

    The quickest of several runs, in processor time on one thread: other work on the machine slows the rest. Pictures are in
    the processor's memory wherever the models are.
    """
    masks = [_mask(STRUCTURE_BOX), _mask(APPEARANCE_BOX)]
    photos = [torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    drawing = masks[0][..., None] * photos[0]
    return [
        _row("masks", "masks", photos[0], photos[1], *masks),
        _row("plain", "a structure on plain ground", drawing, photos[1], None, masks[1]),
    ]


def _mask(box: tuple[int, int, int, int]) -> torch.Tensor:
    left, top, right, bottom = box
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, top:bottom, left:right] = 1
    return mask


def _row(id: str, what: str, *inputs: Any) -> Row:
    with torch.inference_mode():
        taken = min(_milliseconds(inputs) for _ in range(REPEATS))
    return Row(f"anchor_align.{id}", f"Anchor Align, {SIDE} x {SIDE}, {what}", "ms", taken, PROMISED)


def _milliseconds(inputs: tuple[Any, ...]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    EnsembleAnchorAlign.execute(*inputs)
    taken = time.process_time() - start
    torch.set_num_threads(threads)
    return 1000 * taken
