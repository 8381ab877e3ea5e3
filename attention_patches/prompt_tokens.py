"""Which characters of a prompt each text embedding stands for, in the host's own tokenisation.

The host (`comfy.sd1_clip`) reads a prompt in four steps: brackets and weights cut it into segments, textual inversions
(``embedding:name``) cut those into pieces, the tokenizer reads every piece on its own, and the tokens are laid out in
chunks with start, end and padding tokens. Here the same steps are taken with every character's place kept. Offsets come
from the tokenizer; the chunks are the host's own, and every token of them must be the one expected in its place, so that
a text encoder which reads prompts in another way is refused and never followed wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from comfy import sd1_clip
from comfy.sd import CLIP
from comfy.sdxl_clip import SDXLTokenizer
from comfy.text_encoders.flux import FluxTokenizer
from transformers import CLIPTokenizer

from .prompt_text import UNKNOWN_READER, PromptError, Readable

# In tokens. The host gives T5 a prompt of any length in one piece; FLUX.1 was trained with up to these.
TRAINED_LENGTH = 512

# A token of the text: its id, or the vector of a textual inversion, and its characters [start, stop).
Entry = tuple[Any, int, int]


@dataclass(frozen=True)
class Token:
    """One text embedding.

    Attributes:
        start, stop: the characters of `Readable.text` it stands for; equal for start, end and padding tokens.
        piece: how the tokenizer writes it; "start", "end", "padding" or "embedding" where it is no word.
    """

    start: int
    stop: int
    piece: str


@dataclass(frozen=True)
class Lane:
    """A tokenizer and the network that reads it; SDXL has two, whose embeddings are put side by side.

    Attributes:
        key: of the host's dictionary of tokens.
        width: of the network's input embeddings; the host leaves out textual inversions of another width.
    """

    key: str
    tokenizer: sd1_clip.SDTokenizer
    width: int

    @property
    def limit(self) -> int:
        """Words, in tokens, that the text encoder reads in one go."""
        ends = (self.tokenizer.start_token is not None) + (self.tokenizer.end_token is not None)
        return min(self.tokenizer.max_length, TRAINED_LENGTH + ends) - ends


def text_lanes(clip: CLIP) -> list[Lane]:
    """The lanes that the text embeddings of `clip` are made of.

    Raises:
        ValueError: it is a text encoder whose embeddings cannot be told from its tokens.
    """
    tokenizer = clip.tokenizer
    if isinstance(tokenizer, FluxTokenizer):  # its CLIP-L makes the pooled vector alone
        attributes = {"t5xxl": "t5xxl"}
    elif isinstance(tokenizer, SDXLTokenizer):
        attributes = {"l": "clip_l", "g": "clip_g"}
    elif isinstance(tokenizer, sd1_clip.SD1Tokenizer):
        attributes = {tokenizer.clip_name: tokenizer.clip}
    else:
        raise ValueError(UNKNOWN_READER)
    networks = {key: getattr(clip.cond_stage_model, name, None) for key, name in attributes.items()}
    lanes = [
        Lane(key, getattr(tokenizer, attributes[key]), network.transformer.get_input_embeddings().weight.shape[1])
        for key, network in networks.items()
        if network is not None  # the SDXL refiner has CLIP-G alone
    ]
    if not lanes:
        raise ValueError(UNKNOWN_READER)
    return lanes


def locate_tokens(clip: CLIP, lane: Lane, prompt: str, readable: Readable) -> list[Token]:
    """One token for every text embedding of `prompt`, in order.

    Raises:
        ValueError: the host tokenises the prompt in another way, or it names no textual inversion after `embedding:`.
    """
    words = [
        word
        for start, stop in readable.segments
        for word in _words(lane.tokenizer, readable.text[start:stop], range(start, stop))
    ]
    expected = [(number, *entry) for number, word in enumerate(words, start=1) for entry in word]
    chunks = clip.tokenize(prompt, return_word_ids=True)[lane.key]
    given = [(number, entry) for chunk in chunks for entry, _, number in chunk if number != 0]
    if len(expected) != len(given) or not all(map(_same, expected, given)):
        raise ValueError(UNKNOWN_READER)
    ranges = iter([(start, stop) for _, _, start, stop in expected])
    return [token for chunk in chunks for token in _chunk_tokens(lane, chunk, ranges)]


def _same(expected: tuple[Any, ...], given: tuple[Any, ...]) -> bool:
    (number, entry, *_), (its_number, its_entry) = expected, given
    if torch.is_tensor(entry) and torch.is_tensor(its_entry):
        return number == its_number and torch.equal(entry, its_entry)
    return number == its_number and type(entry) is type(its_entry) and entry == its_entry


def _chunk_tokens(lane: Lane, chunk: Sequence[tuple], ranges: Iterator[tuple[int, int]]) -> list[Token]:
    tokens, ended = [], False
    for position, (entry, _, number) in enumerate(chunk):
        if number != 0:
            start, stop = next(ranges)
            if not torch.is_tensor(entry):
                tokens.append(Token(start, stop, lane.tokenizer.inv_vocab[entry]))
            elif entry.shape[-1] == lane.width:
                tokens.append(Token(start, stop, "embedding"))
        elif position == 0 and entry == lane.tokenizer.start_token:
            tokens.append(Token(0, 0, "start"))
        else:
            tokens.append(Token(0, 0, "padding" if ended or entry != lane.tokenizer.end_token else "end"))
            ended = True
    return tokens + [Token(0, 0, "padding")] * (len(chunk) - len(tokens))  # in place of vectors that were left out


def _words(tokenizer: sd1_clip.SDTokenizer, text: str, places: Sequence[int]) -> Iterator[list[Entry]]:
    """What the host makes groups of: the tokens of every piece of a segment, the vectors of every textual inversion.

    `places` are the characters' places in the whole text.
    """
    mark = tokenizer.embedding_identifier
    begin = 0
    for piece in re.split(rf"(?<=\s)(?={re.escape(mark)})", text):
        its_places = places[begin : begin + len(piece)]
        begin += len(piece)
        if piece.startswith(mark) and tokenizer.embedding_directory is not None:
            name = piece[len(mark) :].strip("\n")
            if not name.strip():
                raise PromptError(f"it says '{mark}' without a name behind it; write {mark}name or take it out")
            vectors, _, rest = tokenizer._try_get_embedding(name)
            rest_places = _places_of_rest(rest, piece, its_places)
            if vectors is not None:
                stop = rest_places[0] if rest_places else its_places[-1] + 1
                yield [(vector, its_places[0], stop) for vector in vectors.reshape(-1, vectors.shape[-1])]
            if not rest:
                continue
            piece, its_places = rest, rest_places
        if piece:
            yield [
                (token, its_places[start], its_places[stop - 1] + 1) if start < stop else (token, 0, 0)
                for token, start, stop in _encode(tokenizer, piece)
            ]


def _places_of_rest(rest: str, piece: str, places: Sequence[int]) -> list[int]:
    """Where the words after a textual inversion's name stand: the host changes nothing but white space in them."""
    if not "".join(piece.split()).endswith("".join(rest.split())):
        raise ValueError(UNKNOWN_READER)
    visible = [place for character, place in zip(piece, places, strict=True) if not character.isspace()]
    following, out = places[-1] + 1, []
    for character in reversed(rest):
        if not character.isspace():
            following = visible.pop()
        out.append(following)
    return out[::-1]


