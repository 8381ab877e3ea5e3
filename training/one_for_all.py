"""The training of One-for-All (sections 3.2 to 3.4 and 4.1): LoRA and DAM's temperature generators, on single subjects alone.

A sample has one reference, which stands in the slot of its category, and the words that describe it stand with it; categories
come in fixed proportions. What is learned so is put together at inference. The adapters that learn are the ones that
Condition Positions and DAM hook in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..attention_patches.adapter_file import AdapterError
from ..attention_patches.condition_positions import apply_condition_positions
from ..attention_patches.condition_slots import assign_slots
from ..attention_patches.dam import apply_dam
from ..attention_patches.dam_file import dam_metadata, load_dam, make_dam
from ..attention_patches.dam_generator import DAMConfig, fresh_dam
from ..attention_patches.flux_call import flux_network
from ..attention_patches.layout import Layout
from ..models_info.registry import DAM_ADAPTERS
from .adapters import LORAS, continue_lora, existing_file, resident
from .data import TrainingData
from .encoding import Keep, keep_in_memory
from .errors import TrainingError
from .flux_encoding import FluxEncoders
from .flux_setup import drawn_data, flux_encoders, shown_sample
from .flux_task import FluxTask
from .model import TrainableModel
from .one_for_all_config import OneForAllConfig
from .sample import TrainingSample
from .task import Prepared, WeightFile, Weights


class OneForAll(FluxTask):
    """Trains a LoRA and temperature generators.

    Attributes:
        dam: the generators under training, or None.
    """

    name = "One-for-All"
    config: OneForAllConfig

    def __init__(
        self,
        model: TrainableModel,
        encoders: FluxEncoders,
        config: OneForAllConfig,
        dam: ModelPatcher | None,
        shown: TrainingSample | None = None,
    ) -> None:
        self.dam = dam
        self.shows_pose = config.pose_maps
        super().__init__(model, encoders, config, shown)

    def mechanism(self, model: ModelPatcher) -> ModelPatcher:
        return model if self.dam is None else apply_dam(model, self.dam, 1.0)

    def place(self, model: ModelPatcher, layout: Layout) -> ModelPatcher:
        config, slots = self.config, assign_slots(layout.references)
        return apply_condition_positions(model, layout, slots, config.scheme, config.item_anchor)

    def structure(self, sample: Prepared) -> Any:
        slots = assign_slots(sample["layout"].references)
        return (super().structure(sample), tuple(map(len, slots)))  # a dress is given twice

    def modules(self) -> dict[str, torch.nn.Module]:
        return {**super().modules(), **({} if self.dam is None else {"dam": self.dam.model})}

    def weights(self) -> Weights:
        files = [WeightFile(LORAS, "_lora", self.model.lora_state(), {})]
        if self.dam is not None:
            network = self.dam.model
            state = {name: value.detach() for name, value in network.state_dict().items()}
            files.append(WeightFile(DAM_ADAPTERS, "_dam", state, dam_metadata(network.config)))
        return Weights(tuple(files))


def one_for_all(
    model: ModelPatcher, vae: VAE, clip: CLIP, data: TrainingData, config: OneForAllConfig, keep: Keep | None = None
) -> tuple[OneForAll, TrainingData]:
    """The training of One-for-All and the data as it draws them: single subjects, their categories in proportion.

    Args:
        keep: how encodings are kept; in memory, unless the data is as good as endless, where it is None.

    Raises:
        TrainingError: something does not fit; says at which input.
    """
    encoders = flux_encoders(model, vae, clip, None, keep or keep_in_memory(len(data)))
    dam = _generators(model, config) if config.dam else None
    trainable = TrainableModel(model, "lora", config.lora_rank, None, config.gradient_checkpointing, config.seed)
    if config.lora:
        continue_lora(trainable, config.lora, config.lora_rank)
    single = data.balanced(config.categories)
    return OneForAll(trainable, encoders, config, dam, shown_sample(single, config)), drawn_data(single, config)


def _generators(model: ModelPatcher, config: OneForAllConfig) -> ModelPatcher:
    """The DAM to train: a fresh one, or the one that the settings name."""
    network = flux_network(model)
    fresh = DAMConfig(
        model_width=network.hidden_size,
        width=config.dam_width,
        double_blocks=len(network.double_blocks),
        single_blocks=len(network.single_blocks),
        t_min=config.t_min,
    )
    if not config.dam_name:
        return resident(make_dam(fresh_dam(fresh, config.seed), fresh))
    try:
        dam = load_dam(existing_file("dam_name", DAM_ADAPTERS, config.dam_name))
    except AdapterError as error:
        raise TrainingError(f"dam_name is '{config.dam_name}': {error}") from None
    its: DAMConfig = dam.model.config
    if replace(fresh, width=its.width, t_min=its.t_min) != its:
        raise TrainingError(f"dam_name is '{config.dam_name}', which was made for another model; connect that one")
    return resident(dam)
