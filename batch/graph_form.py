"""A workflow as ComfyUI's page saves it (graph form) -> as POST /prompt takes it (API form).

Says the same as the page's own Export (API), to the last value: values lie in a node in the order of its widgets, which the
server's /object_info tells; muted nodes fall away, bypassed ones hand through, Reroute and Primitive nodes exist on the page
only. What the page alone can do (subgraphs, group nodes, prompts it rolls dice for, widgets drawn by a pack's own script) is
refused with the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .declared import DYNAMIC, GROWING, UPLOADS, WIDGETS, Declared, declared_inputs
from .errors import BatchError

MUTED, BYPASSED = 2, 4
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
PAGE_ONLY = (REROUTE, PRIMITIVE, "Note", "MarkdownNote")
REMEDY = "open it in ComfyUI and save it with Workflow > Export (API)"
# Types whose widgets the page draws in ways of its own.
DRAWN = ("MARKDOWN", "IMAGECOMPARE", "BOUNDING_BOX", "BOUNDING_BOXES", "CHART", "GALLERIA", "PAINTER", "TEXTAREA")
DRAWN += ("CURVE", "RANGE", "COLORS", "LOAD_3D", "WEBCAM", "AUDIO_RECORD")
EXPECTED = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str}
_COMMENTS = re.compile(r"/\*[\s\S]*?\*/|//.*")

Node = Mapping[str, Any]
Origin = tuple[str, int]  # node id, output


@dataclass(frozen=True)
class _Link:
    origin: str
    slot: int


@dataclass(frozen=True)
class _Graph:
    nodes: Mapping[str, Node]
    links: Mapping[str, _Link]


def is_graph(workflow: Any) -> bool:
    """Whether this is the page's own form."""
    return isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list)


