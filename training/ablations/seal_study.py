"""How rows of SeAl's table are drawn. Its appearance is a reference of a puppet, its structure a grey figure of another pose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher

from ...attention_patches.anchor_align import align, background_colour, mask_box
from ...attention_patches.appearance_cache import cache_appearance, spread_sigmas
from ...attention_patches.appearance_infusion import Schedule
from ...attention_patches.appearance_patch import Settings, Source, apply_infusion
from ...attention_patches.delta_bridge import apply_delta_bridge
from ...attention_patches.projection import Move, project
from ..encoding import keep_in_folder
from ..progress import Progress
from ..puppets import Puppet, Scene, draw_reference, draw_scene
from ..puppets.identity import COLOURS
from ..puppets.words import person_words
from ..sdxl_encoding import SDXLEncoders
from .measures import part_measures, puppet_measures
from .models import Models
from .sdxl_drawing import conditioning, draw_from, start_latent
from .table import Drawn
from .worlds import Case, Sizes, World

SMALLER = 0.5  # how large the structure's figure is, by the puppet's usual size
PAPER, FIGURE = 235, 120  # greys of the structure picture
CHANGED = "upper"
TIMESTEPS = 4  # cached
INFUSION = Settings(Schedule(tau_start=0.4, tau_end=0.15, delta_start=0.0, delta_end=3.0))  # the node's and the paper's
STRENGTH, END, ROUNDS = 3.0, 0.6, 2  # of Delta-Bridge; fewer rounds than the node's, for a latent of 16 x 16
STAY = Move(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Given:
    """What one case gives to SeAl.

    Attributes:
        appearance: the puppet as it is, (H, W, 3) in [0, 1]; mask: where it is, (H, W).
        structure: a grey figure, (H, W, 3).
        shape: the scene that the structure was drawn of; its puppet has the changed garment.
        words: the appearance's; wanted: the picture's.
    """

    appearance: torch.Tensor
    mask: torch.Tensor
    structure: torch.Tensor
    shape: Scene
    words: str
    wanted: str


class SeAlStudy:
    """Nothing is trained."""

    stages = 0

    def __init__(self, models: Models, sizes: Sizes, encodings: Path) -> None:
        self.models, self.sizes, self.encodings = models, sizes, encodings
        self.world = World(sizes, "people", people=(1, 1), tested=(1, 1))

    @cached_property
    def encoders(self) -> SDXLEncoders:
        vae = self.models.sdxl_vae
        return SDXLEncoders(vae, self.models.clip, self.models.vision, keep_in_folder(self.encodings))

    def cases(self) -> Sequence[Case]:
        return self.world.cases

    def train(
        self, training: Mapping[str, Any], steps: int, seed: int, folder: Path, report: Callable[[Progress], None]
    ) -> None:
        return None

    def draw(self, trained: None, drawing: Mapping[str, Any], case: Case, seed: int) -> Drawn:
        given = given_of(case.scene, self.sizes.resolution)
        move = alignment(given) if drawing.get("align", True) else STAY
        size = given.structure.shape[:2]
        with torch.no_grad():
            start = project(given.structure, move, (size[0], size[1]), background_colour(given.structure))
            model = self._model(given, drawing)
            _, picture = draw_from(model, self.encoders, start, given.wanted, seed, self.sizes.draw_steps)
        return Drawn(picture, moved(given.shape, move))

    def _model(self, given: Given, drawing: Mapping[str, Any]) -> ModelPatcher:
        model, described = self.models.sdxl, conditioning(self.encoders, given.words)
        if drawing.get("infuse", True):
            levels = spread_sigmas(model.get_model_object("model_sampling"), TIMESTEPS)
            latent = start_latent(self.encoders, given.appearance)
            cached = cache_appearance(model, described, latent, given.mask, levels)
            model, _ = apply_infusion(model, [Source(cached)], INFUSION)
        if drawing.get("bridge", True):
            model = apply_delta_bridge(model, described, STRENGTH, END, ROUNDS)
        return model

    def measure(self, drawn: Drawn, case: Case) -> dict[str, float]:
        return {**puppet_measures(drawn), **part_measures(drawn, CHANGED)}


def given_of(scene: Scene, side: int) -> Given:
    """What SeAl gets for a scene of one puppet, in pictures of side x side."""
    own, wanted = scene.puppets[0], recoloured(scene.puppets[0])
    picture, mask = draw_reference(own, side)
    people = scene.people.copy()
    people[..., :2] = SMALLER * people[..., :2] + (0.05 * side, 0.1 * side)
    shape = _on_paper(wanted, people, SMALLER * scene.sizes[0], side)
    structure = np.where(shape.mask(0)[..., None], np.uint8(FIGURE), shape.picture)
    return Given(
        appearance=torch.from_numpy(picture.astype(np.float32) / 255),
        mask=torch.from_numpy(mask.astype(np.float32)),
        structure=torch.from_numpy(structure.astype(np.float32) / 255),
        shape=shape,
        words=person_words(own),
        wanted=person_words(wanted),
    )


def recoloured(puppet: Puppet) -> Puppet:
    """The puppet with its upper garment in the colour that follows its own and that nothing else of it has."""
    names = list(COLOURS)
    worn = {
        item.colour for item in (puppet.upper, puppet.lower, puppet.shoes, puppet.hat, puppet.bag) if item is not None
    }
    first = names.index(puppet.upper.colour)
    turned = names[first:] + names[:first]
    colour = next(name for name in turned if name not in worn and name != puppet.upper.second)
    return replace(puppet, upper=replace(puppet.upper, colour=colour))


def alignment(given: Given) -> Move:
    """Where AnchorAlign moves the structure."""
    own, target = mask_box(torch.from_numpy(given.shape.mask(0).astype(np.float32))), mask_box(given.mask)
    assert own is not None and target is not None
    return align(own, target)


def moved(shape: Scene, move: Move) -> Scene:
    """The scene of the moved structure."""
    people = shape.people.copy()
    people[..., :2] = move.scale * people[..., :2] + (move.x, move.y)
    return _on_paper(shape.puppets[0], people, move.scale * shape.sizes[0], shape.labels.shape[0])


def _on_paper(puppet: Puppet, people: np.ndarray, size: float, side: int) -> Scene:
    return draw_scene([puppet], people, np.full((side, side, 3), PAPER, dtype=np.uint8), [size])
