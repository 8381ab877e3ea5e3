"""AnyStory, stage 1: QFormer, ReferenceNet and the new key and value matrices (section 3.4, "Subject encoder training").

The loss is the model's own diffusion loss (Eq. 1). There is no router yet, and the paper says of where a subject's features go
meanwhile only that the encoder learns undesirable biases for backgrounds from its pure white ones (section 3.3), so they go
everywhere. Hence two readings:

- `regions` "picture", the paper's: a picture is paired with one subject, whose features every pixel attends to. Of several
  subjects in a picture one is drawn
- `regions` "masks": all subjects of a picture at once, each on its own mask, and the zero image, which stands for the
  background, on the rest, as the router does it later. For data with instance masks of several subjects

"We drop the CLIP subject conditioning during training on 10% of the images" (section 4.1): E of the zero image stands for E of all
its subjects there, and the references stay. `reference_dropout` is its counterpart for the ReferenceNet, which the paper
has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..attention_patches.anystory_assign import GivenMasks, everywhere
from ..attention_patches.anystory_file import AnyStory, make_anystory
from ..attention_patches.anystory_injection import injection_from_base
from ..attention_patches.anystory_network import AnyStoryConfig, fresh_anystory
from ..attention_patches.anystory_rows import RowCall, RowSubjects, with_rows
from ..attention_patches.reference_net import unet_sizes
from ..attention_patches.unet_layers import attention_layers
from .anystory_config import MASKS, PICTURE, AnyStoryEncoderConfig
from .anystory_subjects import gather_masks, gather_subjects, require_subjects
from .anystory_task import OPTIONS, AnyStoryTask, check_models, check_vision
from .augment import dropped
from .data import TrainingData
from .encoding import Keep, keep_in_memory
from .groups import grouped, in_batch_order
from .randomness import generator
from .sample import TrainingSample
from .sdxl_encoding import SDXLEncoders
from .sdxl_task import check_encoders, diffusion_loss, noisy_rows
from .task import Prepared

TRAINED = ("encoder", "reference_net", "injection")


class AnyStoryEncoderTask(AnyStoryTask):
    """Stage 1."""

    name = "AnyStory encoder"

    def __init__(
        self,
        model: ModelPatcher,
        encoders: SDXLEncoders,
        anystory: AnyStory,
        config: AnyStoryEncoderConfig,
        shown: TrainingSample | None = None,
    ) -> None:
        super().__init__(model, encoders, anystory, config, TRAINED, shown)
        self.settings = config

    def prepare(self, sample: TrainingSample, position: int) -> Prepared:
        require_subjects(sample)
        if self.settings.regions == MASKS:
            return self.prepare_subjects(sample, sample.subjects, with_masks=True)
        place = torch.randint(len(sample.subjects), (), generator=generator(self.config.seed, "subject", position))
        return self.prepare_subjects(sample, (sample.subjects[int(place)],), with_masks=False)

    def losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        groups = grouped(batch, lambda row: row["latent"].shape)
        parts = [self._losses([batch[i] for i in group], [positions[i] for i in group]) for group in groups]
        return {"loss": in_batch_order(groups, parts)}

    def _losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> torch.Tensor:
        rows = noisy_rows(self.model, batch, positions, self.config.seed)
        assign: Any = GivenMasks(gather_masks(batch, self.device)) if self.settings.regions == MASKS else everywhere
        call = RowCall(self.anystory.injecting.model, self._subjects(batch, positions), assign)
        return diffusion_loss(self.model, rows, self.settings, partial(with_rows, call=call))

    def _subjects(self, batch: Sequence[Prepared], positions: Sequence[int]) -> RowSubjects:
        seen = gather_subjects(batch, self.zero, self.device)
        encoding: Any = self.anystory.encoding.model
        entries, places = seen.entries(), seen.places
        nobody = len(seen.latents)
        without_clip = self._dropped("clip", self.config.condition_dropout, positions)
        entries = entries.masked_fill(without_clip, nobody)
        places = places.masked_fill(self._dropped("reference", self.settings.reference_dropout, positions), nobody)
        if self.settings.regions == PICTURE:
            entries = entries[:, :1]  # there is no background
        return RowSubjects(
            encoding.encoder(seen.clip, OPTIONS)[entries],
            encoding.reference_net(seen.latents, seen.masks, OPTIONS),
            places,
        )

    def _dropped(self, purpose: str, part: float, positions: Sequence[int]) -> torch.Tensor:
        """Which rows learn without a condition, (B, 1) bool."""
        left_out = [dropped(self.config.seed, purpose, position, part) for position in positions]
        return torch.tensor(left_out, device=self.device)[:, None]


def fresh_network(
    model: ModelPatcher, clip_vision: ClipVisionModel, config: AnyStoryEncoderConfig
) -> tuple[dict[str, torch.Tensor], AnyStoryConfig]:
    """The network that training starts with: the ReferenceNet and the new matrices as copies of the model's own weights."""
    unet: Any = model.model.diffusion_model
    width = next(layer.context_width for layer in attention_layers(unet))
    assert width is not None
    sizes = AnyStoryConfig(
        text_width=width,
        clip_width=clip_vision.config["hidden_size"],
        clip_depth=clip_vision.config["num_hidden_layers"],
        queries=config.queries,
        qformer_width=config.qformer_width,
        qformer_heads=config.qformer_heads,
        qformer_layers=config.qformer_layers,
        router_width=config.router_width,
        reference_size=config.reference_size,
        unet=unet_sizes(model.model.model_config.unet_config),
    )
    weights = fresh_anystory(sizes, config.seed, unet.state_dict())
    copied = {f"injection.{name}": value.float().cpu() for name, value in injection_from_base(unet).items()}
    return {**weights, **copied}, sizes


def anystory_encoder(
    model: ModelPatcher,
    vae: VAE,
    clip: CLIP,
    clip_vision: ClipVisionModel,
    data: TrainingData,
    config: AnyStoryEncoderConfig,
    anystory: AnyStory | None = None,
    keep: Keep | None = None,
) -> tuple[AnyStoryEncoderTask, TrainingData]:
    """Stage 1 and its data.

    Args:
        anystory: where training starts; None for a fresh network.
        keep: how encodings are kept; in memory, unless the data is as good as endless, where it is None.

    Raises:
        TrainingError: something does not fit; says at which input.
    """
    if config.augment_references:
        data = data.with_augmentation()
    encoders = SDXLEncoders(vae, clip, clip_vision, keep or keep_in_memory(len(data)))
    check_encoders(model, encoders)
    check_vision(clip_vision)
    if anystory is None:
        with torch.inference_mode(False), torch.no_grad():
            anystory = make_anystory(*fresh_network(model, clip_vision, config))
    check_models(model, encoders, anystory.config)
    shown = data.load(data.batch(0, 1)[0]) if config.picture_every else None
    return AnyStoryEncoderTask(model, encoders, anystory, config, shown), data
