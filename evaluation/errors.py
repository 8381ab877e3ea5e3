"""What is wrong with something to be measured, in one sentence."""

from __future__ import annotations


class EvaluationError(ValueError):
    """One sentence without its full stop: what cannot be measured or read, and what to do."""

    # The page shows an error's module, and ComfyUI names a pack's modules by their path on the disk.
    __module__ = "comfyui_ensemble"
