"""What a column of the jobs file fills: "Title.input", "12.input", or an input's name where only one node has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .declared import ClassInfo, Declared, declared_inputs
from .errors import BatchError, closest
from .queue_client import Workflow

_TYPES = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}


@dataclass(frozen=True)
class Target:
    """One input of one node.

    Attributes:
        node: its number in the workflow.
        title: of the node.
    """

    node: str
    title: str
    declared: Declared

    @property
    def address(self) -> str:
        """How it is called in a jobs file."""
        return f"{self.title}.{self.declared.name}"


class Addresses:
    """The inputs of a workflow that a column can fill."""

    def __init__(self, workflow: Workflow, object_info: Mapping[str, ClassInfo]) -> None:
        self.workflow = workflow
        self.targets = [target for number, node in workflow.items() for target in _targets(number, node, object_info)]

    def find(self, column: str) -> Target:
        """The input that a column fills.

        Raises:
            BatchError: none, several, or one that takes a connection.
        """
        found = self._matching(column)
        open_ones = [target for target in found if not self._is_connected(target)]
        if len(open_ones) == 1:
            return open_ones[0]
        if found and not open_ones:
            raise BatchError(f"column '{column}' fills an input that takes a connection; {self._instead(found[0])}")
        if open_ones:
            ways = ", ".join(f"'{target.node}.{target.declared.name}'" for target in open_ones[:6])
            raise BatchError(f"column '{column}' could mean several inputs; call it one of {ways}")
        names = [target.address for target in self.targets if not self._is_connected(target)]
        near = closest(column, [*names, *(name.rsplit(".", 1)[-1] for name in names)])
        raise BatchError(f"column '{column}' fills no input of the workflow{near or '; write Title.input'}")

    def _matching(self, column: str) -> list[Target]:
        """By number or title; else by a title in other letters; else by the input's name alone."""
        exact = [t for t in self.targets if column in (t.address, f"{t.node}.{t.declared.name}")]
        if exact:
            return exact
        folded = [t for t in self.targets if column.casefold() == t.address.casefold()]
        named = [t for t in self.targets if column == t.declared.name]
        # An input's bare name means those that can be filled, however many connections are called the same.
        return folded or [t for t in named if not self._is_connected(t)] or named

    def _is_connected(self, target: Target) -> bool:
        value = self.workflow[target.node]["inputs"].get(target.declared.name)
        return isinstance(value, list) or not target.declared.is_widget

    def _instead(self, target: Target) -> str:
        """What to fill in place of an input that is connected: what feeds it, where that can be filled."""
        link = self.workflow[target.node]["inputs"].get(target.declared.name)
        origin = link[0] if isinstance(link, list) else None
        feeding = [t.address for t in self.targets if t.node == origin and not self._is_connected(t)]
        return f"fill '{feeding[0]}' instead" if feeding else "only values can come from a jobs file"


def _targets(number: str, node: Mapping[str, Any], object_info: Mapping[str, ClassInfo]) -> Iterable[Target]:
    title = node_title(node)
    declared = {one.name: one for one in declared_inputs(object_info[node["class_type"]], node["inputs"])}
    for name, value in node["inputs"].items():
        # An input that grew, or of a type that only the page draws: what it holds says what it takes.
        if type(value) in _TYPES and not (name in declared and declared[name].is_widget):
            declared[name] = Declared(name, _TYPES[type(value)], {})
    return [Target(number, title, one) for one in declared.values()]


def node_title(node: Mapping[str, Any]) -> str:
    """What a node is called on the page."""
    return str((node.get("_meta") or {}).get("title") or node["class_type"])
