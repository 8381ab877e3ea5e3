"""The cast: who is in the picture. Every other family of nodes takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io

from ..models_info.vision_input import cut_out
from ..training.categories import CATEGORIES
from .contact_sheet import Tile, draw_contact_sheet
from .errors import InputError, require_text, sentence_or_true
from .types import CAST

MAX_SUBJECTS = 32  # every reference is attended to by every token, so a longer cast is a mistake rather than a wish


@dataclass(frozen=True)
class Subject:
    """One person or thing.

    Attributes:
        image: (1, H, W, 3) float32 in [0, 1].
        mask: (1, H, W) float32, 1 where the subject is; None for the whole picture.
        name: how other nodes and reports call it, unique in its cast.
        description: the words for it in a prompt; may be empty.
        category: one of `CATEGORIES`.
    """

    image: torch.Tensor
    mask: torch.Tensor | None
    name: str
    description: str
    category: str

    def cut_out(self) -> torch.Tensor:
        """The subject on white, (1, H, W, 3); the whole picture where it has no mask."""
        return cut_out(self.image, self.mask)


@dataclass(frozen=True)
class Cast:
    """The subjects of a picture, in order; the order assigns poses, boxes and masks."""

    subjects: tuple[Subject, ...]


class EnsembleSubject(io.ComfyNode):
    """Adds one person or thing to the cast."""

    DISPLAY_NAME = "Subject"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleSubject",
            display_name=cls.DISPLAY_NAME,
            category="ensemble/cast",
            description="Adds a person or thing to the cast. Chain several: the order of the chain is the order of the cast.",
            search_aliases=["reference image", "identity", "character", "multi-subject", "cast", "ensemble"],
            inputs=[
                io.Image.Input(
                    "image", tooltip="One picture of the subject. An alpha channel, if it has one, serves as mask."
                ),
                io.String.Input("name", default="alice", tooltip="A short name, unique in the cast."),
                io.String.Input(
                    "description",
                    default="a woman in a red coat",
                    multiline=True,
                    tooltip="The words that stand for this subject in your prompt.",
                ),
                io.Combo.Input("category", options=list(CATEGORIES), tooltip="What the picture shows of the subject."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the subject is, of the picture's size. Load Image gives the opposite: invert it first.",
                ),
                CAST.Input("cast", optional=True, tooltip="The cast so far; leave empty for the first subject."),
            ],
            outputs=[CAST.Output(display_name="cast")],
        )

    @classmethod
    def validate_inputs(cls, category: str | None = None) -> bool | str:  # None while it comes by a link
        return sentence_or_true(_check_category, category)

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        name: str,
        description: str,
        category: str,
        mask: torch.Tensor | None = None,
        cast: Cast | None = None,
    ) -> io.NodeOutput:
        earlier = cast.subjects if cast is not None else ()
        name = name.strip()
        require_text(cls.DISPLAY_NAME, "name", name, "give the subject a short name")
        _check_category(category)
        if name in {subject.name for subject in earlier}:
            raise InputError(cls.DISPLAY_NAME, "name", f"the cast already has a '{name}'; choose another name")
        if len(earlier) >= MAX_SUBJECTS:
            raise InputError(cls.DISPLAY_NAME, "cast", f"it is full at {MAX_SUBJECTS} subjects; leave some out")
        picture, cutout = _split_alpha(image, mask)
        subject = Subject(picture, cutout, name, description.strip(), category)
        return io.NodeOutput(Cast((*earlier, subject)))


def _check_category(category: str) -> None:
    if category not in CATEGORIES:
        raise InputError(
            EnsembleSubject.DISPLAY_NAME, "category", f"'{category}' is unknown; choose one of {', '.join(CATEGORIES)}"
        )


def _split_alpha(image: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The picture without alpha (1, H, W, 3), and the subject's mask (1, H, W), if there is one."""
    node = EnsembleSubject.DISPLAY_NAME
    count, height, width, channels = image.shape
    if count != 1:
        raise InputError(node, "image", f"it holds {count} pictures; pick one with Image From Batch")
    if mask is None and channels == 4:
        mask = image[..., 3]
    if mask is None:
        return image[..., :3], None
    mask = mask.reshape(-1, *mask.shape[-2:])
    if mask.shape != (1, height, width):
        size = " x ".join(str(side) for side in reversed(mask.shape[-2:]))
        raise InputError(
            node,
            "mask",
            f"it is {len(mask)} of {size} pixels, the picture is {width} x {height}; use a mask made from this picture"
            " (Load Image gives a 64 x 64 one when the file has no alpha channel)",
        )
    if not bool((mask > 0.5).any()):
        raise InputError(node, "mask", "it is empty; paint the subject white or leave the mask out")
    return image[..., :3], mask


class EnsembleCastSheet(io.ComfyNode):
    """Shows who is in the cast."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EnsembleCastSheet",
            display_name="Cast Sheet",
            category="ensemble/cast",
            description="A contact sheet of the cast: every picture with the outline of its mask, name, category and words.",
            search_aliases=["contact sheet", "preview cast", "references", "ensemble"],
            inputs=[CAST.Input("cast", tooltip="The cast to show.")],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(cls, cast: Cast) -> io.NodeOutput:
        tiles = [
            Tile(
                subject.image[0].cpu().numpy(),
                None if subject.mask is None else subject.mask[0].cpu().numpy(),
                title,
                text,
            )
            for number, subject in enumerate(cast.subjects, start=1)
            for title, text in [(f"{number}. {subject.name} ({subject.category})", subject.description)]
        ]
        return io.NodeOutput(torch.from_numpy(draw_contact_sheet(tiles))[None])


NODES: list[type[io.ComfyNode]] = [EnsembleSubject, EnsembleCastSheet]
