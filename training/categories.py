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
ONE_FOR_ALL = {"face": 2, "upper garment": 2, "lower garment": 2, "bag": 1}  # shares in its training, section 4.1
