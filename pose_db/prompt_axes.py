"""Systematic variations of a prompt for real images: one action, varied along attributes, environments and cameras.

ASTRA varies its prompts along the axes by which its database is later searched (section 3.1): who does it, where, and
how it is seen. Combinations are distinct, the same for the same seed, and chosen so that every line of an axis, and
every pair of lines of two axes, comes up as evenly as the number of prompts allows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .people_count import first_person_noun, people_in_prompt

_EXHAUSTIVE = 20_000  # combinations up to which all are looked at; of more, a sample of that size
# How a phrase begins that follows its noun without a comma: "a man in a park", "a woman with long hair".
_FOLLOWS = re.compile(
    r"(?:in|inside|on|at|by|near|under|above|beside|behind|between|before|along|against|around|outside|with|without|wearing|"
    r"dressed|next to|in front of)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Variation:
    """One prompt and the lines it was made of, under the names of the database's tags."""

    prompt: str
    tags: dict[str, Any]


def combinations(sizes: Sequence[int], count: int, seed: int) -> list[tuple[int, ...]]:
    """`count` distinct tuples with entries below `sizes`, the least used values and pairs of values first.

    Raises:
        ValueError: there are fewer than `count`.
    """
    total = int(np.prod(sizes, dtype=object))
    if count > total:
        raise ValueError(f"the lists make {total} different prompts, {count} are asked for; lower count or add lines")
    source = random.Random(seed)
    pool = np.array(np.unravel_index(_candidates(total, count, source), sizes)).T.astype(np.int64)  # (m, axes)
    noise = np.array([source.random() for _ in range(len(pool))])
    cost = noise * 1e-3  # decides between equals
    groups = _usage_groups(pool, sizes)
    chosen = []
    for _ in range(count):
        pick = int(cost.argmin())
        chosen.append(tuple(int(value) for value in pool[pick]))
        for key, weight in groups:
            cost[key == key[pick]] += weight
        cost[pick] = np.inf
    return chosen


def _candidates(total: int, count: int, source: random.Random) -> list[int]:
    """Numbers of the combinations to choose from, distinct."""
    if total <= max(_EXHAUSTIVE, 2 * count):
        return list(range(total))
    wanted = max(_EXHAUSTIVE, count)
    found: dict[int, None] = {}
    while len(found) < wanted:
        found[int(source.random() * total)] = None
    return list(found)


def _usage_groups(pool: np.ndarray, sizes: Sequence[int]) -> list[tuple[np.ndarray, float]]:
    """For every axis and every pair of axes: which combinations share a value, and what one more use of it costs.

    A value of a short axis comes up more often than one of a long axis, so a use costs the number of values.
    """
    groups = [(pool[:, axis], float(size)) for axis, size in enumerate(sizes)]
    for first in range(len(sizes)):
        for second in range(first + 1, len(sizes)):
            groups.append((pool[:, first] * sizes[second] + pool[:, second], 0.5 * sizes[first] * sizes[second]))
    return groups


def prompt_variations(
    action: str,
    attributes: Sequence[str],
    environments: Sequence[str],
    cameras: Sequence[str],
    count: int,
    seed: int,
) -> list[Variation]:
    """`count` different prompts of one action.

    Args:
        action: "two people shaking hands"; ``{attribute}`` in it says where the attribute goes, otherwise before its
            first person ("two elderly people shaking hands"), or after that person for phrases such as "in a red
            coat".
        attributes, environments, cameras: phrases; an empty list leaves the axis out.

    Raises:
        ValueError: the action is empty, or the lists make fewer than `count` prompts.
    """
    action = " ".join(action.split())
    if not action:
        raise ValueError("the action is empty; write what the people do")
    axes = [distinct_lines(lines) or [""] for lines in (attributes, environments, cameras)]
    variations = []
    for picks in combinations([len(axis) for axis in axes], count, seed):
        attribute, environment, camera = (axis[pick] for axis, pick in zip(axes, picks, strict=True))
        prompt = _append(_append(_with_attribute(action, attribute), environment), camera, comma=True)
        tags = {"action": action, "subjects": attribute, "environment": environment, "camera": camera}
        variations.append(Variation(prompt, {"people": people_in_prompt(prompt)} | tags))
    return [Variation(item.prompt, {key: value for key, value in item.tags.items() if value}) for item in variations]


def distinct_lines(lines: Sequence[str]) -> list[str]:
    """The lines without white space at their ends, empty ones and repetitions."""
    return list(dict.fromkeys(stripped for line in lines if (stripped := " ".join(line.split()))))


def _with_attribute(action: str, attribute: str) -> str:
    if "{attribute}" in action:
        return " ".join(_fix_article(action.replace("{attribute}", attribute)).split())
    noun = first_person_noun(action)
    if not attribute:
        return action
    if noun is None:
        return _append(action, attribute, comma=True)
    start, end = noun
    if _FOLLOWS.match(attribute):
        return f"{action[:end]} {attribute}{action[end:]}"
    return _fix_article(f"{action[:start]}{attribute} {action[start:]}")


def _append(text: str, phrase: str, comma: bool = False) -> str:
    if not phrase:
        return text
    return f"{text} {phrase}" if _FOLLOWS.match(phrase) and not comma else f"{text}, {phrase}"


def _fix_article(text: str) -> str:
    """Turn "a old man" into "an old man" and "an tall man" into "a tall man"; by the letter, so a few words go wrong."""

    def fix(match: re.Match[str]) -> str:
        article = "an" if re.match(r"(?!uni|use|one|eu)[aeiou]|hour|honest", match[2], re.IGNORECASE) else "a"
        return (article.capitalize() if match[1][0].isupper() else article) + " " + match[2]

    return re.sub(r"\b(an?) +([^\W\d_][\w'-]*)", fix, text, flags=re.IGNORECASE)
