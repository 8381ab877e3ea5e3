"""What a likeness is measured with, as it is chosen in a node: a metric, a model, a detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comfy.clip_vision import ClipVisionModel

from ..evaluation.detector import Detector
from ..evaluation.encoders import HostVision
from ..evaluation.similarity import METRICS, Kind, Measure, load_measure
from ..models_info.registry import (
    DETECTORS,
    ENCODERS,
    FACE_NETWORKS,
    GROUNDING_DINO,
    MissingModelError,
    find_file,
    find_folder,
    list_files,
    list_folders,
)
from .errors import InputError
from .evaluation_rows import spoken

OWN = "the metric's own"
NO_DETECTOR = "none"


def chosen_measure(node: str, metric: str, model: str, clip_vision: ClipVisionModel | None) -> Measure:
    if clip_vision is not None:
        if METRICS[metric].kind is not Kind.PICTURE:
            raise InputError(
                node, "clip_vision", f"{metric} cannot be measured with it; disconnect it and choose a model's folder"
            )
        return Measure(METRICS[metric], (HostVision(clip_vision),))
    try:
        return spoken(node, "model", lambda: load_measure(metric, model_path(node, model)))
    except MissingModelError as error:
        raise MissingModelError(f"{node}: {error}.") from None


def model_choices() -> list[str]:
    return [*list_folders(ENCODERS), *list_files(FACE_NETWORKS)]


def check_metric(node: str, metric: str) -> None:
    if metric not in METRICS:
        raise InputError(node, "metric", f"there is no '{metric}'; choose one of: {', '.join(METRICS)}")


def model_path(node: str, name: str) -> Path | None:
    """Where a chosen model is; None for the metric's own."""
    if name == OWN:
        return None
    path = find_file(FACE_NETWORKS, name) if name in list_files(FACE_NETWORKS) else find_folder(ENCODERS, name)
    if path is None:
        there = ", ".join(model_choices()) or "none is there"
        raise InputError(
            node,
            "model",
            f"there is no '{name}' in models/{ENCODERS} or models/{FACE_NETWORKS}; choose one of: {there}",
        )
    return path


def detector_folder(node: str, name: str) -> Path | None:
    if name == NO_DETECTOR:
        return None
    path = find_folder(DETECTORS, name)
    if path is None:
        there = ", ".join(list_folders(DETECTORS)) or f"none is there; get {GROUNDING_DINO.source}"
        raise InputError(
            node,
            "detector",
            f"there is no '{name}' in models/{DETECTORS}; choose one of: {there}",
        )
    return path


def chosen_detector(node: str, name: str, words: Sequence[str]) -> Detector | None:
    folder = detector_folder(node, name)
    if folder is None:
        return None
    if not words:
        raise InputError(node, "subjects", "a detector needs words; write what each subject is, one a line")
    return spoken(node, "detector", lambda: Detector(folder))
