"""What the rows learn from and what they are tested on: puppets and poses of the test are in no training picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ...pose_db.keypoints import MIRRORED
from ..errors import TrainingError
from ..puppets import KeptSamples, PuppetSource, Scene
from ..sample import TrainingSample

TRAINING_SEED, TEST_SEED = 1, 7_001  # of the puppets' scenes
HELD_OUT = (3_000_000, 4_000_000)  # numbers of the test's puppets; trainings draw theirs from below 1,000,000
SAME_POSE = 1e-3  # distance of two poses of length 1 that pass for the same
LEAST_SIZE = 32  # pixels


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        resolution: side of the pictures, pixels.
        reference: side of the references.
        pictures: of puppets to learn from.
        scenes: test pictures of a row and seed.
        draw_steps: of the sampler.
    """

    resolution: int = 128
    reference: int = 64
    pictures: int = 256
    scenes: int = 12
    draw_steps: int = 10

    def __post_init__(self) -> None:
        for name in ("resolution", "reference"):
            value = getattr(self, name)
            if value < LEAST_SIZE or value % 16:
                raise TrainingError(f"{name} is {value}; it must be a multiple of 16, at least {LEAST_SIZE}", name)
        for name, least in (("pictures", 4), ("scenes", 1), ("draw_steps", 1)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise TrainingError(f"{option} is {getattr(self, name)}; it must be at least {least}", name)


@dataclass(frozen=True)
class Case:
    """A test picture that is to be drawn.

    Attributes:
        number: of the case, from 0.
        scene: the truth.
        sample: caption and references.
    """

    number: int
    scene: Scene
    sample: TrainingSample


@dataclass(frozen=True)
class World:
    """The pictures of a study.

    Attributes:
        sizes: of them.
        kind: of the puppets' subjects, "people" or "items".
        people: fewest and most puppets of a training picture.
        tested: the same of a test picture.
        categories: of the subjects of a test picture; empty for all.
        fewest: subjects that a test picture has.
        looks: whether captions say what people wear.
    """

    sizes: Sizes
    kind: str
    people: tuple[int, int]
    tested: tuple[int, int]
    categories: tuple[str, ...] = ()
    fewest: int = 1
    looks: bool = True

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """The first scenes with enough subjects."""
        source = self._source(TEST_SEED, self.tested, HELD_OUT)
        cases: list[Case] = []
        index = 0
        while len(cases) < self.sizes.scenes:
            sample = source.sample(index)
            chosen = tuple(each for each in sample.subjects if not self.categories or each.category in self.categories)
            if len(chosen) >= self.fewest:
                cases.append(Case(len(cases), source.scene(index), replace(sample, subjects=chosen)))
            index += 1
        return tuple(cases)

    def training(self, people: tuple[int, int] | None = None) -> KeptSamples:
        """The first pictures in which nobody stands as somebody of the test does."""
        source = self._source(TRAINING_SEED, people or self.people)
        tested = np.concatenate([case.scene.people for case in self.cases])
        indices: list[int] = []
        index = 0
        while len(indices) < self.sizes.pictures:
            if not same_poses(source.scene(index).people, tested):
                indices.append(index)
            index += 1
        return KeptSamples(source, indices)

    def _source(self, seed: int, people: tuple[int, int], identities: tuple[int, int] = (0, 1_000_000)) -> PuppetSource:
        side = self.sizes.resolution
        return PuppetSource(
            seed,
            (side, side),
            self.sizes.reference,
            people=people,
            kind=self.kind,
            identities=identities,
            looks=self.looks,
        )


def same_poses(people: np.ndarray, others: np.ndarray) -> bool:
    """Whether any of people (P, 18, 3) has the pose of any of others (Q, 18, 3), or its mirror image, at any place and size."""
    mirrored = others[:, MIRRORED].copy()
    mirrored[..., 0] *= -1
    own, theirs = _shapes(people), _shapes(np.concatenate([others, mirrored]))
    return bool((np.linalg.norm(own[:, None] - theirs[None], axis=-1) < SAME_POSE).any())


def _shapes(people: np.ndarray) -> np.ndarray:
    """Poses about their middle and of length 1, (P, 36)."""
    points = people[..., :2] - people[..., :2].mean(axis=1, keepdims=True)
    flat = points.reshape(len(people), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)
