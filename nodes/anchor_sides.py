"""The subjects of Anchor Align's two pictures: found by mask, alpha channel, pose, plain background or SAM, and matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher

from ..attention_patches.anchor_align import Box, background_colour, box_mask, mask_box, plain_subject, union
from ..pose_db.keypoints import PoseFrame, check_frames
from ..pose_db.layout import Group
from ..pose_db.subjects import nearest_subject, subjects_of
from .errors import InputError, require_packages
from .sam import see, subject_of

NODE = "Anchor Align"
STRUCTURE, APPEARANCE = "structure", "appearance"
ALPHA = "the alpha channel"


class Given(NamedTuple):
    """What came with one picture.

    Attributes:
        role: `STRUCTURE` or `APPEARANCE`.
        picture: (H, W, 3).
        masks: (N, H, W), one a subject; or None.
        source: what the masks are.
        subjects: those of its pose, in pixels.
    """

    role: str
    picture: torch.Tensor
    masks: torch.Tensor | None
    source: str
    subjects: list[Group]


def given_of(role: str, image: torch.Tensor, mask: torch.Tensor | None, pose: Any, pictures: int) -> list[Given]:
    """What came with every picture of one side; `pictures` is the number on the larger side."""
    if len(image) not in (1, pictures):
        raise InputError(
            NODE,
            role,
            f"it holds {len(image)} pictures, the other side {pictures}; give both as many, or one of them a single one",
        )
    frames = [] if pose is None else _frames(role, pose, len(image))
    masks = None if mask is None else _masks(role, mask, image, pictures)
    givens = []
    for number, picture in enumerate(image):
        own, source = None if masks is None else masks[number], f"{role}_mask"
        alpha = _alpha(picture)
        if own is None and alpha is not None:
            own, source = alpha[None], ALPHA
        subjects = _subjects(role, frames[number], picture) if frames else []
        givens.append(Given(role, _opaque(picture, alpha), own, source, subjects))
    return givens


def _alpha(picture: torch.Tensor) -> torch.Tensor | None:
    """The alpha channel of (H, W, C), where it hides anything: (H, W)."""
    hides = picture.shape[-1] == 4 and bool((picture[..., 3] <= 0.5).any())
    return picture[..., 3] if hides else None


def _opaque(picture: torch.Tensor, alpha: torch.Tensor | None) -> torch.Tensor:
    """(H, W, 3); whatever colours are hidden below transparent pixels become one, the median of the border's."""
    colours = picture[..., :3].expand(-1, -1, 3)  # of a picture in greys too
    if alpha is None:
        return colours
    return torch.lerp(background_colour(colours, alpha), colours, alpha[..., None])


def _masks(role: str, mask: torch.Tensor, image: torch.Tensor, pictures: int) -> list[torch.Tensor]:
    """The masks (N, H, W) of every picture of one side: of one picture all of them, otherwise one a picture."""
    name = f"{role}_mask"
    mask = mask.reshape(-1, *mask.shape[-2:]).to(image)
    if mask.shape[-2:] != image.shape[1:3]:
        size, right = ("x".join(str(side) for side in reversed(shape)) for shape in (mask.shape[-2:], image.shape[1:3]))
        raise InputError(
            NODE,
            name,
            f"it is {size}, the picture {right}; use a mask made from this picture (Load Image gives a 64x64 one when the"
            " file has no alpha channel)",
        )
    if pictures == 1:
        return [mask]
    if len(mask) not in (1, len(image)):
        raise InputError(
            NODE,
            name,
            f"{len(mask)} masks came for {len(image)} pictures; in a batch every picture has one subject and one mask",
        )
    return list(mask[:, None].expand(len(image), -1, -1, -1) if len(mask) == 1 else mask[:, None])


def _frames(role: str, pose: Any, pictures: int) -> Sequence[PoseFrame]:
    name = f"{role}_pose"
    try:
        frames = check_frames(pose)
    except ValueError as error:
        raise InputError(NODE, name, f"{error}; connect a pose detector or Retrieve Pose") from None
    if len(frames) not in (1, pictures):
        raise InputError(
            NODE, name, f"it has {len(frames)} frames for {pictures} pictures; give it one frame a picture"
        )
    return list(frames) * (pictures if len(frames) == 1 else 1)


