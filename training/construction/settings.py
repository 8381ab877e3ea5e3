"""The settings of a construction, read from JSON like a training's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast, get_args

from ..categories import CATEGORIES
from ..config import read_config
from ..errors import TrainingError
from .instances import Order


@dataclass(frozen=True)
class BuildConfig:
    """What is kept, and how strictly.

    Attributes:
        categories: of the subjects in the manifest, whose masks do not overlap.
        pair_categories: of the subjects that are looked for in other pictures.
        min_side: shorter side of a picture, in pixels.
        min_subject: share of the picture's area that a subject covers at least.
        min_filled: share of its box that a subject's mask covers at least.
        min_visible: share of its mask that subjects in front of it leave to a subject.
        max_subjects: in one picture, the largest ones.
        order: which of two overlapping subjects is in front.
        poses: whether to look for people's poses.
        faces: whether a person with a pose gives a face, called by the person's words.
        margin: around a reference's crop, in shares of its longer side.
        edit_prompt: the instruction to the editing workflow; {description} is what the caption calls the subject.
        edit_tries: pictures made for one reference until one passes.
        clip_i: lowest CLIP-I between an edited reference and the subject's crop.
        pair_similarity: lowest CLIP-I of two crops of one subject.
        neighbours: how many nearest neighbours of a crop may be pairs with it.
        duplicates: correlation from which on two pictures count as one.
        colours: share of their colours that two crops of one subject have in common at least.
        face_similarity: lowest cosine of two faces, where a model for faces is given; colours are not asked then.
        seed: of the edits.
    """

    categories: tuple[str, ...] = ("person", "animal", "other")
    pair_categories: tuple[str, ...] = (
        *("person", "face", "upper garment", "lower garment", "dress", "bag", "hat", "shoes", "animal"),
    )
    min_side: int = 256
    min_subject: float = 0.005
    min_filled: float = 0.1
    min_visible: float = 0.3
    max_subjects: int = 8
    order: Order = "area"
    poses: bool = True
    faces: bool = True
    margin: float = 0.05
    edit_prompt: str = (
        "Show the same {description} from another angle and in another pose, on a plain light background."
    )
    edit_tries: int = 3
    clip_i: float = 0.7
    pair_similarity: float = 0.85
    neighbours: int = 3
    duplicates: float = 0.985
    colours: float = 0.5
    face_similarity: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("categories", "pair_categories"):
            unknown = sorted(set(getattr(self, name)) - set(CATEGORIES))
            if unknown:
                raise TrainingError(f"{name} holds '{unknown[0]}'; there are: {', '.join(CATEGORIES)}")
        for name in ("min_side", "max_subjects", "edit_tries", "neighbours"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("min_subject", "min_filled", "min_visible", "margin", "colours"):
            _within(self, name, 0)
        for name in ("clip_i", "pair_similarity", "face_similarity", "duplicates"):
            _within(self, name, -1)
        if self.order not in get_args(Order):
            raise TrainingError(f"order is '{self.order}'; choose one of: {', '.join(get_args(Order))}")


def _within(config: BuildConfig, name: str, least: float) -> None:
    value = getattr(config, name)
    if not (math.isfinite(value) and least <= value <= 1):
        raise TrainingError(f"{name} is {value}; it must lie between {least} and 1")


def read_build_config(text: str) -> BuildConfig:
    """The settings in JSON text; empty text gives the defaults.

    Raises:
        TrainingError: see `read_config`.
    """
    return read_config(cast(Any, BuildConfig), text)
