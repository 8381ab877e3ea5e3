"""A workflow fitted to a benchmark: as many subjects as a picture has, its pose or structure from a file, and nothing that
only previews. All functions take and give workflows in API form and leave the given one as it is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...batch.addresses import node_title
from ...batch.cast_folder import SUBJECT, in_cast_order
from ...batch.errors import BatchError
from ...batch.graph_form import is_graph
from ...batch.workflow import read_workflow
from ..errors import EvaluationError
from .links import Slot, Workflow, is_link, of_class, upstream, users
from .slots import CONTROL

BUNDLED = Path(__file__).resolve().parent.parent.parent / "workflows" / "api"
POSE_PICTURE = "pose_image"  # what nodes call the picture of a pose that they take
ALIGN = "EnsembleAnchorAlign"
PREVIEW = "Preview"  # begins the classes of nodes that only show something
STRUCTURE_TITLE = "Structure"


def load_workflow(given: str) -> Workflow:
    """A bundled workflow by its name, or a file in API form.

    Raises:
        EvaluationError: there is none, or it is not in API form.
    """
    bundled = BUNDLED / f"{given}.json"
    if bundled.parent == BUNDLED and bundled.is_file():
        return json.loads(bundled.read_text(encoding="utf-8"))
    try:
        workflow = read_workflow(Path(given))
    except BatchError as error:
        raise EvaluationError(f"--workflow: {error}") from None
    if is_graph(workflow):
        raise EvaluationError(
            f"--workflow: {given} is in the form of ComfyUI's page; save it with Export (API) instead"
        )
    return workflow


def with_subjects(workflow: Workflow, count: int) -> Workflow:
    """With so many Subject nodes: the last ones leave, or the last one is repeated with its own picture.

    Raises:
        EvaluationError: there is no Subject node to begin with.
    """
    fitted = copy.deepcopy(workflow)
    subjects = in_cast_order(fitted)
    if not subjects:
        raise EvaluationError("--workflow: it has no Subject node; take a workflow that puts a cast into a picture")
    last = subjects[-1]
    takers = [slot for slot in users(fitted, last) if fitted[slot[0]]["class_type"] != SUBJECT]
    for number in range(len(subjects), count):
        subjects.append(_repeated(fitted, subjects[-1], number + 1))
    for node, name in takers:
        fitted[node]["inputs"][name] = [subjects[count - 1], 0]
    for dropped in subjects[count:]:
        del fitted[dropped]
    return _without_loose_ends(fitted)


def _repeated(workflow: Workflow, subject: str, number: int) -> str:
    """A copy of a Subject node behind it in the cast, with copies of all that makes its picture and mask."""
    sources = upstream(workflow, [subject], but=("cast",))
    names = {old: str(_highest(workflow) + place) for place, old in enumerate(sources, start=1)}
    for old, new in names.items():
        node = copy.deepcopy(workflow[old])
        for name, value in node["inputs"].items():
            if is_link(value) and value[0] in names:
                node["inputs"][name] = [names[value[0]], value[1]]
        node["_meta"] = {"title": f"{node_title(node)} ({number})"}
        workflow[new] = node
    workflow[names[subject]]["inputs"]["cast"] = [subject, 0]
    return names[subject]


def with_structure(workflow: Workflow) -> Workflow:
    """With a Load Image node 'Structure' in place of whatever made the picture of the pose.

    AnchorAlign gets it where there is one, and passes it on; its mask is what is not transparent.

    Raises:
        EvaluationError: nothing in it takes such a picture.
    """
    fitted = copy.deepcopy(workflow)
    places = list(_structure_places(fitted))
    if not places:
        raise EvaluationError(
            "--workflow: nothing in it takes the picture of a pose; connect one to a ControlNet or to Reference Latents"
        )
    first = _highest(fitted) + 1
    picture, mask = str(first), str(first + 1)
    fitted[picture] = _node("LoadImage", STRUCTURE_TITLE, image="")
    source = picture
    aligning = of_class(fitted, ALIGN)
    for node in aligning:
        fitted[mask] = _node("InvertMask", "Alpha of the structure to mask", mask=[picture, 1])
        fitted[node]["inputs"].pop("structure_pose", None)
        fitted[node]["inputs"] |= {"structure": [picture, 0], "structure_mask": [mask, 0]}
        source = node
    for node, name in places:
        fitted[node]["inputs"][name] = [source, 0]
    return fitted


def without_pose(workflow: Workflow) -> Workflow:
    """Without the pose where it is optional."""
    fitted = copy.deepcopy(workflow)
    for node in fitted.values():
        if is_link(node["inputs"].get(POSE_PICTURE)):
            del node["inputs"][POSE_PICTURE]
    return fitted


def pruned(fitted: Workflow, workflow: Workflow) -> Workflow:
    """A fitted workflow without previews, what only they need, and what nothing needs any more.

    Args:
        workflow: as it was before it was fitted: what ends there is what it is for.

    Raises:
        EvaluationError: nothing is left, because it saves nothing.
    """
    used = {value[0] for node in workflow.values() for value in node["inputs"].values() if is_link(value)}
    ends = [number for number in workflow if number not in used and number in fitted]
    kept = upstream(fitted, [end for end in ends if not workflow[end]["class_type"].startswith(PREVIEW)])
    if not kept:
        raise EvaluationError("--workflow: it saves nothing; add a Save Image node")
    return {number: node for number, node in fitted.items() if number in kept}


def _structure_places(workflow: Workflow) -> Iterator[Slot]:
    for number, node in workflow.items():
        if is_link(node["inputs"].get(POSE_PICTURE)):
            yield number, POSE_PICTURE
        if node["class_type"].startswith(CONTROL) and is_link(node["inputs"].get("image")):
            yield number, "image"


def _without_loose_ends(workflow: Workflow) -> Workflow:
    """Without links to nodes that have left."""
    for node in workflow.values():
        inputs = node["inputs"].items()
        node["inputs"] = {name: value for name, value in inputs if not is_link(value) or value[0] in workflow}
    return workflow


def _node(kind: str, title: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}


def _highest(workflow: Workflow) -> int:
    """The highest number of a node; names that are no numbers stay out of it."""
    return max((int(number) for number in workflow if number.isdigit()), default=0)
