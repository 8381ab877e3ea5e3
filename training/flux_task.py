"""What every training of a FLUX has in common: how samples become conditionings, the loss, and the sample picture.

Flow matching on x = (1 - s) x0 + s n, with noise and noise level drawn for every sample from the seed and its position. A
sample's conditioning is the one that the inference nodes would make of it (`flux_encoding`); what the mechanism does to the
model and to the conditioning is done by the mechanism's own hooks, applied to the model under training. Of a batch, samples of
equal structure go through the model together, however long their texts (`text_padding`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ..attention_patches.europe import larger_than
from ..attention_patches.item_spans import SPANS_KEY
from ..attention_patches.layout import Layout, Reference, token_grid
from ..attention_patches.reference_latents import with_references
from . import objectives
from .augment import dropped
from .flux_config import NONE, PICTURE_SIZE, FluxConfig
from .flux_encoding import FluxEncoders, Prompt, as_pose, as_reference, draw_pose_map, subject_names
from .groups import grouped, in_batch_order
from .model import TrainableModel
from .randomness import generator
from .sample import TrainingSample
from .task import Prepared, Weights
from .text_padding import ignore_padding, pad_texts


@dataclass(frozen=True)
class Absent:
    """Which conditions a sample learns without."""

    caption: bool = False
    references: bool = False
    pose: bool = False
    features: bool = False


class FluxTask(ABC):
    """A training of a FLUX; subclasses are the mechanisms.

    Attributes:
        shows_references, shows_pose: which conditions the model is given as tokens.
        shown: the sample that sample pictures are made of, or None for no pictures.
    """

    name: str
    shows_references = True
    shows_pose = True

    def __init__(
        self, model: TrainableModel, encoders: FluxEncoders, config: FluxConfig, shown: TrainingSample | None = None
    ) -> None:
        self.model, self.encoders, self.config, self.shown = model, encoders, config, shown
        self.patcher = self.mechanism(model.patcher)
        self._shown: Prepared | None = None

    # What a mechanism does.

    def mechanism(self, model: ModelPatcher) -> ModelPatcher:
        """`model` with what the mechanism does to any FLUX."""
        return model

    def place(self, model: ModelPatcher, layout: Layout) -> ModelPatcher:
        """`model` with what the mechanism does to the references of one layout."""
        return model

    def modulate(self, samples: Sequence[Prepared], text: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Texts (B, L, d) as the mechanism changes them, and options for every sample's conditioning."""
        return text, [{} for _ in samples]

    def absent(self, position: int) -> Absent:
        """Which conditions the sample at a position learns without.

        References and pose are tokens of the model's. A batch has or lacks them as one, so that it goes through the model together.
        """
        config, batch = self.config, position // self.config.batch_size
        return Absent(
            caption=dropped(config.seed, "caption", position, config.condition_dropout),
            references=dropped(config.seed, "references", batch, config.reference_dropout),
            pose=dropped(config.seed, "pose", batch, config.pose_dropout),
        )

    # The task.

    def identity(self) -> dict[str, str]:
        return {"model": self.model.identity(), **self.encoders.identity()}

    def modules(self) -> dict[str, torch.nn.Module]:
        return self.model.modules()

    @abstractmethod
    def weights(self) -> Weights:
        """The trained modules as files."""

    def prepare(self, sample: TrainingSample, position: int) -> Prepared:
        return self.encode(sample, self.absent(position))

    def encode(self, sample: TrainingSample, absent: Absent) -> Prepared:
        """A sample as tensors on the CPU."""
        names = subject_names(sample)
        descriptions = {name: subject.description for name, subject in zip(names, sample.subjects, strict=True)}
        prompt = self.encoders.prompt("", {}) if absent.caption else self.encoders.prompt(sample.caption, descriptions)
        latents: list[torch.Tensor] = []
        references: list[Reference] = []
        if self.shows_references and not absent.references:
            for name, subject in zip(names, sample.subjects, strict=True):
                latents.append(self.encoders.reference(subject))
                references.append(as_reference(name, subject, latents[-1]))
        pose = draw_pose_map(sample, self.config.pose_line_width) if self.shows_pose and not absent.pose else None
        if pose is not None:
            latents.append(self.encoders.pose_map(pose))
            references.append(as_pose(latents[-1]))
        return _prepared(self.encoders.target(sample.target), prompt, latents, references)

    def losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        groups = grouped(batch, self.structure)
        parts = [self._loss([batch[i] for i in group], [positions[i] for i in group]) for group in groups]
        return {"loss": in_batch_order(groups, parts)}

    def structure(self, sample: Prepared) -> Any:
        """What has to be equal for samples to go through the model together."""
        return (sample["latent"].shape, sample["layout"].grids)

    def _loss(self, samples: Sequence[Prepared], positions: Sequence[int]) -> torch.Tensor:
        device = self.model.patcher.load_device
        x0 = self.model.process_latent(torch.cat([sample["latent"] for sample in samples]).to(device))
        draws = [self._noise(x0.shape[1:], position) for position in positions]
        noise, sigma = (torch.stack(parts).to(device) for parts in zip(*draws, strict=True))
        conditionings = self.conditionings(samples, self.config.guidance)
        denoised = self.model.predict(self.model.noised(x0, noise, sigma), sigma, conditionings, self.patched(samples))
        return self.model.loss(denoised, x0, sigma)

    def _noise(self, shape: torch.Size, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise (C, h, w) and its level () for a position."""
        config = self.config
        noise = torch.randn(shape, generator=generator(config.seed, "noise", position))
        random = generator(config.seed, "sigma", position)
        if config.timestep_shift == NONE:
            return noise, objectives.flow_sigmas(random, 1, 0.0)[0]
        height, width = token_grid(noise)
        tokens = height * width if config.timestep_shift == PICTURE_SIZE else None
        return noise, self.model.sigmas(random, 1, tokens)[0]

    def patched(self, samples: Sequence[Prepared]) -> ModelPatcher:
        """The model as inference would have it for these samples."""
        patched = ignore_padding(self.patcher, [sample["text"].shape[1] for sample in samples])
        for layout in dict.fromkeys(sample["layout"] for sample in samples):
            if layout.references:
                patched = self.place(patched, layout)
        return patched

    def conditionings(self, samples: Sequence[Prepared], guidance: float) -> list[Any]:
        """A host CONDITIONING for each sample."""
        device = self.model.patcher.load_device
        text, options = self.modulate(samples, pad_texts([sample["text"] for sample in samples]).to(device))
        conditionings = []
        for row, (sample, added) in enumerate(zip(samples, options, strict=True)):
            carried = {
                "pooled_output": sample["pooled"],
                "guidance": guidance,
                SPANS_KEY: sample["spans"],
                **added,
            }
            encoded = [[text[row : row + 1], carried]]
            conditionings.append(with_references(encoded, sample["references"], sample["layout"].references)[0])
        return conditionings

    def picture(self) -> torch.Tensor | None:
        """The shown sample's target, and beside it what the model makes of its conditions."""
        if self.shown is None:
            return None
        with torch.no_grad():
            if self._shown is None:
                self._shown = self.encode(self.shown, Absent())
            made = self.encoders.decode(self.draw(self._shown))
        return torch.cat((self.shown.target, made), dim=1)

    def _of_nothing(self, prepared: Prepared) -> Prepared:
        """A sample's picture without words, references and pose."""
        return _prepared(prepared["latent"], self.encoders.prompt("", {}), [], [])

    def draw(self, prepared: Prepared) -> torch.Tensor:
        """The latent (1, C, h, w) that the host's sampler makes of a sample's conditions."""
        config = self.config
        guider = comfy.samplers.CFGGuider(self.patched([prepared]))
        asked = {"positive": prepared}
        if config.picture_cfg != 1:
            asked["negative"] = self._of_nothing(prepared)
        guider.inner_set_conds(
            {name: self.conditionings([each], config.picture_guidance)[0] for name, each in asked.items()}
        )
        guider.set_cfg(config.picture_cfg)
        noise = torch.randn(prepared["latent"].shape, generator=generator(config.seed, "picture", 0))
        sigmas = comfy.samplers.calculate_sigmas(self.model.sampling, "simple", config.picture_steps)
        sampler: Any = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=config.seed)


def _prepared(
    target: torch.Tensor, prompt: Prompt, latents: list[torch.Tensor], references: Sequence[Reference]
) -> Prepared:
    return {
        "latent": target,
        "text": prompt.text,
        "pooled": prompt.pooled,
        "spans": prompt.spans,
        "references": latents,
        "layout": Layout(tuple(references)),
    }


def require_smaller_references(prepared: Prepared) -> Prepared:
    """The sample itself; `ValueError` where a reference is larger than the target, for which EURoPE has no place."""
    if larger_than(token_grid(prepared["latent"]), prepared["layout"]) is not None:
        raise ValueError("a reference of it is larger than its target; lower the data's reference_resolution")
    return prepared
