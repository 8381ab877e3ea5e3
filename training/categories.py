"""What a reference can show of its subject; a condition's place goes by it."""

from __future__ import annotations

CATEGORIES = (
    "person",
    "face",
    "upper garment",
    "lower garment",
    "dress",
    "bag",
    "hat",
    "shoes",
    "animal",
    "other",
)
