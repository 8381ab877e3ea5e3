"""AnyStory, stage 2: the router alone, which is the one-query QFormer and the routers of all layers (section 3.4).

The loss is the diffusion loss (Eq. 1) plus lambda times the routing loss (Eq. 4), with lambda 0.1. The pixels of every layer are
assigned by Gumbel-softmax, one-hot forwards; the gradient of the diffusion loss reaches the routers through the sum of
Eq. 5. Eq. 4 is taken of the refined map and of the coarse one, which decides where the router looks and has no other way to
learn.

Eq. 4 prints a sum over the pixels, as Eq. 1 prints one over the latent. Both are means here, as usual, or the balance between
them would hang on the resolution; and the routing loss is a mean over the layers, or it would hang on their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..attention_patches.anystory_assign import Routed, owners_of
from ..attention_patches.anystory_file import AnyStory
from ..attention_patches.anystory_router import gumbel_noise
from ..attention_patches.anystory_rows import RowCall, RowSubjects, with_rows
from ..attention_patches.unet_layers import AttentionLayer
from .anystory_config import AnyStoryRouterConfig
from .anystory_subjects import Subjects, gather_masks, gather_subjects, require_subjects
from .anystory_task import OPTIONS, AnyStoryTask, check_models
from .augment import dropped
from .data import TrainingData
from .encoding import Keep, keep_in_memory
from .groups import grouped, in_batch_order
from .randomness import generator
from .sample import TrainingSample
from .sdxl_encoding import SDXLEncoders
from .sdxl_task import diffusion_loss, noisy_rows
from .task import Prepared

TRAINED = ("router_encoder", "routers")


def routing_loss(logits: torch.Tensor, owners: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Eq. 4 without lambda, for one map: 1/N * sum over i = 1..N of |M_i - M_i^gt|^2, a mean over the pixels.

    Args:
        logits: of a row's N subjects and the background, (B, hw, N + 1); minus infinity for absent ones.
        owners: M^gt, the entry that each pixel shows, (B, hw) int64.
        absent: (B, N + 1) bool, entries a row does not have; N is counted without them.

    Returns:
        (B,).
    """
    wrong = logits.softmax(dim=-1) - torch.nn.functional.one_hot(owners, logits.shape[-1])  # (B, hw, N + 1)
    of_subjects = wrong.square().mean(dim=1)[:, :-1]  # (B, N); 0 for absent ones
    return of_subjects.sum(dim=1) / (~absent[:, :-1]).sum(dim=1)


