"""The training of One-for-All (sections 3.2 to 3.4 and 4.1): LoRA and DAM's temperature generators, on single subjects alone.

A sample has one reference, which stands in the slot of its category, and the words that describe it stand with it; categories
come in fixed proportions. What is learned so is put together at inference. The adapters that learn are the ones that
Condition Positions and DAM hook in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..attention_patches.adapter_file import AdapterError
from ..attention_patches.condition_positions import CCPA, EQUATION_3, apply_condition_positions
from ..attention_patches.condition_slots import CATEGORY_SLOTS, assign_slots
from ..attention_patches.dam import apply_dam
from ..attention_patches.dam_file import dam_metadata, load_dam, make_dam
from ..attention_patches.dam_generator import FLUX_DAM, T_MIN, DAMConfig, fresh_dam
from ..attention_patches.flux_call import flux_network
from ..attention_patches.layout import Layout
from ..models_info.registry import DAM_ADAPTERS
from .adapters import LORAS, continue_lora, existing_file, resident
from .config import at_least
from .data import ONE_FOR_ALL, TrainingData
from .encoding import Keep, keep_in_memory
from .errors import TrainingError
from .flux_config import FluxConfig
from .flux_encoding import FluxEncoders
from .flux_setup import drawn_data, flux_encoders, shown_sample
from .flux_task import FluxTask
from .model import TrainableModel
from .sample import TrainingSample
from .task import Prepared, WeightFile, Weights


@dataclass(frozen=True)
class OneForAllConfig(FluxConfig):
    """The paper's numbers; where it prints none (sizes of DAM), a choice of ours.

    Attributes:
        lora_rank: of the LoRA.
        categories: how many of so many samples show each category.
        scheme, item_anchor: where references and the words that describe them stand, as on Condition Positions. All but the
            first of each are rows of the paper's Table 4, or another reading of its Eq. 3.
        dam: whether there are temperature generators; without, it is a row of the paper's Table 4.
        dam_width: of the hidden layers of fresh generators.
        t_min: the smallest temperature of fresh generators.
        pose_maps: whether the model is given pose maps too, which the paper has none of.
        lora, dam_name: files in models/loras and models/ensemble_dam to begin with; empty for fresh ones.
    """

    steps: int = 30_000
    batch_size: int = 16
    learning_rate: float = 5e-6
    lora_rank: int = 512
    categories: dict[str, int] = field(default_factory=lambda: dict(ONE_FOR_ALL))
    scheme: Literal["condition ids + CCPA", "condition ids", "index embeddings", "virtual time"] = CCPA
    item_anchor: Literal["equation 3", "slot centre"] = EQUATION_3
    dam: bool = True
    dam_width: int = FLUX_DAM.width
    t_min: float = T_MIN
    pose_maps: bool = False
    lora: str = ""
    dam_name: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_rank", "dam_width"):
            at_least(self, name, 1)
        if not 0 < self.t_min < 1:
            raise TrainingError(f"t_min is {self.t_min}; it must lie between 0 and 1")
        if not any(count > 0 for count in self.categories.values()) or min(self.categories.values()) < 0:
            raise TrainingError('categories names none to learn from; write it like {"face": 2, "bag": 1}')
        for category in self.categories:
            if category not in CATEGORY_SLOTS:
                raise TrainingError(
                    f"categories holds '{category}', which has no place; choose among: {', '.join(CATEGORY_SLOTS)}"
                )


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
