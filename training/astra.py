"""The training of ASTRA (section 4.1): LoRA and DSM together, in a single stage, on targets with references and pose maps.

References stand where EURoPE puts them, the pose map on the canvas, and DSM gives the words what a CLIP vision model sees in the
references. The adapters that learn are the ones that EURoPE Positions and DSM hook in at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..attention_patches.dsm import KEY as DSM_KEY
from ..attention_patches.dsm import apply_dsm, item_mask, modulation
from ..attention_patches.dsm_file import dsm_metadata
from ..attention_patches.europe import apply_europe
from ..attention_patches.layout import Layout
from ..models_info.registry import DSM_ADAPTERS
from .adapters import LORAS, continue_lora
from .astra_adapter import dsm_to_train
from .astra_config import ASTRAConfig
from .augment import dropped
from .data import TrainingData
from .encoding import Keep, keep_in_memory
from .flux_encoding import FluxEncoders, subject_names
from .flux_setup import drawn_data, flux_encoders, shown_sample
from .flux_task import Absent, FluxTask, require_smaller_references
from .model import TrainableModel
from .sample import TrainingSample
from .task import Prepared, WeightFile, Weights


class ASTRA(FluxTask):
    """Trains a LoRA and a DSM.

    Attributes:
        dsm: the adapter under training, or None.
    """

    name = "ASTRA"
    config: ASTRAConfig

    def __init__(
        self,
        model: TrainableModel,
        encoders: FluxEncoders,
        config: ASTRAConfig,
        dsm: ModelPatcher | None,
        shown: TrainingSample | None = None,
    ) -> None:
        self.dsm = dsm
        super().__init__(model, encoders, config, shown)

    def mechanism(self, model: ModelPatcher) -> ModelPatcher:
        return model if self.dsm is None else apply_dsm(model, self.dsm)

    def place(self, model: ModelPatcher, layout: Layout) -> ModelPatcher:
        return apply_europe(model, layout, self.config.mode)

    def absent(self, position: int) -> Absent:
        without = dropped(self.config.seed, "features", position, self.config.dsm_dropout)
        return replace(super().absent(position), features=without)

    def encode(self, sample: TrainingSample, absent: Absent) -> Prepared:
        prepared = require_smaller_references(super().encode(sample, absent))
        if self.dsm is None or not sample.subjects:
            return prepared
        layers, most = self.dsm.model.config.clip_layers, self.dsm.model.config.subjects
        if len(sample.subjects) > most:
            raise ValueError(f"it has {len(sample.subjects)} subjects, this DSM tells {most} apart")
        seen = [self.encoders.vision(subject, layers) for subject in sample.subjects]
        names = subject_names(sample)
        return {**prepared, "names": names, "vision": torch.cat(seen), "modulated": not absent.features}

    def structure(self, sample: Prepared) -> Any:
        return (super().structure(sample), len(sample.get("vision", ())))

    def modulate(self, samples: Sequence[Prepared], text: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Eq. 7 and 8; a sample without features goes through DSM as well, and what it says there is left out."""
        if self.dsm is None or "vision" not in samples[0]:
            return super().modulate(samples, text)
        hidden = torch.stack([sample["vision"] for sample in samples]).to(text.device)  # (B, S, N, P, d_clip)
        allowed = self._allowed(samples, text.shape[1], hidden) if self.config.per_item else None
        with torch.autocast(text.device.type, enabled=False):  # float32, as at inference
            made = modulation(self.dsm.model, text, hidden, 1.0, allowed)
        kept = torch.tensor([sample["modulated"] for sample in samples], device=text.device)[:, None, None]
        text = torch.where(kept, made.text, text)
        trunk = made.trunk * kept
        return text, [{DSM_KEY: trunk[row : row + 1]} for row in range(len(samples))]

    def _allowed(self, samples: Sequence[Prepared], length: int, hidden: torch.Tensor) -> torch.Tensor:
        features = hidden.shape[2] * hidden.shape[3]
        masks = [
            item_mask([sample["spans"].get(name, ()) for name in sample["names"]], length, features)
            for sample in samples
        ]
        return torch.stack(masks).to(hidden.device)

    def modules(self) -> dict[str, torch.nn.Module]:
        return {**super().modules(), **({} if self.dsm is None else {"dsm": self.dsm.model})}

    def weights(self) -> Weights:
        files = [WeightFile(LORAS, "_lora", self.model.lora_state(), {})]
        if self.dsm is not None:
            network = self.dsm.model
            state = {name: value.detach() for name, value in network.state_dict().items()}
            files.append(WeightFile(DSM_ADAPTERS, "_dsm", state, dsm_metadata(network.config)))
        return Weights(tuple(files))


def astra(
    model: ModelPatcher,
    vae: VAE,
    clip: CLIP,
    clip_vision: ClipVisionModel | None,
    data: TrainingData,
    config: ASTRAConfig,
    keep: Keep | None = None,
) -> tuple[ASTRA, TrainingData]:
    """The training of ASTRA and the data as it draws them.

    Args:
        keep: how encodings are kept; in memory, unless the data is as good as endless, where it is None.

    Raises:
        TrainingError: something does not fit; says at which input.
    """
    encoders = flux_encoders(model, vae, clip, clip_vision, keep or keep_in_memory(len(data)))
    dsm = dsm_to_train(model, clip_vision, config) if config.dsm else None
    trainable = TrainableModel(model, "lora", config.lora_rank, None, config.gradient_checkpointing, config.seed)
    if config.lora:
        continue_lora(trainable, config.lora, config.lora_rank)
    return ASTRA(trainable, encoders, config, dsm, shown_sample(data, config)), drawn_data(data, config)
