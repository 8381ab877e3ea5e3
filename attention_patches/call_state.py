"""What hooks remember during one call of the model, for whoever runs a part of the call a second time.

Gradient checkpointing throws a block's intermediate values away and runs the block again on the way back. A hook that
remembers something from one block to the next must then find what it found the first time, and must not remember the second
time. So its object is named under `KEY` in the call's transformer options, and checkpointing takes down what it holds at the
entry of every block. A `torch.Generator` is such an object as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

KEY = "ensemble_call_state"


class CallState(Protocol):
    """Remembers something during one call."""

    def get_state(self) -> Any:
        """What is held now, as a value that later changes leave alone."""
        ...

    def set_state(self, state: Any, /) -> Any:
        """Hold what `get_state` gave."""
        ...


def with_call_state(options: Mapping[str, Any], state: CallState) -> dict[str, Any]:
    """A copy of a call's transformer options that names one more object with a memory."""
    return {**options, KEY: (*options.get(KEY, ()), state)}