def _subjects(role: str, frame: PoseFrame, picture: torch.Tensor) -> list[Group]:
    try:
        return subjects_of(frame, picture.shape[1], picture.shape[0])
    except ValueError as error:
        raise InputError(NODE, f"{role}_pose", str(error)) from None


@dataclass(frozen=True)
class Side:
    """The subjects of one picture.

    Attributes:
        given: what came with it.
        boxes: one a subject.
        masks: (N, H, W); None where a pose says where they are.
        source: what the boxes are from.
    """

    given: Given
    boxes: list[Box]
    masks: torch.Tensor | None
    source: str


def find_subjects(given: Given, sam: ModelPatcher | None) -> Side:
    """The subjects of a picture by the best of what came with it."""
    if given.masks is not None:
        return Side(given, _boxes(given, given.masks), given.masks, given.source)
    if given.subjects:
        boxes = [Box(*map(float, subject.box)) for subject in given.subjects]
        return Side(given, boxes, None, f"{given.role}_pose")
    role, picture = given.role, given.picture
    plain = plain_subject(picture) if role == STRUCTURE or sam is None else None
    if plain is not None:  # a drawn structure tells by itself, and SAM was not made for drawings
        mask, source = plain, "the plain background"
    elif sam is not None:
        seen = see(NODE, role, sam, picture)
        mask = subject_of(NODE, sam, seen, role, f"connect {role}_mask").to(picture)
        source = "SAM"
    else:
        raise InputError(
            NODE, role, f"its background is not plain, so nothing tells the subject; connect {role}_mask or sam"
        )
    box = mask_box(mask)
    if box is None:
        raise InputError(
            NODE,
            role,
            f"there is no subject in it, for nothing stands out from its background; connect another picture or {role}_mask",
        )
    return Side(given, [box], mask[None], source)


def _boxes(given: Given, masks: torch.Tensor) -> list[Box]:
    boxes = []
    for number, mask in enumerate(masks, start=1):
        box = mask_box(mask)
        if box is None:
            which = f"mask {number} of {len(masks)}" if len(masks) > 1 else "it"
            raise InputError(
                NODE,
                f"{given.role}_mask" if given.source != ALPHA else given.role,
                f"{which} is empty; paint the subject white",
            )
        boxes.append(box)
    return boxes


def matched(structure: Side, appearance: Side) -> tuple[Side, Side]:
    """Both sides with as many subjects; all people of a pose are one group where the other side has one subject."""
    if len(structure.boxes) == len(appearance.boxes):
        return structure, appearance
    if len(appearance.boxes) == 1 and structure.masks is None:
        return replace(structure, boxes=[union(structure.boxes)]), appearance
    if len(structure.boxes) == 1 and appearance.masks is None:
        return structure, replace(appearance, boxes=[union(appearance.boxes)])
    theirs = " and ".join(f"{len(side.boxes)} by {side.source}" for side in (structure, appearance))
    raise InputError(
        NODE,
        "structure_mask",
        f"the two pictures have different numbers of subjects, {theirs}; give both one mask a subject, in the order of the cast",
    )


def subject_masks(structure: Side) -> torch.Tensor:
    """Where the subjects of the structure are, (N, H, W); a picture without masks is cut apart along its pose."""
    if structure.masks is not None:
        return structure.masks
    picture, subjects = structure.given.picture, structure.given.subjects
    height, width = picture.shape[:2]
    plain = plain_subject(picture)
    if len(structure.boxes) == 1:
        return plain[None] if plain is not None else box_mask(structure.boxes[0], (height, width)).to(picture)[None]
    if plain is None:
        raise InputError(
            NODE,
            "structure",
            "its background is not plain, so its people cannot be cut apart along their pose; connect a structure_mask with"
            " one mask a subject",
        )
    require_packages(NODE, "cv2")
    nearest = torch.from_numpy(nearest_subject(subjects, width, height)).to(picture.device)
    return torch.stack([plain * (nearest == number) for number in range(len(subjects))])
