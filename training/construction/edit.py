"""References that show a subject anew: any ComfyUI workflow edits its crop (ASTRA re-edits with FLUX.1 Kontext).

The workflow, in API form, has a Load Image node for the crop, called by its title; `%prompt%` in any of its text boxes
becomes the instruction, every `seed` and `noise_seed` gets one of its own, and its first picture is the reference.
"""

from __future__ import annotations

from typing import Any

from ...batch.queue_client import QueueClient, Workflow
from ...pose_db.factory import fill_workflow
from ..errors import TrainingError

DESCRIPTION = "{description}"


def check_edit_workflow(workflow: Any, image_node: str, prompt_node: str) -> None:
    """`TrainingError` where a workflow is not in API form or lacks the nodes."""
    check_pictures(workflow, image_node)
    if prompt_node and _text_input(find_node(workflow, prompt_node)) is None:
        raise TrainingError(
            f"the workflow's node '{prompt_node}' has no text box; give another node's title", "workflow"
        )


def check_pictures(workflow: Any, *image_nodes: str) -> None:
    """`TrainingError` where a workflow is not in API form or has no Load Image nodes of these titles."""
    nodes = list(workflow.values()) if isinstance(workflow, dict) else []
    if not nodes or not all(isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes):
        raise TrainingError("the workflow is not in API form; save it with Workflow > Export (API)", "workflow")
    for title in image_nodes:
        if not isinstance(find_node(workflow, title)["inputs"].get("image"), str):
            raise TrainingError(
                f"the workflow's node '{title}' takes no picture file; give this title to a Load Image node", "workflow"
            )


def edit(client: QueueClient, workflow: Workflow, nodes: tuple[str, str], crop: bytes, prompt: str, seed: int) -> bytes:
    """The picture file that the workflow makes of a crop (PNG).

    Args:
        nodes: titles (or numbers) of the Load Image node and of the node with the instruction; the latter may be "".

    Raises:
        QueueError, TrainingError: it cannot; one sentence.
    """
    image_node, prompt_node = nodes
    filled = fill_workflow(workflow, prompt, seed)
    name = client.upload(f"ensemble_{client.client_id}.png", crop)
    find_node(filled, image_node)["inputs"]["image"] = name
    if prompt_node:
        node = find_node(filled, prompt_node)
        node["inputs"][_text_input(node)] = prompt
    result = client.run(filled)
    if not result.pictures:
        raise TrainingError("the workflow saves no picture; add a Save Image or Preview Image node", "workflow")
    return client.fetch(result.pictures[0])


def find_node(workflow: Workflow, title: str) -> dict[str, Any]:
    """The node of this title, or of this number."""
    if title in workflow:
        return workflow[title]
    titles = {number: str((node.get("_meta") or {}).get("title", "")) for number, node in workflow.items()}
    found = [number for number, its in titles.items() if its.strip().lower() == title.strip().lower()]
    if len(found) != 1:
        there = ", ".join(sorted({name for name in titles.values() if name})) or "none"
        count = "no node" if not found else f"{len(found)} nodes"
        raise TrainingError(
            f"the workflow has {count} called '{title}'; give the title to one node and save it again (titles: {there})",
            "workflow",
        )
    return workflow[found[0]]


def _text_input(node: dict[str, Any]) -> str | None:
    """The name of a node's text box: of its first input that is text and no choice among files."""
    texts = [name for name, value in node["inputs"].items() if isinstance(value, str)]
    return next((name for name in ("text", "prompt", "value") if name in texts), texts[0] if texts else None)
