"""The two forms of a workflow: the graph that the web page opens and the API form that POST /prompt takes.

Both are made from one description. Widget order and socket types come from the running host (GET /object_info), so a node
whose inputs change shows up at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfyui_ensemble.batch.declared import Declared

COLUMN_WIDTH, COLUMN_GAP, ROW_GAP, TOP = 340, 60, 50, 60
TITLE_HEIGHT, SOCKET_HEIGHT, WIDGET_HEIGHT, TEXT_HEIGHT = 40, 22, 26, 110
PREVIEW_HEIGHT = {"LoadImage": 300, "PreviewImage": 300, "SaveImage": 420, "PreviewAny": 90}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@dataclass(frozen=True)
class Link:
    """The output `output` of the node with key `node`."""

    node: str
    output: int = 0


@dataclass(frozen=True)
class Node:
    """One node: its key in the description, its class, its column on the canvas, and what its inputs are set to."""

    key: str
    type: str
    column: int
    inputs: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None


@dataclass(frozen=True)
class Note:
    """A note on the canvas, in Markdown."""

    column: int
    title: str
    text: str
    height: int = 220


@dataclass(frozen=True)
class Workflow:
    """A bundled workflow: columns are groups on the canvas, from left to right."""

    name: str
    columns: Sequence[str]
    nodes: Sequence[Node]
    notes: Sequence[Note] = ()


def api_form(workflow: Workflow, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """What POST /prompt takes: node id -> class and inputs."""
    numbers = _numbers(workflow)
    return {
        str(numbers[node.key]): {
            "class_type": node.type,
            "inputs": {
                name: [str(numbers[value.node]), value.output] if isinstance(value, Link) else value
                for name, value in _all_inputs(node, object_info).items()
            },
            "_meta": {"title": _title(node, object_info)},
        }
        for node in workflow.nodes
    }


def graph_form(workflow: Workflow, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """What the web page opens: nodes with places, sockets and widgets, links, groups and notes."""
    numbers = _numbers(workflow)
    links: list[list[Any]] = []
    nodes = {node.key: _graph_node(node, numbers[node.key], object_info) for node in workflow.nodes}
    for node in workflow.nodes:
        for slot, socket in enumerate(nodes[node.key]["inputs"]):
            source = node.inputs.get(socket["name"])
            if not isinstance(source, Link):
                continue
            output = nodes[source.node]["outputs"][source.output]
            number = len(links) + 1
            links.append([number, numbers[source.node], source.output, numbers[node.key], slot, output["type"]])
            socket["link"] = number
            output["links"].append(number)
    placed = [*nodes.values(), *(_graph_note(note, len(numbers) + 1 + n) for n, note in enumerate(workflow.notes))]
    groups = _place(workflow, placed)
    return {
        "id": workflow.name,
        "revision": 0,
        "last_node_id": len(placed),
        "last_link_id": len(links),
        "nodes": placed,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _numbers(workflow: Workflow) -> dict[str, int]:
    return {node.key: number for number, node in enumerate(workflow.nodes, start=1)}


def _title(node: Node, object_info: Mapping[str, Any]) -> str:
    return node.title or object_info[node.type]["display_name"] or node.type


def _declared(node: Node, object_info: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Inputs of the node's class in their order: name -> (type, options); a growing input gives one a link."""
    declared: dict[str, tuple[Any, dict[str, Any]]] = {}
    for kind in ("required", "optional"):
        for name, spec in object_info[node.type]["input"].get(kind, {}).items():
            type_, options = spec[0], (spec[1] if len(spec) > 1 else {})
            if type_ == "COMFY_AUTOGROW_V3":
                ((_, element),) = (item for kinds in options["template"]["input"].values() for item in kinds.items())
                options = element[1] if len(element) > 1 else {}
                declared |= {used: (element[0], options) for used in node.inputs if used.startswith(f"{name}.")}
            else:
                # Nodes of the first generation have the list of choices in place of a type.
                declared[name] = (
                    ("COMBO", {**options, "options": type_}) if isinstance(type_, list) else (type_, options)
                )
    unknown = set(node.inputs) - set(declared)
    if unknown:
        raise ValueError(f"{node.type} has no input {', '.join(sorted(unknown))}")
    return declared


def _all_inputs(node: Node, object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs given, and the defaults of the widgets that are not."""
    values = {}
    for name, (type_, options) in _declared(node, object_info).items():
        if name in node.inputs:
            values[name] = node.inputs[name]
        elif _is_widget(type_, options):
            values[name] = options.get("default", (options.get("options") or [""])[0])
    return values


def _is_widget(type_: str, options: Mapping[str, Any]) -> bool:
    return type_ in WIDGET_TYPES and not options.get("forceInput")


def _graph_node(node: Node, number: int, object_info: Mapping[str, Any]) -> dict[str, Any]:
    info, declared, values = object_info[node.type], _declared(node, object_info), _all_inputs(node, object_info)
    inputs, widgets, height = [], [], 0
    for name, (type_, options) in declared.items():
        socket: dict[str, Any] = {"name": name, "type": type_, "link": None}
        if _is_widget(type_, options):
            socket["widget"] = {"name": name}
            value = values[name]
            # A linked widget keeps a place in the list; what stands there is what it would be without the link.
            widgets.append(options.get("default", "") if isinstance(value, Link) else value)
            height += TEXT_HEIGHT if options.get("multiline") else WIDGET_HEIGHT
            if Declared(name, type_, options).is_seed:
                widgets.append("fixed")
                height += WIDGET_HEIGHT
            if options.get("image_upload"):
                widgets.append("image")
                height += WIDGET_HEIGHT
        inputs.append(socket)
    outputs = [
        {"name": name, "type": type_, "links": [], "slot_index": slot}
        for slot, (name, type_) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
    sockets = max(len(outputs), sum("widget" not in socket for socket in inputs))
    return {
        "id": number,
        "type": node.type,
        "title": _title(node, object_info),
        "pos": [node.column, 0],
        "size": [COLUMN_WIDTH, TITLE_HEIGHT + sockets * SOCKET_HEIGHT + height + PREVIEW_HEIGHT.get(node.type, 0)],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.type},
        "widgets_values": widgets,
    }


def _graph_note(note: Note, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "MarkdownNote",
        "title": note.title,
        "pos": [note.column, 0],
        "size": [COLUMN_WIDTH, note.height],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [note.text],
        "color": "#432",
        "bgcolor": "#000",
    }


def _place(workflow: Workflow, nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stack the nodes of every column; returns a group a column. Until now a node's x held its column."""
    bottoms = [TOP + TITLE_HEIGHT] * len(workflow.columns)
    for node in nodes:
        column = node["pos"][0]
        node["pos"] = [column * (COLUMN_WIDTH + COLUMN_GAP), bottoms[column]]
        bottoms[column] += node["size"][1] + ROW_GAP
    return [
        {
            "id": column + 1,
            "title": title,
            "bounding": [
                column * (COLUMN_WIDTH + COLUMN_GAP) - 20,
                0,
                COLUMN_WIDTH + 40,
                bottoms[column],
            ],
            "color": "#3f5159",
            "font_size": 24,
            "flags": {},
        }
        for column, title in enumerate(workflow.columns)
    ]
