"""What AnyStory's two trainings share: the network under training beside a frozen SDXL, its file and its sample pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.latent_formats
import torch
from comfy.clip_model import CLIPVisionModelProjection
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher

from ..attention_patches.anystory import apply_anystory
from ..attention_patches.anystory_call import Settings
from ..attention_patches.anystory_features import Seen, encode_features
from ..attention_patches.anystory_file import AnyStory, AnyStoryError, anystory_metadata, load_anystory
from ..attention_patches.anystory_network import AnyStoryConfig, base_layers
from ..attention_patches.reference_net import ReferenceBlock
from ..attention_patches.unet_layers import attention_layers
from ..models_info.registry import ANYSTORY_NETWORKS
from .anystory_subjects import target_mask
from .call import ATTENTION, training_attention
from .checkpointing import recomputed
from .config import TrainingConfig
from .errors import TrainingError
from .model import TrainableModel, own_copy, weights_identity
from .sample import TrainingSample, TrainingSubject
from .sdxl_encoding import SDXLEncoders
from .sdxl_picture import sample_picture
from .sdxl_task import check_encoders, prepare_target
from .task import Prepared, WeightFile, Weights
from .unet_blocks import train_unet_blocks

OPTIONS = {ATTENTION: training_attention}  # of the networks that look at the subjects


class TrainedReferenceBlock(ReferenceBlock):
    """A block of the ReferenceNet under gradient checkpointing."""

    def forward(self, x: torch.Tensor, context: None, transformer_options: dict[str, Any]) -> torch.Tensor:
        def run(options: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
            return ReferenceBlock.forward(self, x, context, options)

        return recomputed(run, transformer_options, x)


def trained_copy(anystory: AnyStory, names: Sequence[str], checkpointing: bool) -> AnyStory:
    """A network of its own whose modules `names` are float32 and ask for gradients, on the device it is trained on."""
    with torch.inference_mode(False), torch.no_grad():
        halves = [own_copy(half) for half in (anystory.encoding, anystory.injecting)]
        for half in halves:
            for name, module in half.model.named_children():
                for parameter in module.parameters() if name in names else ():
                    parameter.data = parameter.data.to(torch.float32, copy=True)
                    parameter.requires_grad_(True)
            half.offload_device = half.load_device  # it stays where its optimizer expects it
            half.model.to(half.load_device)
        reference_net = halves[0].model.reference_net
        for parameter in reference_net.unread():
            parameter.requires_grad_(False)
        if checkpointing and "reference_net" in names:
            train_unet_blocks(reference_net, True)
            for block in reference_net.modules():
                if type(block) is ReferenceBlock:
                    block.__class__ = TrainedReferenceBlock
    return AnyStory(anystory.config, *halves)


class AnyStoryTask:
    """The common half of both trainings.

    Args:
        model: SDXL, the one that `anystory` is for (see `check_models`); stays as it is.
        encoders: with a CLIP vision model.
        anystory: where training starts; stays as it is.
        config: settings.
        trained: names of the network's modules that are trained.
        shown: what sample pictures show.
    """

    name = ""

    def __init__(
        self,
        model: ModelPatcher,
        encoders: SDXLEncoders,
        anystory: AnyStory,
        config: TrainingConfig,
        trained: Sequence[str],
        shown: TrainingSample | None = None,
    ) -> None:
        self.encoders, self.config, self.shown = encoders, config, shown
        self.model = TrainableModel(model, "frozen", gradient_checkpointing=config.gradient_checkpointing)
        self.anystory = trained_copy(anystory, trained, config.gradient_checkpointing)
        self.trained = tuple(trained)
        self.start = " ".join(weights_identity(half.model) for half in (anystory.encoding, anystory.injecting))
        self.zero = encoders.zero()

    @property
    def sizes(self) -> AnyStoryConfig:
        """Of the network."""
        return self.anystory.config

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.model.patcher.load_device

    def identity(self) -> dict[str, str]:
        """What a resumed run must find unchanged."""
        return {
            "model": self.model.identity(),
            **self.encoders.identity(),
            "anystory": self.start,
            "sizes": json.dumps(dataclasses.asdict(self.sizes), sort_keys=True),
        }

    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules, by their names in the file."""
        halves = (self.anystory.encoding.model, self.anystory.injecting.model)
        children = {name: module for half in halves for name, module in half.named_children()}
        return {name: children[name] for name in self.trained}

    def prepare_subjects(
        self, sample: TrainingSample, subjects: Sequence[TrainingSubject], with_masks: bool
    ) -> Prepared:
        """The sample as tensors on the CPU; see `prepare_target`. N subjects give "clip" (N, P, d_clip), "reference" (N, C, h, w),
        "reference_mask" (N, 1, h, w) and, where they are wanted, "masks" (N, H, W) at the size of the target's latent."""
        prepared = prepare_target(self.model, self.encoders, sample, sample.caption)
        seen = [self.encoders.subject(subject, self.sizes.reference_size) for subject in subjects]
        prepared["clip"] = torch.cat([each.clip for each in seen])
        latents = torch.cat([each.latent for each in seen])
        prepared["reference"] = comfy.latent_formats.SDXL().process_in(latents.float())
        prepared["reference_mask"] = torch.cat([each.mask for each in seen])
        if with_masks:
            masks = torch.stack([target_mask(sample, subject) for subject in subjects])
            prepared["masks"] = torch.nn.functional.adaptive_avg_pool2d(masks, prepared["latent"].shape[-2:])
        return prepared

    def weights(self) -> Weights:
        """The whole network as one file, float32."""
        halves = (self.anystory.encoding.model, self.anystory.injecting.model)
        tensors = {
            name: value.detach().to("cpu", torch.float32, copy=True).contiguous()
            for half in halves
            for name, value in half.state_dict().items()
        }
        return Weights((WeightFile(ANYSTORY_NETWORKS, "", tensors, anystory_metadata(self.sizes)),))

    def picture(self) -> torch.Tensor | None:
        """The shown sample's caption drawn with its subjects by the present values."""
        sample = self.shown
        if sample is None or not sample.subjects:
            return None
        seen = [self.encoders.subject(subject, self.sizes.reference_size) for subject in sample.subjects]
        names = [f"subject {number}" for number, _ in enumerate(seen, start=1)]
        looked = [Seen(each.clip, each.latent, each.mask) for each in seen]
        features = encode_features(self.anystory, names, looked, self.zero)
        patched, _ = apply_anystory(self.model.patcher, features, Settings(1.0, 0.0))
        return sample_picture(patched, self.encoders, sample)


