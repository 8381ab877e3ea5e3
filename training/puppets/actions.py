"""What the people of a pose database's entry do, in the words of its prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...pose_db.variation_axes import GROUPS, SUBJECT_POOLS

_NAMES: dict[str, set[str]] = {}  # how prompts call people, by their tag
for _subject in (subject for pool in SUBJECT_POOLS.values() for subject in pool):
    _NAMES.setdefault(_subject.attributes, set()).add(_subject.words)
_GROUP_NAMES = sorted({words for pool in GROUPS.values() for words, _ in pool}, key=len, reverse=True)


def action_words(prompt: str, tags: Mapping[str, Any]) -> str:
    """What remains of a prompt without people, place and camera, such as "waving with the left hand".

    Where people have different parts, "{0}", "{1}" and "{2}" stand for them. "" where a person's name is not found.
    """
    text = prompt
    for words in (tags["camera"], tags["environment"]):
        if words:
            text = re.sub(rf",? ?{re.escape(words)}( of |, )?", " ", text, count=1)
    text = re.sub(r"\b(is|are) ", "", " ".join(text.split()).strip(" ,"), count=1)
    for words in _GROUP_NAMES:
        if text.startswith(f"{words} "):
            return text.removeprefix(f"{words} ")
    return _with_parts(text, tags["subjects"])


def _with_parts(text: str, subjects: Sequence[str]) -> str:
    for number, subject in enumerate(subjects):
        found = [name for name in _names(subject) if re.search(rf"\b{name}\b", text)]
        if not found:
            return ""
        text = re.sub(rf"\b{found[0]}\b", f"{{{number}}}", text, count=1)
    return text.removeprefix("{0} ") if len(subjects) == 1 else text


@lru_cache(maxsize=256)
def _names(subject: str) -> list[str]:
    """How a prompt may call a person of a tag; the second and third of a kind come after the first."""
    words = sorted(_NAMES.get(subject, ()), key=len, reverse=True)
    bare = [word.split(" ", 1)[1] for word in words]
    return [*words, *(f"another {word}" for word in bare), *(f"a third {word}" for word in bare)]