def _encode(tokenizer: sd1_clip.SDTokenizer, text: str) -> list[Entry]:
    """The tokens the host takes of `text`, with their characters; a token of a mere space leads the next word."""
    reader: Any = tokenizer.tokenizer
    kept = slice(tokenizer.tokens_start, -1 if tokenizer.tokenizer_adds_end_token else None)
    if getattr(reader, "is_fast", False):
        entries = _fast(reader, text, kept)
    elif isinstance(reader, CLIPTokenizer):
        entries = _slow_clip(reader, text, kept)
    else:
        raise ValueError(UNKNOWN_READER)
    out = []
    for token, start, stop in entries:
        while start < len(text) and text[start].isspace():  # some versions count the space before a word to it
            start += 1
        out.append((token, start, min(max(stop, start + 1), len(text))))
    return out


def _fast(reader: Any, text: str, kept: slice) -> list[Entry]:
    read = reader(text, return_offsets_mapping=True)
    offsets = read["offset_mapping"][kept]
    return [(token, *offset) for token, offset in zip(read["input_ids"][kept], offsets, strict=True)]


def _slow_clip(reader: Any, text: str, kept: slice) -> list[Entry]:
    """CLIP's tokenizer before transformers 5 knows no offsets: its fast sibling has them for every word both read alike.

    Any other word is cut wherever a cut changes none of its tokens, which is between all that are read on their own.
    """
    sibling, out = _fast_clip(reader.name_or_path), []
    for match in re.finditer(r"\S+", text):
        word, begin = match[0], match.start()
        whole = reader(word)["input_ids"][kept]
        entries = _fast(sibling, word, kept)
        if [token for token, _, _ in entries] != whole:
            entries, last = [], 0
            for cut in range(1, len(word) + 1):
                head, tail = (reader(part)["input_ids"][kept] for part in (word[:cut], word[cut:]))
                if head + tail == whole:
                    entries += [(token, last, cut) for token in head[len(entries) :]]
                    last = cut
        out += [(token, begin + start, begin + stop) for token, start, stop in entries]
    return out


@lru_cache(maxsize=2)
def _fast_clip(path: str) -> Any:
    from transformers import AutoTokenizer  # imports every tokenizer there is

    return AutoTokenizer.from_pretrained(path)  # the fast one, where there are two
