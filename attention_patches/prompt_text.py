"""A prompt as the host's text encoders read it, every character with its place in what was written.

`comfy.sd1_clip` takes brackets and weights out of a prompt, ``(a (red:1.3) coat:1.2)``, and the backslashes before
brackets that are meant as such; what is left is cut into segments that are tokenised one by one. The host's own
functions are asked for the result, and it is an error where they give another.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from comfy import sd1_clip

UNKNOWN_READER = "this text encoder reads prompts in a way that cannot be followed; use one of FLUX.1, SDXL or MiniLM"


class PromptError(ValueError):
    """What is wrong with a prompt and what to do, without the full stop."""


@dataclass(frozen=True)
class Readable:
    """A prompt as the text encoder reads it: without brackets, weights and the backslashes before brackets.

    Attributes:
        text: the characters that are read.
        origins: where in the prompt each of them stands, ascending.
        segments: [start, stop) of `text`; each is tokenised on its own.
    """

    text: str
    origins: Sequence[int]
    segments: Sequence[tuple[int, int]]

    def range_of(self, start: int, stop: int) -> tuple[int, int]:
        """[start, stop) of the prompt -> what of `text` comes from it."""
        return bisect_left(self.origins, start), bisect_left(self.origins, stop)


def read_prompt(prompt: str, weighted: bool) -> Readable:
    """Take brackets, weights and backslashes out of a prompt; `weighted` is False where the host leaves them in."""
    escaped = sd1_clip.escape_important(prompt)  # of the prompt's own length
    cuts = _segments(escaped, 0) if weighted else [(0, len(escaped))]
    if weighted and [escaped[a:b] for a, b in cuts] != [text for text, _ in sd1_clip.token_weights(escaped, 1.0)]:
        raise ValueError(UNKNOWN_READER)
    text, origins, segments = "", [], []
    for start, stop in cuts:
        begin = len(text)
        for match in re.finditer("\0\1|\0\2|.", escaped[start:stop], re.DOTALL):
            text += sd1_clip.unescape_important(match[0])
            origins.append(start + match.start())
        segments.append((begin, len(text)))
    return Readable(text, origins, segments)


def _segments(text: str, start: int) -> list[tuple[int, int]]:
    """Where the segments of `sd1_clip.token_weights(text)` stand, `text` itself standing at `start`."""
    out = []
    for part in sd1_clip.parse_parentheses(text):  # parts that follow one another without a gap
        if len(part) >= 2 and part[0] == "(" and part[-1] == ")":
            out += _segments(_without_weight(part[1:-1]), start + 1)
        else:
            out.append((start, start + len(part)))
        start += len(part)
    return out


def _without_weight(text: str) -> str:
    colon = text.rfind(":")
    if colon > 0:
        try:
            float(text[colon + 1 :])
        except ValueError:
            return text
        return text[:colon]
    return text
