"""A sample as SDXL and AnyStory read it, encoded by the very functions that the inference nodes call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..attention_patches.anystory_features import downsampled
from ..models_info.vision_input import Picture, clip_features, picture_latent, subject_picture, zero_picture
from .encoding import HostEncoders, Tensors
from .sample import TrainingSubject


@dataclass(frozen=True)
class Prompt:
    """An encoded caption: (1, L, d_txt) and (1, d_pooled)."""

    text: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class SeenSubject:
    """A reference as AnyStory's encoding half reads it.

    Attributes:
        clip: F_clip, (1, P, d_clip).
        latent: of the VAE, (1, channels, h, w).
        mask: (1, 1, h, w).
    """

    clip: torch.Tensor
    latent: torch.Tensor
    mask: torch.Tensor


class SDXLEncoders(HostEncoders):
    """The encoders of a training on SDXL."""

    def prompt(self, caption: str) -> Prompt:
        """A caption as CLIP Text Encode encodes it."""

        def encode() -> Tensors:
            ((text, options),) = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))
            return {"text": text, "pooled": options["pooled_output"]}

        return Prompt(**self.kept(("text encoder",), f"prompt {caption}", (), encode))

    def subject(self, subject: TrainingSubject, reference_size: int) -> SeenSubject:
        """A reference as AnyStory Encode sees it.

        Args:
            reference_size: side of the picture that the ReferenceNet reads, in pixels.
        """

        def encode() -> Tensors:
            picture = subject_picture(subject.reference[None], subject.reference_mask[None])
            latent = picture_latent(self.vae, picture, reference_size)
            mask = downsampled(picture.mask.movedim(-1, 1), (latent.shape[-2], latent.shape[-1]))
            return {"clip": self._clip(picture), "latent": latent, "mask": mask}

        content = (subject.reference, subject.reference_mask)
        return SeenSubject(**self.kept(("vae", "CLIP vision"), f"subject {reference_size}", content, encode))

    def zero(self) -> torch.Tensor:
        """F_clip of the zero image, (1, P, d_clip)."""
        assert self.clip_vision is not None
        picture = zero_picture(self.clip_vision)
        return self.kept(("CLIP vision",), "zero", (), lambda: {"clip": self._clip(picture)})["clip"]

    def _clip(self, picture: Picture) -> torch.Tensor:
        assert self.clip_vision is not None
        return clip_features(self.clip_vision, picture)
