"""How a node tells an artist that an input will not do."""

from __future__ import annotations


class InputError(ValueError):
    """One sentence: the node, the input, what is wrong with it and what to do."""

    def __init__(self, node: str, input_name: str, problem: str) -> None:
        super().__init__(f"{node}, {input_name}: {problem}.")


def require_text(node: str, input_name: str, text: str, remedy: str) -> None:
    """Raise `InputError` where `text` holds nothing but white space."""
    if not text.strip():
        raise InputError(node, input_name, f"it is empty; {remedy}")
