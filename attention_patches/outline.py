"""The host's operations for a network of which only the tensors' names and shapes are wanted.

Where the host manages memory dynamically, its own linear layers and embeddings have no weights until a file is loaded into
them, so such a network could not say what belongs in its file. These have theirs at once; on the meta device they take no
memory.
"""

from __future__ import annotations

from typing import Any

import comfy.ops


class Outline(comfy.ops.disable_weight_init):
    """The `operations` of a network that is built to be looked at."""

    class Linear(comfy.ops.disable_weight_init.Linear):
        # The host makes the weights of a class with a loader of its own at once.
        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)

    class Embedding(comfy.ops.disable_weight_init.Embedding):
        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)
