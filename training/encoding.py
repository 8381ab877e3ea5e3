"""The host's encoders in a training: asked from several threads, and asked once for each picture and each caption."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd import CLIP, VAE

from .cache import EncodedCache
from .model import weights_identity

Tensors = dict[str, torch.Tensor]
# (what it is the encoding of, how to make it) -> the encoding, made now or earlier; an `EncodedCache` for one.
Keep = Callable[[str, Callable[[], Tensors]], Tensors]


MOST_KEPT = 100_000  # samples of which encodings are kept; data with more is hardly seen twice


def keep_nothing(key: str, make: Callable[[], Tensors]) -> Tensors:
    """Encode again every time."""
    return make()


def keep_in_memory(samples: int) -> Keep:
    """How the encodings of so many samples are kept where nobody says otherwise."""
    return EncodedCache("") if samples <= MOST_KEPT else keep_nothing


def keep_in_folder(folder: Path) -> Keep:
    """Keep encodings in a folder too: for later starts, for other trainings with the same encoders, and for more of them than
    fit into memory."""
    return EncodedCache("", folder)  # what is asked for names its encoders


@dataclass
class HostEncoders:
    """The encoders of one training.

    Attributes:
        clip_vision: None where nobody is looked at.
        keep: how encodings are kept.
    """

    vae: VAE
    clip: CLIP
    clip_vision: ClipVisionModel | None = None
    keep: Keep = keep_nothing
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def identity(self) -> dict[str, str]:
        """What the encodings depend on besides the samples: hashes of the encoders' weights, and their precision."""
        return dict(self._identity)

    @cached_property
    def _identity(self) -> dict[str, str]:
        networks = {"vae": self.vae.first_stage_model, "text encoder": self.clip.cond_stage_model}
        if self.clip_vision is not None:
            networks["CLIP vision"] = self.clip_vision.model
        return {
            name: f"{weights_identity(network)} {next(network.parameters()).dtype}"
            for name, network in networks.items()
        }

    def target(self, picture: torch.Tensor) -> torch.Tensor:
        """(H, W, 3) -> the VAE's latent (1, C, h, w)."""
        return self.kept(("vae",), "target", (picture,), lambda: {"latent": self.vae.encode(picture[None])})["latent"]

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """The first picture of a VAE's latents (B, C, h, w): (H, W, 3) in [0, 1]."""
        with self._lock, torch.no_grad():
            return _plain(self.vae.decode(latent)[0, ..., :3]).clamp(0, 1)

    def kept(
        self, encoders: Sequence[str], what: str, pictures: tuple[torch.Tensor, ...], make: Callable[[], Tensors]
    ) -> Tensors:
        """What `make` makes of some pictures, or made of the same ones earlier.

        Args:
            encoders: which of `identity`'s it is made with.
            what: tells apart all that can be made of the pictures.
        """
        digest = hashlib.blake2b(what.encode(), digest_size=16)
        digest.update(repr([self._identity[name] for name in encoders]).encode())
        for picture in pictures:
            digest.update(f" {tuple(picture.shape)}".encode())
            numbers: Any = picture.contiguous().numpy()
            digest.update(numbers)

        def alone() -> Tensors:
            with self._lock, torch.no_grad():  # the host's encoders are made for one caller at a time
                made = make()
            return {name: _plain(value) for name, value in made.items()}

        return self.keep(digest.hexdigest(), alone)


def _plain(value: torch.Tensor) -> torch.Tensor:
    """On the CPU, and nothing that autograd would refuse because it was made under inference mode."""
    value = value.detach().cpu()
    return value.clone() if value.is_inference() else value
