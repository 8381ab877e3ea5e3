"""What a node is given, checked before its own code sees it.

The page connects a socket only with an output of its type. A client of the API may write anything there instead of a link,
and the host hands it on as it is: an `image` that is a number, a `cast` that is null. It also asks `validate_inputs` about a
value that it has just found to be of another type. `guarded` compares with the annotations of a node's `execute` and
`validate_inputs` and with its sockets, so that every node says one sentence about that without a line of its own.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from comfy_api.latest import io

from .errors import InputError

Node = type[io.ComfyNode]

# No image, seed or count is a larger number; to compute with one would only give stranger errors later.
LARGEST = 2**64
_HALF_SIGN = re.compile(r"[\ud800-\udfff]")
_FROM_JSON = (type(None), bool, int, float, str, dict)
_WORDS = {type(None): "nothing", bool: "yes or no", int: "a number", float: "a number", str: "text", list: "a list"}
_REMEDIES = {
    "BOOLEAN": "give yes or no",
    "INT": "give a whole number",
    "FLOAT": "give a number",
    "STRING": "give text",
    "COMBO": "choose one of its choices",
}


def guarded(node: Node) -> Node:
    """The node, with a sentence for every input that is of another type than its code takes."""
    methods = {name: _guard(node, name) for name in ("execute", "validate_inputs") if name in vars(node)}
    names = {"__module__": node.__module__, "__qualname__": node.__qualname__, "__doc__": node.__doc__}
    create: Any = type(node)
    return create(node.__name__, (node,), {**methods, **names})


def _guard(node: Node, name: str) -> classmethod[Any, Any, Any]:
    """The method behind a check of its arguments."""
    plain: Callable[..., Any] = vars(node)[name].__func__
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def call(cls: Node, *args: Any, **kwargs: Any) -> Any:
        problem = _unknown(node, signature, kwargs)
        if problem is None:
            given = signature.bind_partial(cls, *args, **kwargs).arguments
            problem = _misfit(node, _hints(plain), given, linked=name == "execute")
        if problem is None:
            return plain(cls, *args, **kwargs)
        if name == "validate_inputs":
            return str(problem)
        raise problem

    vars(call)["__signature__"] = signature  # the host reads there which inputs a node judges itself
    return classmethod(call)


@functools.cache
def _hints(method: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(method)


@functools.cache
def _schema(node: Node) -> io.Schema:
    return node.define_schema()


def _unknown(node: Node, signature: inspect.Signature, kwargs: Mapping[str, Any]) -> InputError | None:
    """What to say about an input that the node does not have; the host hands on whatever is linked."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return None
    unknown = next((name for name in kwargs if name not in signature.parameters), None)
    return None if unknown is None else _error(node, unknown, "the node has no such input; take its link away")


def _error(node: Node, name: str, problem: str) -> InputError:
    return InputError(_schema(node).display_name or node.__name__, name, problem)


def _misfit(node: Node, hints: Mapping[str, Any], given: Mapping[str, Any], linked: bool) -> InputError | None:
    """What to say about the first value that does not fit; `linked`: what came by links is there too."""
    for socket in _schema(node).inputs:
        name = socket.id
        if name not in given:
            continue
        value, hint = given[name], hints.get(name, Any)
        parts, kind = [value], socket.get_io_type()
        if isinstance(socket, io.Autogrow.Input) and isinstance(value, dict):
            parts, kind = list(value.values()), socket.template.input.get_io_type()
        wrong = [value] if not fits(value, hint) or broken_text(value) else []
        if linked and not (value is None and socket.optional):
            wrong += [part for part in parts if not _comes_by(kind, part)]
        if wrong:
            return _error(node, name, _problem(wrong[0], kind))
    return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the annotated type; what cannot be told is taken to be."""
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if hint is None:
        return value is None
    if hint is float or hint is int:
        return isinstance(value, int | float if hint is float else int) and not abs(value) > LARGEST
    if origin is list:
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def broken_text(value: Any) -> bool:
    """Whether text, or one of several, holds half a sign: JSON can say it, but no tokenizer and no file can take it."""
    if isinstance(value, list):
        return any(map(broken_text, value))
    return isinstance(value, str) and bool(_HALF_SIGN.search(value))


def _comes_by(kind: str, value: Any) -> bool:
    """Whether a value is what links of this type carry, where the annotation does not say it."""
    if kind == "CONDITIONING":
        return isinstance(value, list) and all(_is_prompt(entry) for entry in value)
    if kind == "LATENT":
        return isinstance(value, dict) and isinstance(value.get("samples"), torch.Tensor)
    if kind in ("IMAGE", "MASK") or kind.startswith("ENSEMBLE_"):
        return not isinstance(value, _FROM_JSON)
    return True


def _is_prompt(entry: Any) -> bool:
    pair = isinstance(entry, list | tuple) and len(entry) == 2
    return pair and isinstance(entry[0], torch.Tensor) and isinstance(entry[1], dict)


def _problem(value: Any, kind: str) -> str:
    if broken_text(value):
        return f"it holds a broken sign, {_HALF_SIGN.findall(str(value))[0]}; write that place again"
    if isinstance(value, int | float) and abs(value) > LARGEST:
        return f"it is larger than any number that makes sense; stay below {LARGEST}"
    word = _WORDS.get(type(value), "a set of values")
    return f"it is {word}; {_REMEDIES.get(kind, f'connect an output of the type {kind}')}"
