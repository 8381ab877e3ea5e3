"""The metrics of likeness by their names, and the weights they are measured with.

All but Structure are cosines of what an encoder makes of two things: two pictures (CLIP-I, DINO, DINOv2, FashionCLIP-I, GME-I),
a picture and a text (CLIP-T, FashionCLIP-T, GME-T), or two faces (FaceSim). None is scaled or cut off at zero.

Sources: CLIP-I, CLIP-T and DINO as in Ruiz et al., "DreamBooth", CVPR 2023; FaceSim, FashionCLIP and GME as in One-for-All,
appendix D; Structure in `structure.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from ..models_info.registry import (
    AURAFACE,
    CLIP_VIT_B_32,
    DINO_VIT_S_16,
    DINOV2_BASE,
    FASHION_CLIP,
    GME_2B,
    MissingModelError,
    ModelFile,
    find_file,
    find_folder,
    list_files,
    list_folders,
)
from .encoders import Encoder, load_encoder
from .errors import EvaluationError
from .faces import FaceEncoder
from .structure import structure_scores


class Kind(Enum):
    """What a picture is compared with."""

    PICTURE = "a reference picture"
    TEXT = "a text"
    FACE = "a reference face"
    STRUCTURE = "a structure picture"


@dataclass(frozen=True)
class Metric:
    """A metric of likeness.

    Attributes:
        weights: what it is measured with where nothing else is chosen; Structure with all of them together.
    """

    name: str
    kind: Kind
    weights: tuple[ModelFile, ...]


METRICS = {
    metric.name: metric
    for metric in (
        Metric("CLIP-I", Kind.PICTURE, (CLIP_VIT_B_32,)),
        Metric("CLIP-T", Kind.TEXT, (CLIP_VIT_B_32,)),
        Metric("DINO", Kind.PICTURE, (DINO_VIT_S_16,)),
        Metric("DINOv2", Kind.PICTURE, (DINOV2_BASE,)),
        Metric("FaceSim", Kind.FACE, (AURAFACE,)),
        Metric("FashionCLIP-I", Kind.PICTURE, (FASHION_CLIP,)),
        Metric("FashionCLIP-T", Kind.TEXT, (FASHION_CLIP,)),
        Metric("GME-I", Kind.PICTURE, (GME_2B,)),
        Metric("GME-T", Kind.TEXT, (GME_2B,)),
        Metric("Structure", Kind.STRUCTURE, (DINO_VIT_S_16, CLIP_VIT_B_32)),
    )
}


@dataclass(frozen=True)
class Measure:
    """A metric with its encoders in memory; metrics of the same encoders may share them."""

    metric: Metric
    encoders: tuple[Any, ...]

    def scores(self, pictures: Sequence[torch.Tensor], others: Sequence[Any]) -> list[float]:
        """How alike each picture (H, W, 3) and what it is compared with are.

        Args:
            pictures: for FaceSim the faces as `faces.py` shows them.
            others: as many: texts for a text's metric, else pictures. What comes several times is encoded once.

        Raises:
            EvaluationError: the encoder is not for this; one sentence.
        """
        if not pictures:
            return []
        if self.metric.kind is Kind.STRUCTURE:
            return structure_scores(self.encoders, pictures, others)
        (encoder,) = self.encoders
        encode = encoder.texts if self.metric.kind is Kind.TEXT else encoder.pictures
        return (_once(encoder.pictures, pictures) * _once(encode, others)).sum(dim=-1).tolist()

    def note(self, text: str) -> str:
        """What is to be said about a text; empty where nothing is."""
        cuts = getattr(self.encoders[0], "cuts", None)
        return "the text is longer than the model reads" if cuts is not None and cuts(text) else ""


def _once(encode: Any, things: Sequence[Any]) -> torch.Tensor:
    """(N, d) of N things, each of which is encoded once however often it comes."""
    keys = [thing if isinstance(thing, str) else id(thing) for thing in things]
    distinct = dict(zip(keys, things, strict=True))
    places = {key: place for place, key in enumerate(distinct)}
    return encode(list(distinct.values()))[[places[key] for key in keys]]


def find_metric(name: str) -> Metric:
    """A metric by its name; `EvaluationError` where there is none."""
    if name not in METRICS:
        raise EvaluationError(f"there is no metric '{name}'; choose one of: {', '.join(METRICS)}")
    return METRICS[name]


def find_weights(entry: ModelFile) -> Path:
    """The folder or file that a metric is measured with, however deep it lies in its models folder.

    Raises:
        MissingModelError: it is not there.
    """
    listed, find = (list_files, find_file) if Path(entry.name).suffix == ".onnx" else (list_folders, find_folder)
    names = [name for name in listed(entry.folder) if Path(name).name == entry.name]
    found = find(entry.folder, min(names, key=len)) if names else None
    if found is None:
        raise MissingModelError(entry.missing())
    return found


def load_measure(name: str, model: Path | None = None, known: dict[Path, Any] | None = None) -> Measure:
    """A metric, ready to measure.

    Args:
        model: folder or ONNX file to measure it with instead of its own.
        known: encoders that are in memory, by their paths; those that are read are added.

    Raises:
        EvaluationError: there is no such metric, or a model will not do.
        MissingModelError: the metric's own weights are not there.
    """
    metric, known = find_metric(name), {} if known is None else known
    paths = [find_weights(entry) for entry in metric.weights] if model is None else [model]
    for path in paths:
        if path not in known:
            known[path] = _load(metric, path)
    encoders = tuple(known[path] for path in paths)
    for encoder in encoders:
        check_encoder(metric, encoder)
    return Measure(metric, encoders)


def _load(metric: Metric, path: Path) -> Encoder:
    is_file = path.suffix.lower() == ".onnx"
    if is_file != (metric.kind is Kind.FACE):
        wanted = "an ONNX file such as glintr100.onnx" if metric.kind is Kind.FACE else "a folder with an encoder"
        raise EvaluationError(f"{metric.name} is not measured with {path.name}; choose {wanted}")
    return FaceEncoder(path) if is_file else load_encoder(path)


def check_encoder(metric: Metric, encoder: Any) -> None:
    """`EvaluationError` where a metric cannot be measured with an encoder."""
    needed = {Kind.STRUCTURE: "places", Kind.TEXT: "texts"}.get(metric.kind, "pictures")
    if not hasattr(encoder, needed):
        what = "looks at no places in pictures" if needed == "places" else "reads no texts"
        raise EvaluationError(
            f"{encoder.name} {what}, so that {metric.name} cannot be measured with it; choose another model"
        )