def check_models(model: ModelPatcher, encoders: SDXLEncoders, sizes: AnyStoryConfig) -> None:
    """Raise `TrainingError` where the models are not those that the network is for."""
    check_encoders(model, encoders)
    vision = encoders.clip_vision
    assert vision is not None
    check_vision(vision)
    width, depth = vision.config["hidden_size"], vision.config["num_hidden_layers"]
    if (width, depth) != (sizes.clip_width, sizes.clip_depth):
        raise TrainingError(
            f"it has {depth} layers of width {width}, the AnyStory network is for {sizes.clip_depth} of"
            f" {sizes.clip_width}; connect that CLIP vision model",
            "clip_vision",
        )
    if attention_layers(model.model.diffusion_model) != base_layers(sizes):
        raise TrainingError(
            "its layers are not those the AnyStory network was made for; connect its base model", "model"
        )


def check_vision(vision: ClipVisionModel) -> None:
    """Raise `TrainingError` where it is no CLIP."""
    if not isinstance(vision.model, CLIPVisionModelProjection):
        raise TrainingError(
            f"it is a {vision.model_type} model; connect a CLIP vision model, such as ViT-H/14", "clip_vision"
        )


def load_checkpoint(path: Path) -> AnyStory:
    """The network in a file, for a command.

    Raises:
        TrainingError: the file is not there, or will not do.
    """
    if not path.is_file():
        raise TrainingError(f"anystory: there is no file {path}; give the path of an AnyStory checkpoint", "anystory")
    try:
        return load_anystory(path)
    except AnyStoryError as error:
        raise TrainingError(f"anystory: {path}: {error}", "anystory") from None
