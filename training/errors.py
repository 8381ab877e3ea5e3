"""How training says that it cannot begin or go on."""

from __future__ import annotations


class TrainingError(ValueError):
    """One sentence without its full stop, for the artist at a node and the person at a terminal alike.

    Attributes:
        input_name: the node's input that the sentence is about.
    """

    # The page shows an error's module, and ComfyUI names a pack's modules by their path on the disk.
    __module__ = "comfyui_ensemble"

    def __init__(self, sentence: str, input_name: str = "config") -> None:
        super().__init__(sentence)
        self.input_name = input_name
