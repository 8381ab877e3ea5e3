"""The puppets as a source of training samples."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import torch

from ...pose_db.people import BODY
from ..errors import TrainingError
from ..fitting import as_floats
from ..sample import TrainingSample, TrainingSubject
from .backgrounds import VARIANTS as BACKGROUNDS
from .backgrounds import background
from .dice import Dice
from .identity import Puppet, puppet
from .posing import bundled, choose_poses, place
from .references import ITEM_PARTS, VARIANTS, categories, draw_item, draw_reference
from .scene import Scene, bounding_box, draw_scene
from .words import ITEMS_WORDS, caption, choose_items, dressed_words, face_words, item_words, person_words

VERSION = 2  # of the drawing: pictures of another version differ
ENDLESS = 1_000_000_000
IDENTITIES = 1_000_000  # the sources' puppets are `puppet(0)` up to here; the numbers above are new to every training
KINDS = ("people", "items")
_LEAST_SHARE = 0.0005  # of the picture, that a thing must take up to be spoken of

Subject = tuple[int, str, str]  # a puppet's number, category, words


class PuppetSource:
    """Scenes of puppets without end, as a `Source`.

    Args:
        seed: other seeds give other scenes of the same world.
        size: width and height of the pictures, pixels.
        reference_size: side of the square references, pixels.
        people: fewest and most puppets in a picture, 1 to 4.
        kind: ``people``: every subject is a whole puppet; ``items``: every subject is one thing of a puppet.
        count: how many samples there are; None for as good as endless.
        identities: puppets have numbers from the first of these to below the second.
        looks: whether captions and descriptions of people say what they wear; otherwise "a girl" is all, and who she is
            can be seen in her reference alone.

    Raises:
        TrainingError: a setting makes no sense; one sentence.
    """

    def __init__(
        self,
        seed: int = 0,
        size: tuple[int, int] = (128, 128),
        reference_size: int = 64,
        people: tuple[int, int] = (1, 2),
        kind: str = "people",
        count: int | None = None,
        identities: tuple[int, int] = (0, IDENTITIES),
        looks: bool = True,
    ) -> None:
        if kind not in KINDS:
            raise TrainingError(f"the puppets' kind is '{kind}'; choose one of {', '.join(KINDS)}", "data")
        if not 1 <= people[0] <= people[1] <= 4:
            raise TrainingError(
                f"{people[0]} to {people[1]} puppets in a picture are asked for; choose from 1 to 4", "data"
            )
        if min(*size, reference_size) < 16:
            raise TrainingError(
                "a picture of puppets is less than 16 pixels wide or high; choose a larger size", "data"
            )
        if identities[1] - identities[0] < 4 * people[1]:
            raise TrainingError(
                f"there are too few puppets to choose from; give a range of at least {4 * people[1]} numbers", "data"
            )
        self.seed, self.size, self.reference_size, self.people = seed, size, reference_size, people
        self.kind, self.count, self.identities = kind, ENDLESS if count is None else count, identities
        self.looks = looks
        made_from = [VERSION, seed, size, reference_size, people, kind, self.count, identities, bundled().info]
        made_from += [] if looks else ["no looks"]
        self.identity = f"puppets-{hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """The picture of sample `index`, with the truth about it."""
        return self._scene(index)[0]

    def sample(self, index: int) -> TrainingSample:
        """Sample `index`: the same whenever and wherever it is asked for."""
        return as_floats(self.stored(index))

    def stored(self, index: int) -> TrainingSample:
        """As `sample`, but with pictures and masks of bytes, uint8 in [0, 255]."""
        scene, subjects = self._scene(index)
        made = [self._subject(scene, index, *subject) for subject in subjects]
        return TrainingSample(f"{self.identity}/{index}", torch.from_numpy(scene.picture), scene.caption, tuple(made))

    def _scene(self, index: int) -> tuple[Scene, list[Subject]]:
        """The first of some scenes in which everybody is seen."""
        if not 0 <= index < self.count:
            raise IndexError(f"there is no scene {index} of puppets; their numbers end at {self.count - 1}")
        attempt = 0
        while True:
            scene, subjects = self._attempt(Dice(self.seed, "scene", index, attempt))
            if subjects:
                return scene, subjects
            attempt += 1

    def _attempt(self, dice: Dice) -> tuple[Scene, list[Subject]]:
        """A scene and its subjects; no subjects where somebody is hidden."""
        width, height = self.size
        number = self.people[0] + dice.below(self.people[1] - self.people[0] + 1)
        poses, puppets = choose_poses(dice, number), self._different(dice, number)
        people, sizes = place(dice, poses, puppets, width, height)
        ground, place_words = background(dice.below(BACKGROUNDS), width, height)
        scene = draw_scene(puppets, people, ground, sizes)
        if self.kind == "people":
            words = [person_words(one, number) if self.looks else f"a {one.kind}" for one in puppets]
            subjects = [(index, "person", text) for index, text in enumerate(words)]
        else:
            words, subjects = things(dice, scene)
        actions = [(pose.action, len(pose.people)) for pose in poses]
        scene = replace(scene, caption=caption(words, actions, place_words), descriptions=tuple(words))
        hidden = any(np.count_nonzero(scene.mask(one)) < 20 * _LEAST_SHARE * scene.labels.size for one in range(number))
        return scene, [] if hidden else subjects

    def _different(self, dice: Dice, number: int) -> list[Puppet]:
        """Puppets nobody would mix up, as far as some tries find them."""
        chosen: list[Puppet] = []
        tries = 32
        while len(chosen) < number:
            other = puppet(self.identities[0] + dice.below(self.identities[1] - self.identities[0]))
            tries -= 1
            if tries < 0 or all(_unlike(one, other) for one in chosen):
                chosen.append(other)
        return chosen

    def _subject(self, scene: Scene, index: int, number: int, category: str, words: str) -> TrainingSubject:
        one, mask = scene.puppets[number], scene.mask(number, ITEM_PARTS.get(category, ()))
        if category == "person":
            variant = 1 + Dice(self.seed, "reference", index, number).below(VARIANTS - 1)
            reference, inside = draw_reference(one, self.reference_size, variant)
        else:
            reference, inside = draw_item(one, category, self.reference_size)
        return TrainingSubject(
            name=f"{one.kind if category == 'person' else category} {number + 1}",
            description=words,
            category=category,
            reference=torch.from_numpy(reference),
            reference_mask=_as_bytes(inside),
            mask=_as_bytes(mask),
            box=bounding_box(mask),
            person={BODY: scene.people[number].reshape(-1).tolist()},
        )


def _unlike(one: Puppet, other: Puppet) -> bool:
    below = (other.lower or other.upper).colour != (one.lower or one.upper).colour
    return below and one.upper.colour != other.upper.colour and one.hair != other.hair


def things(dice: Dice, scene: Scene) -> tuple[list[str], list[Subject]]:
    """Everybody's words with some of their visible things in them, and these things as subjects."""
    words: list[str] = []
    subjects: list[Subject] = []
    said: set[str] = set()  # words mean one thing of the picture only
    for number, one in enumerate(scene.puppets):
        seen = {category: _is_seen(scene, number, category) for category in categories(one)}
        visible = [
            (category, item)
            for category, item in categories(one).items()
            if item is not None and seen[category] and item_words(item) not in said
        ]
        room = ITEMS_WORDS // len(scene.puppets) - len(face_words(one).split())
        chosen = choose_items(dice, visible, room)
        said |= {item_words(item) for _, item in chosen}
        words.append(dressed_words(one, chosen))
        subjects += [(number, "face", face_words(one))] if seen["face"] else []
        subjects += [(number, category, item_words(item)) for category, item in chosen]
    return words, subjects


def _is_seen(scene: Scene, number: int, category: str) -> bool:
    return bool(np.count_nonzero(scene.mask(number, ITEM_PARTS[category])) > _LEAST_SHARE * scene.labels.size)


def _as_bytes(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.view(np.uint8) * np.uint8(255))
