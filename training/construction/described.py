"""What a picture shows, in words: from a Florence-2 model, or from files that lie beside the pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .boxes import Box
from .steps import ItemError

Phrases = tuple[tuple[str, Box], ...]


@dataclass(frozen=True)
class Described:
    """A picture's caption and what is where.

    Attributes:
        phrases: words of the caption and the boxes that show it; one phrase may have several.
        objects: names of detected things, in nobody's words.
    """

    caption: str
    phrases: Phrases
    objects: Phrases = ()

    def as_json(self) -> dict[str, Any]:
        return {"caption": self.caption, "phrases": _as_lists(self.phrases), "objects": _as_lists(self.objects)}


def _as_lists(phrases: Phrases) -> list[list[Any]]:
    return [[words, list(box)] for words, box in phrases]


def from_json(values: Any) -> Described:
    """What `Described.as_json` gives, or a person wrote; no phrases are needed.

    Raises:
        ValueError: it is something else; half a sentence.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("caption"), str) or not values["caption"].strip():
        raise ValueError('has no caption; write {"caption": "...", "phrases": [["words", [left, top, right, bottom]]]}')
    return Described(
        " ".join(values["caption"].split()),
        _phrases(values.get("phrases", ()), "phrases"),
        _phrases(values.get("objects", ()), "objects"),
    )


def _phrases(values: Any, name: str) -> Phrases:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"has {name} that are no list; write [[words, [left, top, right, bottom]], ...]")
    return tuple(_phrase(value, name) for value in values)


def _phrase(value: Any, name: str) -> tuple[str, Box]:
    try:
        words, (left, top, right, bottom) = value
        box = (float(left), float(top), float(right), float(bottom))
    except (TypeError, ValueError):
        raise ValueError(
            f"has {name} that are no words with a box; write [words, [left, top, right, bottom]]"
        ) from None
    if not isinstance(words, str) or not words.strip() or not all(map(math.isfinite, box)):
        raise ValueError(f"has {name} without words, or a box with a number that is not finite")
    return words, box


def beside(picture: Path) -> Path:
    """The file that describes a picture, of its name with .json at its end."""
    return picture.with_suffix(".json")


def read_description(picture: Path) -> Described:
    """The description that lies beside a picture.

    Raises:
        ItemError: there is none, or it is something else.
    """
    path = beside(picture)
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8-sig")))
    except OSError:
        raise ItemError(f"{path.name} is missing") from None
    except ValueError as error:
        reason = str(error) if str(error).startswith("has ") else "is not JSON"
        raise ItemError(f"{path.name} {reason}") from None
