"""How a node tells an artist that an input will not do."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

LONGEST_VALUE = 100  # characters of a value that are worth repeating
_LONG_VALUE = re.compile(rf"'([^']{{{LONGEST_VALUE}}})[^']+'")
_LONG_WORD = re.compile(rf"(\S{{{LONGEST_VALUE}}})\S{{{2 * LONGEST_VALUE}}}\S*")  # longer than any path that helps


class InputError(ValueError):
    """One sentence: the node, the input, what is wrong with it and what to do."""

    # The page shows an error's module, and ComfyUI names a pack's modules by their path on the disk.
    __module__ = "comfyui_ensemble"

    def __init__(self, node: str, input_name: str, problem: str) -> None:
        super().__init__(f"{node}, {input_name}: {readable(problem)}.")


def readable(text: str) -> str:
    """The text on one line, whatever was pasted into an input: long quoted values cut, invisible characters spelled out."""
    short = _LONG_WORD.sub(r"\1 ...", _LONG_VALUE.sub(r"'\1 ...'", text))
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in short)


def require_text(node: str, input_name: str, text: str, remedy: str) -> None:
    """Raise `InputError` where `text` holds nothing but white space."""
    if not text.strip():
        raise InputError(node, input_name, f"it is empty; {remedy}")


def require_packages(node: str, *packages: str) -> None:
    """Say which optional dependency is missing, before an import fails with a traceback."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{node}: the Python package {' and '.join(missing)} is not installed; run"
            " `pip install -r requirements.txt` in this pack's folder."
        )


def sentence_or_true(check: Callable[[Any], Any], value: Any) -> bool | str:
    """What `validate_inputs` returns: True, or the sentence of the `InputError` that `check(value)` raises.

    The host gives None for a value that comes by a link and is not known before the run.
    """
    if value is None:
        return True
    try:
        check(value)
    except InputError as error:
        return str(error)
    return True
