"""Workflows with something wrong in them, and every node of the pack alone with odd values."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any

from devtools.reliability.values import (
    NUMBERS,
    PATHS,
    TEXTS,
    WRONG_TYPES,
    hostile_settings,
    hostile_text,
    hostile_value,
)
from devtools.reliability.workload import Prompt

ObjectInfo = Mapping[str, Any]
PACK = "Ensemble"
# A stock node that takes as long as its numbers say is not what is tried here: it gets small numbers, or too large ones.
STOCK_GROWTH = 2


def declared_inputs(info: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """{name: (type, options)} of a node class of /object_info, required and optional."""
    found = {}
    for group in ("required", "optional"):
        for name, declaration in info["input"].get(group, {}).items():
            options = declaration[1] if len(declaration) > 1 and isinstance(declaration[1], dict) else {}
            found[name] = (declaration[0], options)
    return found


class Mutator:
    """Changes a workflow in place, with the node classes of a real server at hand."""

    def __init__(self, prompt: Prompt, object_info: ObjectInfo, generator: random.Random) -> None:
        self.prompt = prompt
        self.object_info = object_info
        self.generator = generator

    def some_node(self) -> dict[str, Any]:
        """A node; one of the pack three times out of four."""
        nodes = list(self.prompt.values())
        ours = [node for node in nodes if node["class_type"].startswith(PACK)]
        return self.generator.choice(ours if ours and self.generator.random() < 0.75 else nodes)

    def some_value(self) -> tuple[dict[str, Any], str] | None:
        """A node and the name of an input that holds a value."""
        node = self.some_node()
        names = [name for name, value in node["inputs"].items() if not isinstance(value, list)]
        return (node, self.generator.choice(names)) if names else None

    def some_link(self) -> tuple[dict[str, Any], str] | None:
        """A node and the name of an input that holds a link."""
        node = self.some_node()
        names = [name for name, value in node["inputs"].items() if isinstance(value, list)]
        return (node, self.generator.choice(names)) if names else None

    def other_value(self) -> None:
        """Anything in the place of a value."""
        if found := self.some_value():
            node, name = found
            node["inputs"][name] = hostile_value(self.generator)

    def other_range(self) -> None:
        """A number at or beyond the ends of its range, or another choice of a list."""
        if not (found := self.some_value()):
            return
        node, name = found
        declared = declared_inputs(self.object_info.get(node["class_type"], {"input": {}}))
        kind, options = declared.get(name, (None, {}))
        if isinstance(kind, list) or kind == "COMBO":
            choices = kind if isinstance(kind, list) else options.get("options", [])
            node["inputs"][name] = self.generator.choice([*choices, hostile_text(self.generator)])
            return
        ends = [options[end] + shift for end in ("min", "max") if end in options for shift in (-1, 0, 1)]
        value = self.generator.choice([*ends, *NUMBERS])
        if not node["class_type"].startswith(PACK) and not self._bearable(value, node["inputs"][name], options):
            value = options.get("max", 2**62) + 1
        node["inputs"][name] = value

    def _bearable(self, value: Any, before: Any, options: Mapping[str, Any]) -> bool:
        """Whether a stock node will refuse this number, or be done with it soon."""
        numbers = isinstance(value, int | float) and isinstance(before, int | float)
        return not numbers or value > options.get("max", 2**62) or value <= STOCK_GROWTH * abs(before)

    def other_text(self) -> None:
        """Odd text where text is, and settings that will not do where settings are."""
        if not (found := self.some_value()):
            return
        node, name = found
        value = node["inputs"][name]
        if name == "config" and isinstance(value, str) and value.startswith("{"):
            node["inputs"][name] = hostile_settings(value, self.generator)
        elif isinstance(value, str):
            node["inputs"][name] = hostile_text(self.generator)
        else:
            node["inputs"][name] = self.generator.choice(NUMBERS)

    def path_name(self) -> None:
        """A path where a name of a file is, or any text."""
        texts = [
            (node, name)
            for node in self.prompt.values()
            for name, value in node["inputs"].items()
            if isinstance(value, str) and ("name" in name or "prefix" in name or "." in value or name == "run")
        ]
        if texts:
            node, name = self.generator.choice(texts)
            node["inputs"][name] = self.generator.choice(PATHS)

    def no_input(self) -> None:
        """An input less."""
        node = self.some_node()
        if node["inputs"]:
            node["inputs"].pop(self.generator.choice(list(node["inputs"])))

    def value_for_link(self) -> None:
        """A value where something is to be connected."""
        if found := self.some_link():
            node, name = found
            node["inputs"][name] = hostile_value(self.generator)

    def broken_link(self) -> None:
        """A link to a node that is not there, or to an output that is not there."""
        if found := self.some_link():
            node, name = found
            there = node["inputs"][name][0] if node["inputs"][name] else "1"
            slots = (-1, 7, 99, 10**20, 0.5, "0", None, [], {}, True, -(10**20))
            other = [there, self.generator.choice(slots)]
            nobody = [self.generator.choice(("0", "", "-1", "x/y", None, 1, 1.0, [], {}, "١")), 0]
            node["inputs"][name] = self.generator.choice((other, nobody))

    def other_link(self) -> None:
        """A link to some other output, mostly of another type; it may close a circle."""
        node = self.some_node()
        name = self.generator.choice(list(node["inputs"]) or ["model"])
        number = self.generator.choice(list(self.prompt))
        outputs = self.object_info.get(self.prompt[number]["class_type"], {}).get("output", [])
        node["inputs"][name] = [number, self.generator.randrange(max(1, len(outputs)))]

    def same_type_link(self) -> None:
        """A link to another output of the type that is there: the workflow is a good one, only a strange one."""
        if not (found := self.some_link()):
            return
        node, name = found
        before = node["inputs"][name]
        kinds = self._outputs()
        kind = kinds.get((str(before[0]), before[1])) if len(before) == 2 and isinstance(before[1], int) else None
        same = [list(place) for place, other in kinds.items() if other == kind]
        if same:
            node["inputs"][name] = self.generator.choice(same)

    def _outputs(self) -> dict[tuple[str, int], str]:
        return {
            (number, slot): kind
            for number, node in self.prompt.items()
            for slot, kind in enumerate(self.object_info.get(node["class_type"], {}).get("output", ()))
        }

    def more_inputs(self) -> None:
        """Inputs that the node does not have, and more of those that it may have many of."""
        node = self.some_node()
        grown = [name for name in node["inputs"] if "." in name]
        names = ["unknown", "", "self", "cls", "kwargs", "__class__", "appearances", "masks", "poses", "inputs"]
        for name in grown:
            stem = name.rstrip("0123456789")
            names += [stem, f"{stem}9", f"{stem}99999", f"{name}.{name}", f"{stem}-1", f"{stem}0 ", name.split(".")[0]]
        model = node["inputs"][grown[0]] if grown and self.generator.random() < 0.5 else hostile_value(self.generator)
        node["inputs"][self.generator.choice(names)] = model

    def no_node(self) -> None:
        """A node less, its links left as they are."""
        self.prompt.pop(self.generator.choice(list(self.prompt)))

    def other_class(self) -> None:
        """Another class of node with the same inputs."""
        node = self.some_node()
        known = self.generator.choice([name for name in self.object_info if name.startswith(PACK)])
        node["class_type"] = self.generator.choice(
            (known, "nobody", "", "ensemblesubject", hostile_text(self.generator))
        )

    def other_number(self) -> None:
        """A node under another number; who linked to it still does."""
        number = self.generator.choice(list(self.prompt))
        other = self.generator.choice((*TEXTS[:20], *PATHS[:20]))
        self.prompt = {other if key == number else key: node for key, node in self.prompt.items()}
        for node in self.prompt.values():
            for name, value in node["inputs"].items():
                if isinstance(value, list) and value and value[0] == number:
                    node["inputs"][name] = [other, *value[1:]]

    def wrong_type(self) -> None:
        """A value of another type at any input."""
        node = self.some_node()
        if node["inputs"]:
            node["inputs"][self.generator.choice(list(node["inputs"]))] = self.generator.choice(WRONG_TYPES)


OPERATORS: tuple[Callable[[Mutator], None], ...] = (
    Mutator.other_value,
    Mutator.other_range,
    Mutator.other_range,
    Mutator.other_text,
    Mutator.other_text,
    Mutator.path_name,
    Mutator.no_input,
    Mutator.value_for_link,
    Mutator.broken_link,
    Mutator.other_link,
    Mutator.same_type_link,
    Mutator.same_type_link,
    Mutator.more_inputs,
    Mutator.no_node,
    Mutator.other_class,
    Mutator.other_number,
    Mutator.wrong_type,
)


def mutated(prompt: Prompt, object_info: ObjectInfo, generator: random.Random) -> tuple[Prompt, list[str]]:
    """The workflow with one to three things wrong, and what was done."""
    mutator = Mutator(copy.deepcopy(prompt), object_info, generator)
    done = []
    for _ in range(generator.choice((1, 1, 2, 3))):
        if any(not isinstance(node.get("inputs"), dict) for node in mutator.prompt.values()) or not mutator.prompt:
            break
        operator = generator.choice(OPERATORS)
        operator(mutator)
        done.append(operator.__name__)
    return mutator.prompt, done