def api_form(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The API form of a graph.

    Raises:
        BatchError: it holds what only the page can do, or a node that the server does not have.
    """
    try:
        return _api_form(workflow, object_info)
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise BatchError(f"the workflow's file is damaged; {REMEDY}") from None


def _api_form(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    graph = _Graph({str(node["id"]): node for node in workflow["nodes"]}, _links(workflow.get("links") or []))
    subgraphs = {entry["id"] for entry in (workflow.get("definitions") or {}).get("subgraphs") or ()}
    prompt = {}
    for number, node in graph.nodes.items():
        if node["type"] in PAGE_ONLY or node.get("mode") in (MUTED, BYPASSED):
            continue
        info = _class_of(node, object_info, subgraphs)
        inputs = {**_widget_values(node, info), **_connections(graph, node)}
        title = node.get("title") or info.get("display_name") or node["type"]
        prompt[number] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    for node in prompt.values():
        lost = [name for name, value in node["inputs"].items() if isinstance(value, list) and value[0] not in prompt]
        for name in lost:
            del node["inputs"][name]
    return prompt


def _links(entries: list[Any]) -> dict[str, _Link]:
    """Both spellings: [id, origin, slot, target, slot, type] and an object with names."""
    found = {}
    for entry in entries:
        if isinstance(entry, dict):
            found[str(entry["id"])] = _Link(str(entry["origin_id"]), int(entry["origin_slot"]))
        elif entry is not None:
            found[str(entry[0])] = _Link(str(entry[1]), int(entry[2]))
    return found


def _class_of(node: Node, object_info: Mapping[str, Any], subgraphs: set[str]) -> Mapping[str, Any]:
    if node["type"] in object_info:
        return object_info[node["type"]]
    name = node.get("title") or node["type"]
    if node["type"] in subgraphs or node["type"].startswith(("workflow>", "workflow/")):
        raise BatchError(f"the workflow holds the subgraph '{name}', which only the page can unpack; {REMEDY}")
    raise BatchError(f"the server has no node '{node['type']}'; install the pack it comes from, or {REMEDY}")


# Widgets


def _widget_values(node: Node, info: Mapping[str, Any]) -> dict[str, Any]:
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):  # some packs save names
        known = {declared.name for declared in declared_inputs(info, saved) if declared.is_widget}
        return {name: _sendable(value) for name, value in saved.items() if name in known}
    values: dict[str, Any] = {}
    place = buttons = 0
    for declared in declared_inputs(info, values):
        _check_drawable(node, declared)
        if not _has_widget(declared):
            continue
        if declared.required:
            buttons += _buttons(declared)
        else:  # upload buttons come after all that is required
            place, buttons = place + buttons, 0
        value = saved[place] if place < len(saved) else declared.default
        values[declared.name] = _checked(node, declared, value)
        place += 1 + _followers(declared)
    return {name: _sendable(value) for name, value in values.items()}


def _has_widget(declared: Declared) -> bool:
    return declared.is_widget or (declared.type == "COLOR" and not declared.options.get("forceInput"))


def _followers(declared: Declared) -> int:
    """How many widgets of the page follow this one: what happens to it after a run, and to a choice a filter besides."""
    if declared.is_seed:
        return 1
    return 2 if declared.type == "COMBO" and declared.options.get("control_after_generate") else 0


def _buttons(declared: Declared) -> int:
    """How many widgets the page adds for uploading a file, and for hearing it."""
    if not any(declared.options.get(name) for name in UPLOADS):
        return 0
    return 2 if declared.options.get("audio_upload") else 1


def _check_drawable(node: Node, declared: Declared) -> None:
    template = declared.options.get("template") if declared.type == GROWING else None
    elements = [spec for kind in (template or {}).get("input", {}).values() for spec in kind.values()]
    grown = [type_ for type_, *options in elements if not any(each.get("forceInput") for each in options)]
    if declared.options.get("forceInput"):
        return
    if declared.type in DRAWN or any(type_ in WIDGETS or type_ == DYNAMIC for type_ in grown):
        raise BatchError(f"only the page knows how '{_title(node)}' keeps its {declared.name}; {REMEDY}")


def _checked(node: Node, declared: Declared, value: Any) -> Any:
    """The page fills values in by their place alone; one that cannot be of its input shows that the places have moved."""
    expected = EXPECTED.get(declared.type, object)
    if not isinstance(value, expected) or (expected is not bool and expected is not object and isinstance(value, bool)):
        raise BatchError(f"the values of '{_title(node)}' do not fit this server's version of the node; {REMEDY}")
    if declared.type == "STRING" and declared.options.get("dynamicPrompts"):
        return _plain_prompt(node, declared, value)
    return value


def _plain_prompt(node: Node, declared: Declared, text: str) -> str:
    """A prompt without its comments, as the page sends it; one with {this|that} would need the page's dice."""
    text = _COMMENTS.sub("", text)
    if re.search(r"(?<!\\)[{}]", text):
        raise BatchError(
            f"the {declared.name} of '{_title(node)}' lets the page choose between {{this|that}}; write one choice into"
            " it and the others into the jobs file"
        )
    return text.replace("\\{", "{").replace("\\}", "}")


def _sendable(value: Any) -> Any:
    return {"__value__": value} if isinstance(value, list) else value


# Connections


def _connections(graph: _Graph, node: Node) -> dict[str, Any]:
    found = {}
    for socket in node.get("inputs") or ():
        origin = _resolve(graph, socket)
        if origin is None:
            continue
        source = graph.nodes[origin[0]]
        if source["type"] == PRIMITIVE:
            found[socket["name"]] = _sendable(source["widgets_values"][0])
        else:
            found[socket["name"]] = [origin[0], origin[1]]
    return found


def _resolve(graph: _Graph, socket: Mapping[str, Any]) -> Origin | None:
    """Where an input's value comes from, through nodes that are not there for the server."""
    for link in _chain(graph, socket):
        node = graph.nodes.get(link.origin)
        if node is None or node.get("mode") == MUTED:
            return None
        if node.get("mode") != BYPASSED and node["type"] != REROUTE:
            return link.origin, link.slot
    return None


def _chain(graph: _Graph, socket: Mapping[str, Any]) -> Iterator[_Link]:
    """The links from an input backwards."""
    seen = set()
    wanted = socket.get("type", "*")
    while socket is not None and socket.get("link") is not None:
        if socket["link"] in seen:
            raise BatchError(f"the workflow's connections run in a circle; {REMEDY}")
        seen.add(socket["link"])
        link = graph.links.get(str(socket["link"]))
        if link is None:
            return
        yield link
        socket = _input_behind(graph.nodes[link.origin], link.slot, wanted)


def _input_behind(node: Node, slot: int, wanted: Any) -> Any:
    """The input of a Reroute or bypassed node that an output hands through; None where none is of its type."""
    inputs = node.get("inputs") or []
    if node["type"] == REROUTE:
        return inputs[0] if inputs else None
    offered = node["outputs"][slot]["type"]
    if wanted in ("*", ""):
        return inputs[slot] if slot < len(inputs) else (inputs[0] if inputs else None)
    if slot < len(inputs) and _fits(inputs[slot]["type"], offered) and _fits(inputs[slot]["type"], wanted):
        return inputs[slot]
    same = [socket for socket in inputs if socket["type"] == wanted]
    fitting = same or [socket for socket in inputs if _fits(socket["type"], offered)]
    return fitting[0] if fitting else None


def _fits(one: Any, other: Any) -> bool:
    """Whether the page lets these types be connected."""
    if one in ("*", "", 0) or other in ("*", "", 0) or one == other:
        return True
    left, right = ({part.strip() for part in str(type_).lower().split(",")} for type_ in (one, other))
    return "*" in left | right or bool(left & right)


def _title(node: Node) -> str:
    return str(node.get("title") or node["type"])
