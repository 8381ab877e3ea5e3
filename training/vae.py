"""Trains an autoencoder of TAESD's architecture, which the stock VAE loader reads: the latent space of the pack's tiny models.

Loss, a sample: mean |x̂ - x| + 0.25 · mean |∇x̂ - ∇x| + 0.01 · (mean z² - 1)², where the decoder sees z with a little
Gaussian noise. The noise makes neighbouring latents decode alike, which is what a diffusion model with
errors of its own needs; the last term gives the latents the unit scale that the diffusion model's noise has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.taesd.taesd
import comfy.utils
import torch

from .config import Schedule, TrainingConfig, at_least
from .errors import TrainingError
from .randomness import generator
from .sample import TrainingSample
from .task import Prepared, WeightFile, Weights

MEAN_SCALE = 3.0  # of a colour in [0, 1] to a latent of about unit variance
QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # of 8 x 8 pixels: down, right
LATENT_FORMATS = {16: comfy.latent_formats.Flux, 4: comfy.latent_formats.SDXL}


@dataclass(frozen=True)
class VAEConfig(TrainingConfig):
    steps: int = 4000
    batch_size: int = 16
    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    warmup_steps: int = 100
    ema_decay: float = 0.999
    latent_channels: int = 16  # 16 as FLUX's, 4 as SDXL's
    crop: int = 64  # pixels of a side
    latent_noise: float = 0.1
    decoder_only: bool = False  # the encoder, and with it the latent space that other models know, stays as it is

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "latent_noise", 0)
        if self.latent_channels not in LATENT_FORMATS:
            raise TrainingError(f"latent_channels is {self.latent_channels}; choose 16 (FLUX) or 4 (SDXL)")
        if self.crop < 8 or self.crop % 8:
            raise TrainingError(f"crop is {self.crop}; choose a multiple of 8")


def fresh_taesd(latent_channels: int, seed: int) -> comfy.taesd.taesd.TAESD:
    """First weights with which a picture already comes through, blurred.

    Residual blocks begin as the identity. Beside random features (He et al. 2015) three channels carry the colours: halved three
    times by means over 2 x 2 pixels, and on the way back doubled three times by linear interpolation. The first three latent
    channels are the mean colours of 8 x 8 pixels, the next nine what their quarters differ by; others are random.
    """
    network = comfy.taesd.taesd.TAESD(latent_channels=latent_channels)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 4:
                gain = 0.0 if name.endswith("conv.4.weight") else math.sqrt(2)
                value.copy_(torch.randn(value.shape, generator=rng) * gain / math.sqrt(math.prod(value.shape[1:])))
            elif value.ndim == 1:
                value.zero_()
        _carry_colours(network.taesd_encoder, network.taesd_decoder, latent_channels)
        format_ = LATENT_FORMATS[latent_channels]()
        # The host divides by these what the model multiplies by: the encoder's own output is what the diffusion model sees.
        network.vae_scale.fill_(format_.scale_factor)
        network.vae_shift.fill_(getattr(format_, "shift_factor", 0.0) or 0.0)
    return network


def _carry_colours(encoder: torch.nn.Sequential, decoder: torch.nn.Sequential, latent_channels: int) -> None:
    """Let channels 0 to 2 of every layer be the colours, and of the encoder's last layers 3 to 14 those of the quarters."""
    colours = range(3)
    enters, *halvings, leaves = [layer for layer in encoder if isinstance(layer, torch.nn.Conv2d)]
    for conv in (enters, *halvings):
        conv.weight[:3] = 0
    quarters = halvings[-1].weight
    quarters[3:15] = 0
    for colour in colours:
        enters.weight[colour, colour, 1, 1] = 1
        for conv in halvings:
            conv.weight[colour, colour, 1:, 1:] = 1 / 4
        for quarter, (y, x) in enumerate(QUARTERS):
            quarters[3 + 4 * colour + quarter, colour, 1 + y, 1 + x] = 1
    carried, offset = min(latent_channels, 12), leaves.bias
    assert offset is not None
    leaves.weight[:carried] = 0
    for channel in range(carried):
        kind, colour = divmod(channel, 3)
        if kind == 0:
            leaves.weight[channel, colour, 1, 1], offset[channel] = MEAN_SCALE, -MEAN_SCALE / 2
        else:
            signs = torch.tensor([(1 - 2 * y, 1 - 2 * x, (1 - 2 * y) * (1 - 2 * x))[kind - 1] for y, x in QUARTERS])
            leaves.weight[channel, 3 + 4 * colour : 7 + 4 * colour, 1, 1] = MEAN_SCALE * signs

    enters, *doublings, leaves = [layer for layer in decoder if isinstance(layer, torch.nn.Conv2d)]
    blur, offset = torch.tensor([0.25, 0.5, 0.25]), enters.bias
    assert offset is not None
    leaves.weight.zero_()
    for conv in (enters, *doublings):
        conv.weight[:3] = 0
    for colour in colours:
        enters.weight[colour, colour, 1, 1], offset[colour] = 1 / MEAN_SCALE, 1 / 2
        for conv in doublings:
            conv.weight[colour, colour] = blur[:, None] * blur
        leaves.weight[colour, colour, 1, 1] = 1