def overlap(logits: torch.Tensor, owners: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Intersection over union of sigma(M_i) and M_i^gt, a mean over a row's subjects, (B,); arguments as above."""
    numbers = torch.arange(logits.shape[-1] - 1, device=logits.device)
    found = logits.argmax(dim=-1, keepdim=True) == numbers  # (B, hw, N)
    wanted = owners.unsqueeze(-1) == numbers
    union = (found | wanted).sum(dim=1)
    there = ~absent[:, :-1] & (union > 0)
    shares = (found & wanted).sum(dim=1) / union.clamp(min=1)
    return (shares * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)


class AnyStoryRouterTask(AnyStoryTask):
    """Stage 2."""

    name = "AnyStory router"

    def __init__(
        self,
        model: ModelPatcher,
        encoders: SDXLEncoders,
        anystory: AnyStory,
        config: AnyStoryRouterConfig,
        shown: TrainingSample | None = None,
    ) -> None:
        super().__init__(model, encoders, anystory, config, TRAINED, shown)
        self.settings = config

    def prepare(self, sample: TrainingSample, position: int) -> Prepared:
        require_subjects(sample)
        return self.prepare_subjects(sample, sample.subjects, with_masks=True)

    def losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        groups = grouped(batch, lambda row: row["latent"].shape)
        parts = [self._losses([batch[i] for i in group], [positions[i] for i in group]) for group in groups]
        return {name: in_batch_order(groups, [part[name] for part in parts]) for name in parts[0]}

    def _losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = noisy_rows(self.model, batch, positions, self.config.seed)
        seen = gather_subjects(batch, self.zero, self.device)
        routed = self._routed(seen, positions)
        call = RowCall(self.anystory.injecting.model, self._subjects(seen, positions), routed)
        diffusion = diffusion_loss(self.model, rows, self.settings, partial(with_rows, call=call))
        routing, found = self._routing(routed, gather_masks(batch, self.device))
        loss = diffusion + self.settings.routing_weight * routing
        return {"loss": loss, "diffusion": diffusion, "routing": routing, "overlap": found}

    def _routed(self, seen: Subjects, positions: Sequence[int]) -> Routed:
        encoding, injecting = self.anystory.encoding.model, self.anystory.injecting.model
        features = encoding.router_encoder(seen.clip, OPTIONS)[:, 0]  # (S + 1, d_r)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        noise = partial(self._noise, seen.absent, positions)
        return Routed(injecting.routers, features[seen.entries()], seen.absent, noise, self.settings.temperature)

    def _noise(
        self, absent: torch.Tensor, positions: Sequence[int], layer: AttentionLayer, pixels: int
    ) -> torch.Tensor:
        """Of the Gumbel-softmax, (B, pixels, N + 1); a row's own does not depend on how many subjects other rows have."""
        noise = torch.zeros(len(positions), pixels, absent.shape[1])
        for row, (position, missing) in enumerate(zip(positions, absent.cpu(), strict=True)):
            drawn = generator(self.config.seed, f"gumbel/{layer.name}", position)
            noise[row][:, ~missing] = gumbel_noise((pixels, int((~missing).sum())), drawn)
        return noise.to(absent.device)

    @torch.no_grad()
    def _subjects(self, seen: Subjects, positions: Sequence[int]) -> RowSubjects:
        """From the encoder of stage 1, which stays as it is."""
        encoding: Any = self.anystory.encoding.model
        left_out = [
            dropped(self.config.seed, "clip", position, self.config.condition_dropout) for position in positions
        ]
        without_clip = torch.tensor(left_out, device=self.device)[:, None]
        entries = seen.entries().masked_fill(without_clip, len(seen.latents))
        hidden = encoding.reference_net(seen.latents, seen.masks, OPTIONS)
        return RowSubjects(encoding.encoder(seen.clip, OPTIONS)[entries], hidden, seen.places)

    def _routing(self, routed: Routed, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The routing loss and the overlap, means over all layers, (B,) each."""
        losses, overlaps = [], []
        for name, logits in routed.logits.items():
            owners = owners_of(masks, routed.grids[name])
            maps = (logits.refined, logits.coarse)
            losses.append(torch.stack([routing_loss(each, owners, routed.absent) for each in maps]).sum(dim=0))
            overlaps.append(overlap(logits.refined.detach(), owners, routed.absent))
        return torch.stack(losses).mean(dim=0), torch.stack(overlaps).mean(dim=0)


def anystory_router(
    model: ModelPatcher,
    vae: VAE,
    clip: CLIP,
    clip_vision: ClipVisionModel,
    data: TrainingData,
    config: AnyStoryRouterConfig,
    anystory: AnyStory,
    keep: Keep | None = None,
) -> tuple[AnyStoryRouterTask, TrainingData]:
    """Stage 2 and its data.

    Args:
        anystory: what came of stage 1.
        keep: how encodings are kept; in memory, unless the data is as good as endless, where it is None.

    Raises:
        TrainingError: something does not fit; says at which input.
    """
    if config.augment_references:
        data = data.with_augmentation()
    encoders = SDXLEncoders(vae, clip, clip_vision, keep or keep_in_memory(len(data)))
    check_models(model, encoders, anystory.config)
    shown = data.load(data.batch(0, 1)[0]) if config.picture_every else None
    return AnyStoryRouterTask(model, encoders, anystory, config, shown), data
