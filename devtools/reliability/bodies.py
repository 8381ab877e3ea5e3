"""Bodies of POST /prompt that are no workflow, or a workflow in a strange wrapping."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from devtools.reliability.values import WRONG_TYPES, hostile_value
from devtools.reliability.workload import Prompt

DEEP = 100_000  # brackets
LARGE = 4_000_000  # bytes


def encode(body: object) -> bytes:
    """JSON as a careless client writes it: NaN and lone surrogates as they are."""
    return json.dumps(body, ensure_ascii=True, allow_nan=True).encode()


def not_json(prompt: Prompt, generator: random.Random) -> bytes:
    """Bytes that are no JSON."""
    whole = encode({"prompt": prompt})
    return generator.choice(
        (
            b"",
            b" ",
            b"\x00",
            b"prompt",
            b"{",
            b"{'prompt': {}}",
            b'{"prompt": {}',
            b'{"prompt": {},}',
            b'{"prompt": undefined}',
            b"\xff\xfe{\x00}\x00",
            b"\xef\xbb\xbf" + whole,
            b'{"prompt": "\xff\xfe"}',
            whole[: generator.randrange(len(whole))],
            whole + whole,
            whole.replace(b'"', b"'"),
            whole.replace(b":", b"", 1),
        )
    )


def nested(prompt: Prompt, generator: random.Random) -> bytes:
    """Deeper than any reader goes."""
    opening, closing = generator.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return b'{"prompt": ' + opening * DEEP + b"1" + closing * generator.choice((DEEP, 0)) + b"}"


def large(prompt: Prompt, generator: random.Random) -> bytes:
    """Millions of characters where a word is expected."""
    text = generator.choice(("x", "\\", "é", "{", '"')) * LARGE
    return encode({"prompt": prompt, "client_id": text} if generator.random() < 0.5 else {"prompt": text})


def other_top(prompt: Prompt, generator: random.Random) -> bytes:
    """Some other JSON in the place of the body."""
    return encode(generator.choice(WRONG_TYPES))


def other_prompt(prompt: Prompt, generator: random.Random) -> bytes:
    """Something else in the place of the workflow, or nothing."""
    value = generator.choice((*WRONG_TYPES, [prompt], {"1": prompt}, list(prompt.values()), json.dumps(prompt)))
    return encode({} if generator.random() < 0.1 else {"prompt": value})


def other_node(prompt: Prompt, generator: random.Random) -> bytes:
    """Something else in the place of one node."""
    prompt[generator.choice(list(prompt))] = generator.choice(WRONG_TYPES)
    return encode({"prompt": prompt})


def other_part(prompt: Prompt, generator: random.Random) -> bytes:
    """A node whose class or inputs are something else, or are missing."""
    node = prompt[generator.choice(list(prompt))]
    part = generator.choice(("class_type", "inputs", "_meta"))
    if generator.random() < 0.3:
        node.pop(part, None)
    else:
        node[part] = hostile_value(generator)
    return encode({"prompt": prompt})


def other_wrapping(prompt: Prompt, generator: random.Random) -> bytes:
    """A good workflow, and nonsense beside it."""
    part = generator.choice(
        ("client_id", "prompt_id", "number", "front", "extra_data", "partial_execution_targets", "unknown")
    )
    return encode({"prompt": prompt, part: hostile_value(generator)})


def twice(prompt: Prompt, generator: random.Random) -> bytes:
    """The same names twice in one object."""
    return b'{"prompt": {}, "prompt": ' + encode(prompt) + b', "prompt": ' + encode(prompt) + b"}"


MALFORMED: tuple[Callable[[Prompt, random.Random], bytes], ...] = (
    not_json,
    nested,
    large,
    other_top,
    other_prompt,
    other_node,
    other_part,
    other_wrapping,
    twice,
)
