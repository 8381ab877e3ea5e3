"""Encodes a prompt and finds which of its embeddings describe whom: the same at inference as in training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import node_helpers
from comfy.sd import CLIP

from .item_spans import SPANS_KEY, Placed, place_items, token_ranges
from .prompt_text import UNKNOWN_READER
from .prompt_tokens import Lane, Token, locate_tokens, text_lanes


class DescriptionError(ValueError):
    """A subject's description that will not do in any prompt; one sentence without the full stop."""


@dataclass(frozen=True)
class ItemPrompt:
    """An encoded prompt.

    Attributes:
        conditioning: the host's, which carries `spans` under `SPANS_KEY`.
        placed: what was encoded, and where in it the descriptions stand.
        tokens: of the first lane, one a text embedding.
        spans: token ranges of every subject's description.
    """

    conditioning: Any
    placed: Placed
    tokens: Sequence[Token]
    spans: dict[str, list[tuple[int, int]]]


def encode_items(clip: CLIP, prompt: str, descriptions: Mapping[str, str], append: bool = False) -> ItemPrompt:
    """Encode a prompt as the stock text encode does, and find the descriptions in it.

    Args:
        prompt: may hold placeholders and weights.
        descriptions: of every subject by name.
        append: put what is missing at the end of the prompt.

    Raises:
        PromptError: the prompt will not do.
        DescriptionError: a description will not.
        ValueError: the text encoder will not.
    """
    lanes = text_lanes(clip)
    placed = place_items(prompt, descriptions, _reads_weights(lanes), append)
    tokens = [locate_tokens(clip, lane, placed.prompt, placed.readable) for lane in lanes]
    spans = _spans(placed, tokens, descriptions, min(lane.limit for lane in lanes))
    conditioning: Any = clip.encode_from_tokens_scheduled(clip.tokenize(placed.prompt))
    if any(text.shape[1] != min(map(len, tokens)) for text, _ in conditioning):
        raise ValueError(UNKNOWN_READER)
    return ItemPrompt(node_helpers.conditioning_set_values(conditioning, {SPANS_KEY: spans}), placed, tokens[0], spans)


def encode_caption(clip: CLIP, caption: str, descriptions: Mapping[str, str]) -> ItemPrompt:
    """As `encode_items`, for words that were not written as a prompt: every bracket is read as it stands."""
    plain = {name: _literal(text) for name, text in descriptions.items()}
    return encode_items(clip, re.sub(r"[{}]", r"\\\g<0>", _literal(caption)), plain)


def _literal(text: str) -> str:
    return re.sub(r"[()]", r"\\\g<0>", text)


def _reads_weights(lanes: Sequence[Lane]) -> bool:
    return not lanes[0].tokenizer.disable_weights


def _spans(
    placed: Placed, lanes: Sequence[Sequence[Token]], names: Mapping[str, str], limit: int
) -> dict[str, list[tuple[int, int]]]:
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for occurrence in placed.occurrences:
        ranges = token_ranges(lanes, occurrence.start, occurrence.stop)
        length = sum(stop - start for start, stop in ranges)
        if not ranges:
            raise DescriptionError(
                f"this text encoder reads nothing in the description of {occurrence.name}; use other words"
            )
        if length > limit:
            raise DescriptionError(
                f"the description of {occurrence.name} is {length} tokens long, this text encoder reads {limit} in one go;"
                " shorten it"
            )
        spans[occurrence.name] += ranges
    return spans
