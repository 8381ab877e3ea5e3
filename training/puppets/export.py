"""Puppets as files: pictures, masks and a manifest, such as any training reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...models_info.files import whole_file
from ...pose_db.people import BODY
from ..errors import TrainingError
from ..manifest import write_manifest
from ..manifest_rows import ManifestRow, ManifestSubject
from ..sample import TrainingSample
from .source import PuppetSource

MANIFEST = "manifest.jsonl"


def export(source: PuppetSource, folder: Path, count: int, report: Callable[[int], None] = lambda done: None) -> Path:
    """Write the first `count` samples into a folder; the manifest, which names all of them, comes last.

    Args:
        report: called with the number of samples written so far.

    Returns:
        The manifest's path.

    Raises:
        TrainingError: a file cannot be written; one sentence.
    """
    rows = []
    for index in range(count):
        rows.append(_write_sample(source.stored(index), folder, index))
        report(index + 1)
    write_manifest(folder / MANIFEST, rows)
    return folder / MANIFEST


def _write_sample(sample: TrainingSample, folder: Path, index: int) -> ManifestRow:
    target = f"pictures/{index:06}.png"
    write_png(folder / target, sample.target.numpy())
    subjects = []
    for number, subject in enumerate(sample.subjects, start=1):
        assert subject.mask is not None and subject.person is not None
        stem = f"{index:06}_{number}"
        reference, mask, instance = f"references/{stem}.png", f"references/{stem}_mask.png", f"masks/{stem}.png"
        for name, picture in ((reference, subject.reference), (mask, subject.reference_mask), (instance, subject.mask)):
            write_png(folder / name, picture.numpy())
        pose = {BODY: [round(value, 2) for value in subject.person[BODY]]}
        subjects.append(
            ManifestSubject(
                reference, subject.name, subject.description, subject.category, mask, instance, subject.box, pose
            )
        )
    return ManifestRow(target, sample.caption, tuple(subjects))


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture (h, w, 3) or a mask (h, w), uint8, whole or not at all.

    Raises:
        TrainingError: it cannot be written; one sentence.
    """
    import cv2

    data = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)[1].tobytes()
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror}); free some space or choose another folder", "out"
        ) from None
