"""How rows of AnyStory's table are trained, both stages, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher

from ...attention_patches.anystory import apply_anystory
from ...attention_patches.anystory_call import NO_REFERENCES, Settings
from ...attention_patches.anystory_features import Seen, SubjectFeatures, encode_features
from ...attention_patches.anystory_file import AnyStory, load_anystory
from ...attention_patches.anystory_routing import RoutingMaps, partition, shares
from ..anystory_config import AnyStoryEncoderConfig, AnyStoryRouterConfig
from ..anystory_encoder import anystory_encoder
from ..anystory_router import anystory_router
from ..config import TrainingConfig, read_config
from ..data import TrainingData
from ..encoding import Keep, keep_in_folder
from ..loop import train
from ..progress import Progress
from ..puppets import KeptSamples
from ..sdxl_encoding import SDXLEncoders
from ..weights import save_weights
from .measures import puppet_measures
from .models import Models
from .runs import run_settings
from .sdxl_drawing import draw_from, flat_puppets
from .table import Drawn
from .unrouted import apply_unrouted
from .worlds import Case, Sizes, World

SETTINGS = {"batch_size": 4, "learning_rate": 6e-4, "warmup_steps": 20, "schedule": "cosine"}
NETWORK = {"queries": 16, "qformer_width": 64, "qformer_heads": 4, "qformer_layers": 4, "router_width": 64}
ETA, GAMMA = 1.0, 0.0


class AnyStoryStudy:
    """Stage 1 on single puppets, stage 2 on pairs."""

    stages = 2

    def __init__(self, models: Models, sizes: Sizes, encodings: Path) -> None:
        self.models, self.sizes, self.encodings = models, sizes, encodings
        self.world = World(sizes, "people", people=(1, 1), tested=(2, 2), looks=False)

    @cached_property
    def sources(self) -> tuple[KeptSamples, KeptSamples]:
        """What the two stages learn from."""
        return self.world.training(), self.world.training((2, 2))

    @cached_property
    def keep(self) -> Keep:
        """Encodings that all rows and both stages share."""
        return keep_in_folder(self.encodings)

    @cached_property
    def encoders(self) -> SDXLEncoders:
        """For drawing."""
        return SDXLEncoders(self.models.sdxl_vae, self.models.clip, self.models.vision, self.keep)

    def cases(self) -> Sequence[Case]:
        return self.world.cases

    def train(
        self, training: Mapping[str, Any], steps: int, seed: int, folder: Path, report: Callable[[Progress], None]
    ) -> AnyStory:
        common = {**run_settings(steps, seed), **SETTINGS}
        sizes = {**NETWORK, "reference_size": self.sizes.reference}
        first = read_config(AnyStoryEncoderConfig, {**common, **sizes, **training})
        encoded = self._stage(anystory_encoder, first, 0, folder / "encoder", report)
        second = read_config(AnyStoryRouterConfig, common)
        return self._stage(anystory_router, second, 1, folder / "router", report, encoded)

    def _stage(
        self,
        build: Callable[..., Any],
        config: TrainingConfig,
        number: int,
        folder: Path,
        report: Callable[[Progress], None],
        *begin: AnyStory,
    ) -> AnyStory:
        models, sizes = self.models, self.sizes
        data = TrainingData(self.sources[number], sizes.resolution, sizes.reference, config.seed)
        task, data = build(models.sdxl, models.sdxl_vae, models.clip, models.vision, data, config, *begin)
        task.encoders.keep = self.keep
        result = train(task, data, config, folder, report)
        (path,) = save_weights(result.weights, "result", True, lambda name: folder / "weights" / name)
        return load_anystory(path)

    def draw(self, trained: AnyStory, drawing: Mapping[str, Any], case: Case, seed: int) -> Drawn:
        with torch.no_grad():
            model, maps = self._model(trained, drawing, case)
            start = flat_puppets(case.scene)
            caption = case.sample.caption
            latent, picture = draw_from(model, self.encoders, start, caption, seed, self.sizes.draw_steps)
        masks = None if maps is None else routed_masks(maps, latent, case.scene.labels.shape)
        return Drawn(picture, case.scene, masks)

    def _model(
        self, trained: AnyStory, drawing: Mapping[str, Any], case: Case
    ) -> tuple[ModelPatcher, RoutingMaps | None]:
        """The base model with the subjects, as the row has it."""
        if not drawing.get("subjects", True):
            return self.models.sdxl, None
        features = self._features(trained, case)
        gamma = GAMMA if drawing.get("reference_net", True) else NO_REFERENCES
        if not drawing.get("router", True):
            return apply_unrouted(self.models.sdxl, features, ETA, gamma), None
        return apply_anystory(self.models.sdxl, features, Settings(ETA, gamma))

    def _features(self, trained: AnyStory, case: Case) -> SubjectFeatures:
        size = trained.config.reference_size
        seen = [self.encoders.subject(subject, size) for subject in case.sample.subjects]
        looked = [Seen(each.clip, each.latent, each.mask) for each in seen]
        return encode_features(
            trained, [subject.name for subject in case.sample.subjects], looked, self.encoders.zero()
        )

    def measure(self, drawn: Drawn, case: Case) -> dict[str, float]:
        return puppet_measures(drawn)


def routed_masks(maps: RoutingMaps, latent: torch.Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Where the routers saw every subject over a run, as Routing Maps' masks: (N, H, W)."""
    records = maps.recording.find(latent)
    counted = shares(records, range(len(maps.layers)), 0, len(maps.names) + 1)
    return partition(counted, (size[0], size[1]))[:-1].numpy()