def load_taesd(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an autoencoder to begin with.

    Raises:
        TrainingError: the file is none of TAESD's architecture.
    """
    try:
        weights: Any = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # the host's loaders raise what their libraries raise
        raise TrainingError(
            f"--begin-with: {path.name} cannot be read ({error}); choose an autoencoder's file"
        ) from None
    if "taesd_decoder.1.weight" not in weights:
        raise TrainingError(f"--begin-with: {path.name} is no autoencoder of TAESD's architecture; choose another file")
    return weights


def _take_over(network: comfy.taesd.taesd.TAESD, begin: Mapping[str, torch.Tensor]) -> None:
    """Weights of another autoencoder: all but the convolutions at the latents where these have another number of channels."""
    own = network.state_dict()
    fits = {
        name: value for name, value in begin.items() if name in own and own[name].shape == value.shape and value.ndim
    }
    network.load_state_dict(fits, strict=False)


def reconstruction_loss(pixels: torch.Tensor, rebuilt: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of colours and, at a quarter of the weight, of their differences to the right and below: (B,)."""
    error = rebuilt - pixels  # (B, 3, H, W)
    edges = error.diff(dim=-1).abs().mean(dim=(1, 2, 3)) + error.diff(dim=-2).abs().mean(dim=(1, 2, 3))
    return error.abs().mean(dim=(1, 2, 3)) + 0.25 * edges


def latent_loss(latents: torch.Tensor) -> torch.Tensor:
    """How far the mean square of a sample's latents is from 1: (B, C, h, w) -> (B,)."""
    return (latents.square().mean(dim=(1, 2, 3)) - 1).square()


class VAETask:
    """`Task` for an autoencoder; any data will do, of which only the target pictures are used."""

    name = "vae"

    def __init__(
        self, config: VAEConfig, device: torch.device, begin: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self.config = config
        self.network = fresh_taesd(config.latent_channels, config.seed).to(device)
        if begin is not None:
            _take_over(self.network, begin)
        for value in self.network.parameters():
            if value.ndim == 4:
                value.data = value.data.contiguous(memory_format=torch.channels_last)
        self.network.taesd_encoder.requires_grad_(not config.decoder_only)
        self.network.vae_scale.requires_grad_(False)
        self.network.vae_shift.requires_grad_(False)

    def identity(self) -> dict[str, str]:
        return {"architecture": "TAESD", "latent_channels": str(self.config.latent_channels)}

    def modules(self) -> dict[str, torch.nn.Module]:
        decoder: dict[str, torch.nn.Module] = {"decoder": self.network.taesd_decoder}
        return decoder if self.config.decoder_only else {"encoder": self.network.taesd_encoder, **decoder}

    def prepare(self, sample: TrainingSample, position: int) -> Prepared:
        """A random square of the target: {"pixels": (3, crop, crop)} in [0, 1]."""
        size = self.config.crop
        height, width, _ = sample.target.shape
        if min(height, width) < size:
            raise TrainingError(f"{sample.key} is {width} x {height}, smaller than the crop of {size}; lower crop")
        rng = generator(self.config.seed, "crop", position)
        top = int(torch.randint(height - size + 1, (), generator=rng))
        left = int(torch.randint(width - size + 1, (), generator=rng))
        return {"pixels": sample.target[top : top + size, left : left + size].permute(2, 0, 1).contiguous()}

    def losses(self, batch: Sequence[Prepared], positions: Sequence[int]) -> dict[str, torch.Tensor]:
        device = self.network.vae_scale.device
        pixels = torch.stack([entry["pixels"] for entry in batch]).to(device, memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.decoder_only):
            latents = self.network.taesd_encoder(pixels)  # (B, C, h, w)
        rngs = [generator(self.config.seed, "latent noise", position) for position in positions]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=rng) for rng in rngs]).to(latents)
        rebuilt = self.network.taesd_decoder(latents + self.config.latent_noise * noise)
        picture = reconstruction_loss(pixels, rebuilt.float())
        scale = latent_loss(latents.float())
        return {"loss": picture + 0.01 * scale, "reconstruction": picture, "scale": scale}

    def weights(self) -> Weights:
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        return Weights((WeightFile("vae", "", tensors, {}),))

    def picture(self) -> None:
        """None: an autoencoder draws nothing by itself."""
        return None
