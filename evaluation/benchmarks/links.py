"""How the nodes of a workflow in API form are connected."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

Workflow = dict[str, Any]
Slot = tuple[str, str]  # node and input


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """Whether an input's value is an output of another node: [its number, which output]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def upstream(workflow: Workflow, nodes: Iterable[str], but: tuple[str, ...] = ()) -> list[str]:
    """Nodes and all that they need, nearest first; inputs in `but` are not followed from `nodes` themselves."""
    first = list(dict.fromkeys(nodes))
    found = list(first)
    for number in found:
        for name, value in workflow[number]["inputs"].items():
            follow = is_link(value) and value[0] in workflow and not (number in first and name in but)
            if follow and value[0] not in found:
                found.append(value[0])
    return found


def users(workflow: Workflow, node: str) -> list[Slot]:
    """The inputs that a node's outputs are connected to."""
    return [
        (number, name)
        for number, other in workflow.items()
        for name, value in other["inputs"].items()
        if is_link(value) and value[0] == node
    ]


def of_class(workflow: Workflow, kind: str) -> list[str]:
    """The nodes of a class."""
    return [number for number, node in workflow.items() if node["class_type"] == kind]
