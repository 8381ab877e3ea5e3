"""The workflow of a batch: read from either form, and known to run on a server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .addresses import node_title
from .errors import BatchError
from .graph_form import REMEDY, api_form, is_graph
from .queue_client import Workflow

OLDEST_HOST = "0.30.0"  # the first that this pack's nodes run on; it takes ids for jobs and cancels them one by one


def read_workflow(path: Path) -> dict[str, Any]:
    """A workflow file in either form.

    Raises:
        BatchError: it is missing or no workflow.
    """
    try:
        workflow = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise BatchError(f"there is no workflow file {path}; check its name") from None
    except OSError as error:
        raise BatchError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise BatchError(f"{path.name} is not JSON; {REMEDY}") from None
    if not is_graph(workflow) and not _is_api(workflow):
        raise BatchError(f"{path.name} is no ComfyUI workflow; {REMEDY}")
    return workflow


def _is_api(workflow: Any) -> bool:
    nodes = list(workflow.values()) if isinstance(workflow, dict) else []
    return bool(nodes) and all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        for node in nodes
    )


def for_server(workflow: dict[str, Any], object_info: Mapping[str, Any]) -> Workflow:
    """The API form of a workflow.

    Raises:
        BatchError: a server with these nodes cannot run it.
    """
    prompt = api_form(workflow, object_info) if is_graph(workflow) else workflow
    for node in prompt.values():
        if node["class_type"] not in object_info:
            raise BatchError(
                f"the server has no node '{node['class_type']}' ('{node_title(node)}' in the workflow); install the pack"
                " it comes from"
            )
    if not any(object_info[node["class_type"]].get("output_node") for node in prompt.values()):
        raise BatchError("the workflow saves nothing; add a Save Image node")
    return prompt


def check_version(version: str) -> None:
    """A BatchError where a server's ComfyUI is too old."""
    if _numbers(version) < _numbers(OLDEST_HOST):
        raise BatchError(f"its ComfyUI {version} is older than {OLDEST_HOST}; update it")


def _numbers(version: str) -> list[int]:
    """Of 0.30.0, v0.30 or 0.30.0-rc1; what is no number counts as 0."""
    parts = [int(part) for part in re.findall(r"\d+", re.split(r"[-+]", version)[0])]
    return [*parts, 0, 0, 0][:3]
