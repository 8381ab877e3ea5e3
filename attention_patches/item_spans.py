"""Which text embeddings describe which subject: the item spans of One-for-All's CCPA and of DSM's per-item attention.

A description is given its place in a prompt by the placeholder ``{name}``, or it stands there in so many words. It is
looked for in the characters the text encoder reads (`prompt_text`), so weights and brackets inside or around it do not
matter, and it is carried over to the embeddings by the tokenizer's own offsets (`prompt_tokens`).

A conditioning carries the result in its options under `SPANS_KEY`: ``{subject's name: [(start, stop), ...]}``, ranges of
text embeddings, several for a description that occurs several times or is cut by the end of a chunk. Ranges of two
subjects overlap only where one token covers words of both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .prompt_text import PromptError, Readable, read_prompt
from .prompt_tokens import Token

SPANS_KEY = "ensemble_item_spans"

Spans = Sequence[tuple[int, int]]

_PLACEHOLDER = re.compile(r"\\([{}])|\{([^{}]*)\}")
_JOINER = "\u200d"  # between the parts of one emoji
_SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


@dataclass(frozen=True)
class Occurrence:
    """A subject's description at characters [start, stop)."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Placed:
    """A prompt in which every subject is described.

    Attributes:
        prompt: to be encoded.
        readable: what of it is read.
        occurrences: where in `readable.text` the descriptions stand, in order; no two overlap.
    """

    prompt: str
    readable: Readable
    occurrences: Sequence[Occurrence]


def place_items(prompt: str, descriptions: Mapping[str, str], weighted: bool, append: bool) -> Placed:
    """Fill the placeholders of a prompt and find all descriptions in it.

    Args:
        descriptions: of every subject by name; may hold weights, as the prompt may.
        weighted: whether the text encoder knows weights.
        append: put what is missing at the end of the prompt.

    Raises:
        PromptError: a placeholder names nobody, or a description is missing.
    """
    filled, given = fill_placeholders(prompt, descriptions)
    placed = _find_all(filled, given, descriptions, weighted)
    missing = _missing(placed, descriptions)
    if missing and append:
        for name in missing:
            filled = filled.rstrip() + ", "
            given = [*given, Occurrence(name, len(filled), len(filled) + len(descriptions[name]))]
            filled += descriptions[name]
        placed = _find_all(filled, given, descriptions, weighted)
        missing = _missing(placed, descriptions)
    if missing:
        listed = " and ".join(f"'{' '.join(descriptions[name].split())}' ({name})" for name in missing)
        raise PromptError(
            f"it does not say {listed}, or only inside the words of another subject; write these words or the"
            f" placeholder {{{missing[0]}}} where they belong, or set missing to append"
        )
    return placed


def _missing(placed: Placed, descriptions: Mapping[str, str]) -> list[str]:
    found = {occurrence.name for occurrence in placed.occurrences}
    return [name for name in descriptions if name not in found]


def fill_placeholders(prompt: str, descriptions: Mapping[str, str]) -> tuple[str, list[Occurrence]]:
    r"""The prompt with every ``{name}`` replaced by the description, and where these are; ``\{`` is a mere bracket."""
    filled, last, found = "", 0, []
    for match in _PLACEHOLDER.finditer(prompt):
        filled += prompt[last : match.start()]
        last = match.end()
        if match[1]:
            filled += match[1]
            continue
        name = _subject_named(match[2], descriptions)
        found.append(Occurrence(name, len(filled), len(filled) + len(descriptions[name])))
        filled += descriptions[name]
    return filled + prompt[last:], found


def _subject_named(written: str, names: Iterable[str]) -> str:
    wanted = " ".join(written.split())
    alike = [name for name in names if name.casefold() == wanted.casefold()]
    if wanted in alike:
        return wanted
    if len(alike) != 1:
        raise PromptError(
            f"{{{wanted}}} stands for nobody; the cast has {', '.join(names)} (write \\{{ for a bracket that is no placeholder)"
        )
    return alike[0]


def _find_all(prompt: str, given: Sequence[Occurrence], descriptions: Mapping[str, str], weighted: bool) -> Placed:
    readable = read_prompt(prompt, weighted)
    fixed = [Occurrence(item.name, *readable.range_of(item.start, item.stop)) for item in given]
    words = {name: read_prompt(text, weighted).text for name, text in descriptions.items()}
    occurrences = find_descriptions(readable.text, words, [item for item in fixed if item.start < item.stop])
    return Placed(prompt, readable, occurrences)


def find_descriptions(text: str, words: Mapping[str, str], fixed: Sequence[Occurrence]) -> list[Occurrence]:
    """Every place where the words of a subject stand, in order, besides those that are `fixed`.

    Of places that overlap the longest counts, so that "a man" is not found in "a man in a hat" where that is somebody
    else. Words count as they are written or with a capital at the start of a sentence; a subject found nowhere like that
    is looked for in any case. Any white space equals any other.
    """
    candidates = [
        Occurrence(name, *place)
        for name, its_words in words.items()
        for place in _places(text, its_words, 0) or _places(text, its_words, re.IGNORECASE)
    ]
    taken = list(fixed)
    for candidate in sorted(candidates, key=lambda item: (item.start - item.stop, item.start)):
        if all(candidate.stop <= other.start or other.stop <= candidate.start for other in taken):
            taken.append(candidate)
    return sorted(taken, key=lambda item: item.start)


def _places(text: str, words: str, flags: int) -> list[tuple[int, int]]:
    pattern = r"\s+".join(map(re.escape, words.split()))
    if not pattern:
        return []
    first = words.split()[0][0]
    if len(first.upper()) == 1:
        pattern = f"[{re.escape(first)}{re.escape(first.upper())}]{pattern[len(re.escape(first)) :]}"
    return [
        match.span()
        for match in re.finditer(pattern, text, flags)
        if not _goes_on(text, match.start()) and not _goes_on(text, match.end())
    ]


def _goes_on(text: str, place: int) -> bool:
    """Whether a word (or an emoji) goes on across `place`.

    Letters with capitals, and digits, belong to scripts that put spaces between words. All others may follow one another:
    Chinese has no spaces, Arabic writes "and" and "the" as part of the next word, Korean its particles after one.
    """
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.combining(after) or after in _SKIN_TONES or _JOINER in (before, after):
        return True
    return _spaced(before) and _spaced(after)


def _spaced(character: str) -> bool:
    return character.isdecimal() or character.lower() != character.upper()


def token_ranges(lanes: Sequence[Sequence[Token]], start: int, stop: int) -> list[tuple[int, int]]:
    """The text embeddings that hold anything of characters [start, stop), as ranges of neighbours.

    An embedding made of several lanes' tokens side by side counts where any of them does.
    """
    indices = [
        index
        for index, tokens in enumerate(zip(*lanes, strict=False))  # the host cuts to the shortest lane
        if any(max(token.start, start) < min(token.stop, stop) for token in tokens)
    ]
    ranges: list[tuple[int, int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return ranges


def spans_of(options: Mapping[str, Any], length: int) -> dict[str, list[tuple[int, int]]]:
    """The item spans in a conditioning's options; empty where it has none.

    Args:
        length: L, its text embeddings.

    Raises:
        ValueError: they are of another prompt or another text encoder.
    """
    spans = options.get(SPANS_KEY) or {}
    if any(not 0 <= start < stop <= length for ranges in spans.values() for start, stop in ranges):
        raise ValueError(
            f"its item spans do not fit its {length} tokens; connect the prompt as it comes from Item Prompt"
        )
    return {name: [(start, stop) for start, stop in ranges] for name, ranges in spans.items()}
