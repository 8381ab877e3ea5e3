"""What a training sees at each step: which samples, at which size, in which order.

**For the training loop.** `data.batch(step, size)` is a pure function, so a resumed run needs to know nothing but its step.
`size` is everything that one optimizer step consumes: all accumulated batches of all processes. A process takes its share of
the list (`[rank::world]`, then pieces of the batch size), so the same global batch is the same data on any number of
processes and with any accumulation. `draw.position`, the place in the run, is what randomness goes by; `data.load(draw)`
reads no other state and may be called from several threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

from .augment import augment_reference
from .buckets import STEP, Size, nearest_bucket
from .categories import ONE_FOR_ALL
from .fitting import fit_sample
from .order import batch_place, dealt, endless
from .pictures import DataError as DataError
from .randomness import generator
from .sample import Source, TrainingSample

DEALS_A_WINDOW = 16  # of balanced data, sorted into buckets at a time
SEARCHED = 4096  # samples of a source without a list that are looked through for a category
SEARCHED_FIRST = 128  # of them, before the training begins


class Draw(NamedTuple):
    """One sample of one step."""

    position: int  # in the run, counted from 0: what randomness goes by
    index: int  # in the source; with a category, how many draws of it there were before
    subject: int | None = None  # the only subject that is kept, or None for all
    category: str | None = None  # of the only subject that is kept, where the sample is to be looked for (see `load`)


@runtime_checkable
class Listed(Protocol):
    """A source that is short enough to be listed, and knows about its samples without making them.

    Targets of other sources are taken to have one size.
    """

    def target_size(self, index: int) -> Size: ...

    def categories(self, index: int) -> Sequence[str]:
        """Of the subjects, in their order."""
        ...

    def row_name(self, index: int) -> str:
        """Under which a person finds the sample."""
        ...


@runtime_checkable
class Stored(Protocol):
    """A source that has pictures as bytes; resizing these is faster, and only what is left becomes floats."""

    def stored(self, index: int) -> TrainingSample: ...


class TrainingData:
    """The samples of a source in a training's order and sizes.

    Args:
        resolution: side of the square whose area a target has, in pixels.
        reference_resolution: longer side of a reference, in pixels.
        augment: whether references are augmented, differently at every position.
        ratios: of categories; draws then hold one subject each. See `balanced`.

    Raises:
        DataError: the source is empty, has no subject of a category in `ratios`, or a size is below 16.
    """

    def __init__(
        self,
        source: Source,
        resolution: int,
        reference_resolution: int,
        seed: int = 0,
        augment: bool = False,
        ratios: Mapping[str, int] | None = None,
    ) -> None:
        if len(source) == 0:
            raise DataError("the data holds no sample; add at least two")
        for name, pixels in (("resolution", resolution), ("reference_resolution", reference_resolution)):
            if pixels < STEP:
                raise DataError(f"{pixels} pixels are too few; choose at least {STEP}", name)
        self.source = source
        self.resolution = resolution
        self.reference_resolution = reference_resolution
        self.seed = seed
        self.augment = augment
        self.ratios = {category: count for category, count in (ratios or {}).items() if count > 0}
        self._window = lru_cache(maxsize=4)(self._make_window)
        if self.ratios:
            self._require_categories()

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def identity(self) -> str:
        """Changes whenever any draw or loaded sample would."""
        return _digest(
            self.source.identity,
            self.resolution,
            self.reference_resolution,
            self.seed,
            self.augment,
            tuple(self.ratios.items()),
        )

    def with_augmentation(self) -> TrainingData:
        """The same data with augmented references."""
        return TrainingData(self.source, self.resolution, self.reference_resolution, self.seed, True, self.ratios)

    def balanced(self, ratios: Mapping[str, int] = ONE_FOR_ALL) -> TrainingData:
        """Draws of a single subject each, its category as often as `ratios` says (One-for-All).

        Every sum(ratios) draws hold each category exactly as often as its ratio. Where the targets are of several buckets,
        `DEALS_A_WINDOW` times as many steps do, and their batches are of one bucket as far as that allows.

        Raises:
            DataError: the data lacks a category.
        """
        return TrainingData(
            self.source, self.resolution, self.reference_resolution, self.seed, self.augment, dict(ratios)
        )

    def name(self, draw: Draw) -> str:
        """How messages call a draw's sample."""
        source = self.source
        return source.row_name(draw.index) if isinstance(source, Listed) else f"sample {draw.index}"

    def batch(self, step: int, size: int) -> list[Draw]:
        """The `size` draws of a step, of one aspect bucket; a function of the seed and its arguments alone.

        Without ratios, every sample is drawn once an epoch as nearly as the buckets allow.
        """
        if self.ratios:
            picks = self._balanced_batch(step, size)
        else:
            group, first = batch_place(tuple(len(rows) for rows in self._groups), self.seed, step, size)
            rows, purpose = self._groups[group], f"rows/{group}"
            picks = [
                Draw(place, rows[endless(len(rows), self.seed, purpose, place)]) for place in range(first, first + size)
            ]
        return [pick._replace(position=position) for position, pick in enumerate(picks, start=step * size)]

    def load(self, draw: Draw) -> TrainingSample:
        """A draw's sample at the training's sizes.

        A draw with a category is of a source that has no list of its samples: the first of some random samples that shows
        the category is taken. That is done here, not in `batch`, because here there are threads to do it.

        Raises:
            DataError: a file cannot be read any more, or no sample shows the category.
        """
        sample = self._chosen(draw)
        sample = fit_sample(sample, self.resolution, self.reference_resolution)
        if self.augment:
            sample = _augmented(sample, self.seed, draw.position)
        made_by = (self.resolution, self.reference_resolution, [subject.name for subject in sample.subjects])
        drawn_by = (self.seed, draw.position) if self.augment else ()
        return replace(sample, key=_digest(sample.key, made_by, drawn_by))

    def _chosen(self, draw: Draw) -> TrainingSample:
        """A draw's sample at its own sizes, with the subjects that are kept."""
        if draw.category is not None:
            return self._search(draw.category, draw.index, SEARCHED)
        source = self.source
        sample = source.stored(draw.index) if isinstance(source, Stored) else source.sample(draw.index)
        return sample if draw.subject is None else replace(sample, subjects=(sample.subjects[draw.subject],))

    @cached_property
    def _groups(self) -> tuple[Sequence[int], ...]:
        """The rows of each bucket that has any; one group of all rows where the source does not know its sizes."""
        if self._buckets is None:
            return (range(len(self.source)),)
        return tuple(
            [index for index, its in enumerate(self._buckets) if its == bucket] for bucket in sorted(set(self._buckets))
        )

    @cached_property
    def _buckets(self) -> list[Size] | None:
        """Each sample's bucket, where the source knows their sizes."""
        source = self.source
        if not isinstance(source, Listed):
            return None
        return [nearest_bucket(source.target_size(index), self.resolution) for index in range(len(source))]

    def _balanced_batch(self, step: int, size: int) -> list[Draw]:
        if len(self._groups) == 1:
            return [self._balanced_pick(place) for place in range(step * size, (step + 1) * size)]
        steps = sum(self.ratios.values()) * DEALS_A_WINDOW
        window, number = divmod(step, steps)
        return self._window(window, size)[number]

    def _make_window(self, window: int, size: int) -> list[list[Draw]]:
        """The batches of some steps: picks of the same bucket together, the remainders by neighbouring aspect ratios."""
        length = sum(self.ratios.values()) * DEALS_A_WINDOW * size
        known = self._buckets or []
        drawn = [self._balanced_pick(place) for place in range(window * length, (window + 1) * length)]
        whole, rest = [], []
        for bucket in sorted(set(known)):
            picks = [pick for pick in drawn if known[pick.index] == bucket]
            cut = len(picks) // size * size
            whole += picks[:cut]
            rest += picks[cut:]
        picks = whole + rest
        batches = [picks[start : start + size] for start in range(0, length, size)]
        return [batches[endless(len(batches), self.seed, f"window/{window}", number)] for number in range(len(batches))]

    def _balanced_pick(self, place: int) -> Draw:
        """What stands at a place of the endless row of balanced draws."""
        kind, number = dealt(tuple(self.ratios.values()), self.seed, place)
        category = list(self.ratios)[kind]
        if self._listed is None:
            return Draw(place, number, category=category)
        pairs = self._listed[category]
        return Draw(place, *pairs[endless(len(pairs), self.seed, f"pairs/{category}", number)])

    @cached_property
    def _listed(self) -> dict[str, list[tuple[int, int]]] | None:
        """All (row, subject) of each category; None for a source that cannot be listed."""
        source = self.source
        if not isinstance(source, Listed):
            return None
        pairs: dict[str, list[tuple[int, int]]] = {category: [] for category in self.ratios}
        for index in range(len(source)):
            for subject, category in enumerate(source.categories(index)):
                if category in pairs:
                    pairs[category].append((index, subject))
        return pairs

    def _search(self, category: str, number: int, limit: int) -> TrainingSample:
        """The first of some random samples that shows a category, with one subject of it."""
        purpose = f"search/{category}/{number}"
        for attempt in range(min(limit, len(self.source))):
            sample = self.source.sample(endless(len(self.source), self.seed, purpose, attempt))
            found = [subject for subject in sample.subjects if subject.category == category]
            if found:
                return replace(sample, subjects=(found[endless(len(found), self.seed, f"{purpose}/subject", 0)],))
        raise _lacks(category, self.ratios)

    def _require_categories(self) -> None:
        for category in self.ratios:
            if self._listed is None:
                self._search(category, 0, SEARCHED_FIRST)
            elif not self._listed[category]:
                raise _lacks(category, self.ratios)


def _lacks(category: str, ratios: Mapping[str, int]) -> DataError:
    wanted = ", ".join(f"{count} {name}" for name, count in ratios.items())
    return DataError(
        f"no subject is of the category '{category}', but the training draws {wanted} in turn; add subjects of it to"
        " the manifest, choose the puppets whose subjects are items (--puppets-kind items, or puppets: items on the node Training"
        " Data), or leave it out of the setting categories"
    )


def _augmented(sample: TrainingSample, seed: int, position: int) -> TrainingSample:
    subjects = []
    for number, subject in enumerate(sample.subjects):
        random = generator(seed, f"augmentation/{number}", position)
        picture, mask = augment_reference(subject.reference, subject.reference_mask, random)
        subjects.append(replace(subject, reference=picture, reference_mask=mask))
    return replace(sample, subjects=tuple(subjects))


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
