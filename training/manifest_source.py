"""The rows of a manifest as samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .buckets import Size
from .fitting import as_floats
from .manifest import Manifest, Progress, keypoints_in_pixels, read_manifest
from .manifest_rows import ManifestSubject
from .pictures import DataError, digest, read_mask, read_picture
from .sample import TrainingSample, TrainingSubject


class ManifestSource:
    """A manifest's pictures, read when they are asked for.

    Raises:
        DataError: as `read_manifest`.
    """

    def __init__(self, manifest: Manifest | Path, progress: Progress = lambda done, total: None) -> None:
        self.manifest = read_manifest(manifest, progress) if isinstance(manifest, Path) else manifest
        self.identity = digest(repr(self.manifest.keys).encode())

    def __len__(self) -> int:
        return len(self.manifest)

    def target_size(self, index: int) -> Size:
        return self.manifest.sizes[index]

    def categories(self, index: int) -> Sequence[str]:
        return [subject.category for subject in self.manifest.rows[index].subjects]

    def row_name(self, index: int) -> str:
        return f"line {self.manifest.lines[index]} of {self.manifest.path.name}"

    def sample(self, index: int) -> TrainingSample:
        """A row at its pictures' own sizes.

        Raises:
            DataError: a file is gone or has changed since the manifest was read.
        """
        return as_floats(self.stored(index))

    def stored(self, index: int) -> TrainingSample:
        """As `sample`, but with pictures and masks of bytes, uint8 in [0, 255]: a quarter of the memory.

        Raises:
            DataError: a file is gone or has changed since the manifest was read.
        """
        row = self.manifest.rows[index]
        target, _ = read_picture(self._read(row.target))
        subjects = tuple(self._subject(subject, self.target_size(index)) for subject in row.subjects)
        return TrainingSample(self.manifest.keys[index], target, row.caption, subjects)

    def _subject(self, subject: ManifestSubject, size: Size) -> TrainingSubject:
        reference, alpha = read_picture(self._read(subject.reference))
        if subject.mask is not None:
            alpha = read_mask(self._read(subject.mask))
        return TrainingSubject(
            name=subject.name,
            description=subject.description,
            category=subject.category,
            reference=reference,
            reference_mask=torch.full(reference.shape[:2], 255, dtype=torch.uint8) if alpha is None else alpha,
            mask=None if subject.instance_mask is None else read_mask(self._read(subject.instance_mask)),
            box=subject.box,
            person=None if subject.pose is None else keypoints_in_pixels(subject.pose, size),
        )

    def _read(self, name: str) -> bytes:
        try:
            data = (self.manifest.path.parent / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"'{name}' cannot be read any more ({error.strerror}); put it back and start again"
            ) from None
        if digest(data) != self.manifest.digests[name]:
            raise DataError(f"'{name}' has changed since the manifest was read; start again")
        return data
