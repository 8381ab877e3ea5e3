"""What all trainings on an SDXL-class U-Net share: a sample as tensors, noise on it, and the diffusion loss.

Prompts of unequal length go through the model together: the shorter ones are filled up with zeros that no pixel may look
at, so that what comes out is, up to rounding, what each prompt gives on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..attention_patches.anystory_call import host_attention
from ..attention_patches.attention_chain import Attend, add_steps
from ..attention_patches.unet_layers import attention_layers
from .errors import TrainingError
from .model import TrainableModel
from .randomness import generator
from .sample import TrainingSample
from .sdxl_config import SDXLConfig
from .sdxl_encoding import SDXLEncoders
from .task import Prepared
from .text_padding import pad_texts, padding_mask

KEY = "ensemble_unet_text_length"
FIRST = 0  # rank of a step that stands for the plain attention


def prepare_target(model: TrainableModel, encoders: SDXLEncoders, sample: TrainingSample, caption: str) -> Prepared:
    """ "latent" (C, h, w) in the model's own scale, "text" (L, d_txt), "pooled" (d_pooled,), "size" (2,): height and width."""
    prompt = encoders.prompt(caption)
    return {
        "latent": model.process_latent(encoders.target(sample.target))[0],
        "text": prompt.text[0],
        "pooled": prompt.pooled[0],
        "size": torch.tensor(sample.target.shape[:2]),
    }


@dataclass(frozen=True)
class NoisyRows:
    """Samples of one size with the noise of their positions.

    Attributes:
        x0: clean latents, (B, C, h, w).
        x: noisy ones.
        sigma: (B,).
        conditionings: a host CONDITIONING for each.
        lengths: true lengths of the texts.
    """

    x0: torch.Tensor
    x: torch.Tensor
    sigma: torch.Tensor
    conditionings: list[Any]
    lengths: list[int]


def noisy_rows(model: TrainableModel, batch: Sequence[Prepared], positions: Sequence[int], seed: int) -> NoisyRows:
    """The samples with the noise and the noise level that the seed gives each position."""
    x0 = torch.stack([row["latent"] for row in batch])
    noise = torch.stack([torch.randn(x0.shape[1:], generator=generator(seed, "noise", place)) for place in positions])
    sigma = torch.cat([model.sigmas(generator(seed, "sigma", place), 1) for place in positions])
    device = model.patcher.load_device
    x0, noise, sigma = x0.to(device), noise.to(device), sigma.to(device)
    texts = pad_texts([row["text"][None] for row in batch]).to(device)
    conditionings = [[[texts[number, None], _options(row)]] for number, row in enumerate(batch)]
    lengths = [len(row["text"]) for row in batch]
    return NoisyRows(x0, model.noised(x0, noise, sigma), sigma, conditionings, lengths)


def _options(row: Prepared) -> dict[str, Any]:
    """SDXL's size conditions: the picture is as large as it was and uncut, as where inference says nothing else."""
    height, width = row["size"].tolist()
    return {
        "pooled_output": row["pooled"][None],
        "width": width,
        "height": height,
        "crop_w": 0,
        "crop_h": 0,
        "target_width": width,
        "target_height": height,
    }


def diffusion_loss(
    model: TrainableModel,
    rows: NoisyRows,
    config: SDXLConfig,
    patch: Callable[[ModelPatcher], ModelPatcher] = lambda patcher: patcher,
) -> torch.Tensor:
    """The model's own loss (Eq. 1 of AnyStory for one that predicts noise), or the one that `config` asks for, (B,).

    Args:
        patch: what is applied to the model.
    """
    patched = patch(ignore_padding(model.patcher, rows.lengths))
    denoised = model.predict(rows.x, rows.sigma, rows.conditionings, patched)
    return model.loss(denoised, rows.x0, rows.sigma, config.min_snr_gamma)


def ignore_padding(model: ModelPatcher, lengths: Sequence[int]) -> ModelPatcher:
    """A clone of `model` (a U-Net) for one call whose texts have these lengths; `model` itself where all are equal."""
    if len(set(lengths)) == 1:
        return model
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, partial(_mask_call, tuple(lengths)))
    return patched


def _mask_call(
    lengths: Sequence[int],
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor,
    y: torch.Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    mask = padding_mask(lengths, context.shape[1], 0, context)
    assert mask is not None  # the lengths differ
    step = partial(_attend, mask)
    blocks = {layer.block: step for layer in attention_layers(executor.class_obj) if layer.context_width is not None}
    options = add_steps(transformer_options or {}, "attn2", blocks, FIRST)
    return executor(x, timesteps, context, y, control, options, **kwargs)


def _attend(
    mask: torch.Tensor,
    attend: Attend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    extra: dict[str, Any],
) -> torch.Tensor:
    return host_attention(extra)(q, k, v, mask.to(q).expand(-1, 1, q.shape[1], -1))


def check_encoders(model: ModelPatcher, encoders: SDXLEncoders) -> None:
    """Raise `TrainingError` where the model is no SDXL, or VAE or text encoder are not its own."""
    unet: Any = model.model.diffusion_model
    if not isinstance(unet, UNetModel) or unet.num_classes != "sequential":
        raise TrainingError("it is no SDXL; connect an SDXL model", "model")
    if encoders.vae.latent_channels != unet.in_channels:
        raise TrainingError(
            f"it makes latents of {encoders.vae.latent_channels} channels, the model reads {unet.in_channels};"
            " connect SDXL's VAE",
            "vae",
        )
    wanted = next(layer.context_width for layer in attention_layers(unet))
    found = encoders.prompt("").text.shape[-1]
    if found != wanted:
        raise TrainingError(
            f"its text is {found} wide, the model reads {wanted}; connect the model's own text encoder", "clip"
        )
