"""Randomness that needs no memory: every draw of a training is a function of the seed, of what it is for, and of where it falls.

A resumed run, and a run on several processes, therefore draw the same numbers as one that was never interrupted.
"""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, position: int) -> torch.Generator:
    """A fresh CPU generator for the draw of `purpose` ("noise", "sigma", "dropout", ...) at sample number `position` of the run."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
