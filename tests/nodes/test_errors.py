"""One sentence on one line, whatever was pasted into an input."""

from __future__ import annotations

import pytest

from comfyui_ensemble.nodes.errors import InputError, readable


@pytest.mark.parametrize(
    "text, shown",
    [
        ("'ä 名前 👩' is unknown; choose one of: a, b", "'ä 名前 👩' is unknown; choose one of: a, b"),
        ("'a\nb\tc' is unknown", "'a\\nb\\tc' is unknown"),
        ("'\x1b[31m\u202egnp.\ud800' is unknown", "'\\x1b[31m\\u202egnp.\\ud800' is unknown"),
        (f"'{'x' * 100}' is unknown", f"'{'x' * 100}' is unknown"),
        (f"'{'x' * 5000}' is neither 'a' nor 'b'", f"'{'x' * 100} ...' is neither 'a' nor 'b'"),
        (f"it is not JSON: {'9' * 5000} is too long", f"it is not JSON: {'9' * 100} ... is too long"),
        (f"it is at /{'folder/' * 30}x.png", f"it is at /{'folder/' * 30}x.png"),
    ],
)
def test_readable(text, shown):
    assert readable(text) == shown


def test_an_input_error_can_be_shown_and_sent_anywhere():
    message = str(InputError("Subject", "name", "'\ud800\n' is no name; use letters"))
    assert message == "Subject, name: '\\ud800\\n' is no name; use letters." and message.encode()
