"""Pictures of puppets that are drawn once, for trainings that see them many times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..buckets import Size
from ..fitting import as_floats
from ..sample import TrainingSample
from .source import PuppetSource


class KeptSamples:
    """Some samples of a source, drawn at once and held in memory as bytes; a `Source`, `Listed` and `Stored`."""

    def __init__(self, source: PuppetSource, indices: Sequence[int]) -> None:
        self._samples = [source.stored(index) for index in indices]
        self._indices = tuple(indices)
        content = repr((source.identity, self._indices)).encode()
        self.identity = f"kept-{hashlib.blake2b(content, digest_size=8).hexdigest()}"

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> TrainingSample:
        return as_floats(self._samples[index])

    def stored(self, index: int) -> TrainingSample:
        return self._samples[index]

    def target_size(self, index: int) -> Size:
        height, width = self._samples[index].target.shape[:2]
        return width, height

    def categories(self, index: int) -> Sequence[str]:
        return [subject.category for subject in self._samples[index].subjects]

    def row_name(self, index: int) -> str:
        return f"scene {self._indices[index]} of the puppets"
