"""Settings that every training of an ablation has."""

from __future__ import annotations

from typing import Any

CHECKPOINTS = 4  # of a training; what a killed command has to do again is a quarter of one at most


def run_settings(steps: int, seed: int) -> dict[str, Any]:
    """Of a training of so many steps. References stay as they are, so that each is encoded once for all rows."""
    return {
        "run": "ablation",
        "steps": steps,
        "seed": seed,
        "precision": "bf16",
        "save_every": max(1, steps // CHECKPOINTS),
        "keep": 1,
        "workers": 1,
        "augment_references": False,
    }
