"""A column `cast` names a folder: its pictures, in alphabetical order, become the subjects of the workflow, in the order of
the cast.

``alice.png`` fills the picture that the first Subject node takes, and its name; the words in ``alice.txt``, where there is
one, its description. In a workflow without Subject nodes the pictures fill the Load Image nodes, in the order of their titles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .addresses import Addresses, Target, node_title
from .errors import BatchError
from .queue_client import Workflow

COLUMN = "cast"
SUBJECT = "EnsembleSubject"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Place:
    """Where one subject goes.

    Attributes:
        picture: the input that takes its picture file.
        subject: number of its Subject node; None where the workflow has none.
    """

    picture: Target
    subject: str | None


@dataclass(frozen=True)
class Filling:
    """What a cast folder fills: (node, input) -> value, and -> picture file."""

    values: dict[tuple[str, str], str]
    pictures: dict[tuple[str, str], Path]


def find_places(addresses: Addresses) -> list[Place]:
    """The places of a workflow's cast, in its order.

    Raises:
        BatchError: there are none, or two subjects share a picture.
    """
    files = {target.node: target for target in addresses.targets if target.declared.is_file}
    subjects = in_cast_order(addresses.workflow)
    if not subjects:
        places = [Place(target, None) for target in sorted(files.values(), key=lambda target: target.title.casefold())]
    else:
        places = [Place(_picture_of(addresses.workflow, subject, files), subject) for subject in subjects]
    if not places:
        raise BatchError("the workflow has no Subject or Load Image node that a cast folder could fill")
    nodes = [place.picture.node for place in places]
    if len(set(nodes)) < len(nodes):
        raise BatchError("two Subject nodes share one Load Image node; give each its own for a cast folder")
    return places


def in_cast_order(workflow: Workflow) -> list[str]:
    """The Subject nodes, every one after those whose cast it takes."""
    subjects = [number for number, node in workflow.items() if node["class_type"] == SUBJECT]

    def before(number: str) -> int:
        count, seen = 0, {number}
        link = workflow[number]["inputs"].get("cast")
        while isinstance(link, list) and link[0] in workflow and link[0] not in seen:
            seen.add(link[0])
            count += 1
            link = workflow[link[0]]["inputs"].get("cast")
        return count

    return sorted(subjects, key=before)


def _picture_of(workflow: Workflow, subject: str, files: Mapping[str, Target]) -> Target:
    """The file input that a Subject's picture comes from, through whatever is between."""
    link = workflow[subject]["inputs"].get("image")
    seen: set[str] = set()
    while isinstance(link, list) and link[0] not in seen and link[0] in workflow:
        if link[0] in files:
            return files[link[0]]
        seen.add(link[0])
        inputs = workflow[link[0]]["inputs"]
        link = next((value for value in (inputs.get("image"), inputs.get("images")) if isinstance(value, list)), None)
    raise BatchError(f"the picture of '{node_title(workflow[subject])}' comes from no Load Image node; connect one")


def fill(places: list[Place], folder: Path, workflow: Workflow) -> Filling:
    """What a folder puts where.

    Raises:
        BatchError: it is missing, or holds another number of pictures than the workflow has subjects.
    """
    if not folder.is_dir():
        raise BatchError(f"there is no cast folder {folder}; check its name")
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    pictures = sorted(found, key=lambda path: (path.name.casefold(), path.name))
    if len(pictures) != len(places):
        raise BatchError(
            f"the cast folder {folder} holds {_count(len(pictures), 'picture')}, the workflow has"
            f" {_count(len(places), 'subject')}; make them the same"
        )
    filling = Filling({}, {})
    for place, picture in zip(places, pictures, strict=True):
        filling.pictures[place.picture.node, place.picture.declared.name] = picture
        if place.subject is not None:
            _introduce(filling, workflow[place.subject]["inputs"], place.subject, picture)
    return filling


def _introduce(filling: Filling, inputs: Mapping[str, Any], subject: str, picture: Path) -> None:
    """Name and words of a subject, where they are not connected to something else."""
    words = picture.with_suffix(".txt")
    if not isinstance(inputs.get("name"), list):
        filling.values[subject, "name"] = picture.stem
    if words.is_file() and not isinstance(inputs.get("description"), list):
        try:
            filling.values[subject, "description"] = words.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError):
            raise BatchError(f"{words} cannot be read as UTF-8 text; save it anew") from None


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
