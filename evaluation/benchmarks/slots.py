"""Which inputs of a workflow in API form a benchmark fills: pictures, prompts, seeds, sizes."""

from __future__ import annotations

from typing import Any

from ...batch.addresses import node_title
from ...batch.cast_folder import in_cast_order
from ..errors import EvaluationError
from .links import Slot, Workflow, is_link, of_class, upstream

CACHE = "EnsembleAppearanceCache"
CONTROL = "ControlNetApply"  # begins the classes of nodes that take the picture of a pose as `image`
TEXTS = ("prompt", "text", "text_g", "text_l", "clip_l", "t5xxl", "value", "string")
SEEDS = ("seed", "noise_seed")


def subject_nodes(workflow: Workflow) -> list[str]:
    """The Subject nodes in the order of the cast."""
    return in_cast_order(workflow)


def picture_slots(workflow: Workflow) -> list[Slot]:
    """The Load Image input behind every Subject node, in the order of the cast.

    Raises:
        EvaluationError: a Subject's picture comes from elsewhere.
    """
    return [_picture_behind(workflow, subject, "image") for subject in in_cast_order(workflow)]


def appearance_slots(workflow: Workflow) -> tuple[list[Slot], list[Slot]]:
    """The pictures whose appearance is taken over, and the words for them.

    Raises:
        EvaluationError: it has no Appearance Cache.
    """
    caches = of_class(workflow, CACHE)
    if not caches:
        raise EvaluationError("--workflow: it has no Appearance Cache; take one of the SeAl workflows")
    pictures = [_picture_behind(workflow, node, "image") for node in caches]
    texts = [slot for node in caches for slot in _texts_behind(workflow, node, "conditioning")]
    return list(dict.fromkeys(pictures)), list(dict.fromkeys(texts))


def prompt_slots(workflow: Workflow) -> list[Slot]:
    """Where the prompt is written: behind what the sampler takes as positive.

    Raises:
        EvaluationError: it cannot be found.
    """
    samplers = [number for number, node in workflow.items() if {"positive", "negative"} <= node["inputs"].keys()]
    samplers = [number for number in samplers if not workflow[number]["class_type"].startswith(CONTROL)]
    found = [slot for number in samplers for slot in _texts_behind(workflow, number, "positive")]
    guiders = () if found else of_class(workflow, "BasicGuider")
    found += [slot for number in guiders for slot in _texts_behind(workflow, number, "conditioning")]
    if not found:
        raise EvaluationError("--workflow: no prompt is written behind the sampler's positive input; put a text there")
    return list(dict.fromkeys(found))


def seed_slots(workflow: Workflow) -> list[Slot]:
    """Every seed that is not connected.

    Raises:
        EvaluationError: there is none.
    """
    found = [
        (number, name) for number, node in workflow.items() for name in SEEDS if _is_whole(node["inputs"].get(name))
    ]
    if not found:
        raise EvaluationError("--workflow: it has no seed to set; disconnect the sampler's seed")
    return found


def size_slots(workflow: Workflow) -> list[tuple[Slot, Slot]]:
    """Width and height of every empty latent that is not connected; none where the size comes from elsewhere."""
    empty = (number for number, node in workflow.items() if node["class_type"].startswith("Empty"))
    sized = [
        number
        for number in empty
        if all(_is_whole(workflow[number]["inputs"].get(name)) for name in ("width", "height"))
    ]
    return [((number, "width"), (number, "height")) for number in sized]


def address(workflow: Workflow, slot: Slot) -> str:
    """A column's heading for an input: with the node's title where no other node has the same."""
    node, name = slot
    title = node_title(workflow[node])
    alone = sum(node_title(other).casefold() == title.casefold() for other in workflow.values()) == 1
    return f"{title if alone else node}.{name}"


def _picture_behind(workflow: Workflow, node: str, name: str) -> Slot:
    link = workflow[node]["inputs"].get(name)
    for number in upstream(workflow, [link[0]]) if is_link(link) else ():
        if isinstance(workflow[number]["inputs"].get("image"), str):
            return number, "image"
    title = node_title(workflow[node])
    raise EvaluationError(
        f"--workflow: the picture of '{title}' comes from no Load Image node; connect one to its {name}"
    )


def _texts_behind(workflow: Workflow, node: str, name: str) -> list[Slot]:
    """The texts that the conditioning at an input is made of."""
    link, seen = workflow[node]["inputs"].get(name), set[str]()
    while is_link(link) and link[0] not in seen and link[0] in workflow:
        seen.add(link[0])
        inputs = workflow[link[0]]["inputs"]
        written = [(link[0], text) for text in TEXTS if isinstance(inputs.get(text), str)]
        if written:
            return written
        ways = ("positive" if link[1] == 0 else "negative", "conditioning", "conditioning_1", *TEXTS)
        link = next((inputs[way] for way in ways if is_link(inputs.get(way))), None)
    return []


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
