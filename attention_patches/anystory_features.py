"""What AnyStory knows of a cast before it draws: the features of every subject (AnyStory, section 3.2).

Made once for a cast, used at every step of every picture. A subject's features are made from its own picture alone, one
subject after the other, so they do not depend on who else is in the cast nor on its order, and a cast of any length takes the
memory of one.

The background has no picture in the paper: its E and R are those of the zero image. Here it may have one (the paper's own
limitation, section 5). Then its E and its G come from that picture, and so what the background's pixels attend to. Which
pixels those are is another question, the decoupled one: with the zero image's R, which routers are trained with, all that
the subjects leave over; with the picture's own R, what resembles it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import comfy.latent_formats
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

if TYPE_CHECKING:
    from .anystory_file import AnyStory


@dataclass(frozen=True)
class SubjectFeatures:
    """N subjects and the background, encoded; tensors on the host's intermediate device.

    Attributes:
        names: of the N subjects, in the order of the cast.
        tokens: E_1 .. E_{N+1}, (N + 1, m, d_c); the last is the background's: the zero image's, or that of the artist's
            background picture.
        null_tokens: E of the zero image, (m, d_c): what an unconditional prompt is given. Without a background picture it
            equals tokens[-1].
        router: R_1 .. R_{N+1}, (N + 1, d_r); the last is the background's.
        hidden: G^l of the N subjects for every transformer block in the order of `attention_layers`, each (N, T_l, C_l);
            the first entry is None, because the first self-attention is left as it is.
        network: carries the injecting half; its `.model` is an `AnyStoryInjecting` (`config`, `injection`, `routers`).
        background_hidden: G^l of the background picture, each (1, T_l, C_l) and the first None, for the tokens that are
            routed to the background; None without a background picture.
    """

    names: tuple[str, ...]
    tokens: torch.Tensor
    null_tokens: torch.Tensor
    router: torch.Tensor
    hidden: tuple[torch.Tensor | None, ...]
    network: ModelPatcher
    background_hidden: tuple[torch.Tensor | None, ...] | None = None


@dataclass(frozen=True)
class Seen:
    """What the host's encoders make of one picture.

    Attributes:
        clip: F_clip, the CLIP vision model's penultimate hidden states, (1, P, d_clip).
        latent: of the VAE, (1, channels, h, w).
        mask: of the picture, (1, 1, H, W), 1 where the subject is.
    """

    clip: torch.Tensor
    latent: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Background:
    """A background picture.

    Attributes:
        seen: its mask is 1 everywhere.
        routes_itself: whether its own R says where it goes, instead of the zero image's.
    """

    seen: Seen
    routes_itself: bool


def downsampled(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The subject's share of every latent pixel: (1, 1, H, W) -> (1, 1, h, w)."""
    return torch.nn.functional.interpolate(mask, size=size, mode="area")


def encode_features(
    anystory: AnyStory,
    names: Sequence[str],
    subjects: Sequence[Seen],
    zero: torch.Tensor,
    background: Background | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> SubjectFeatures:
    """Run the encoding half on every picture.

    Args:
        anystory: the loaded network.
        names: of the subjects.
        subjects: what the encoders saw of each.
        zero: F_clip of the zero image, (1, P, d_clip).
        background: the artist's background picture, if there is one.
        on_picture: called after each picture; may raise to stop.
    """
    looker = _Looker(anystory)
    tokens, router, hidden = [], [], []
    for seen in subjects:
        tokens.append(looker.tokens(seen.clip))
        router.append(looker.routing(seen.clip))
        hidden.append(looker.hidden(seen))
        on_picture()
    null_tokens, null_router = looker.tokens(zero), looker.routing(zero)
    place = _Place(null_tokens, null_router, None)
    if background is not None:
        own = looker.routing(background.seen.clip) if background.routes_itself else null_router
        place = _Place(looker.tokens(background.seen.clip), own, looker.hidden(background.seen))
        on_picture()
    return SubjectFeatures(
        names=tuple(names),
        tokens=torch.cat([*tokens, place.tokens]),
        null_tokens=null_tokens[0],
        router=torch.cat([*router, place.router]),
        hidden=_without_first([torch.cat(layer) for layer in zip(*hidden, strict=True)]),
        network=anystory.injecting,
        background_hidden=None if place.hidden is None else _without_first(place.hidden),
    )


@dataclass(frozen=True)
class _Place:
    """The background's E (1, m, d_c), its R (1, d_r), and {G^l} where it has a picture."""

    tokens: torch.Tensor
    router: torch.Tensor
    hidden: Sequence[torch.Tensor] | None


def _without_first(hidden: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    """The first self-attention comes before any routing map, so nothing can be brought into it (Eq. 3: l = 2 .. L)."""
    return (None, *hidden[1:])


class _Looker:
    """The encoding half on its device, in the precision that suits it; what comes out is on the intermediate device."""

    def __init__(self, anystory: AnyStory) -> None:
        comfy.model_management.load_models_gpu([anystory.encoding])
        self.network = anystory.encoding.model
        self.device = anystory.encoding.load_device
        cast_to = comfy.model_management.unet_manual_cast(self.network.dtype, self.device)
        self.dtype = cast_to or self.network.dtype

    def tokens(self, clip: torch.Tensor) -> torch.Tensor:
        """E: (1, P, d_clip) -> (1, m, d_c)."""
        return _aside(self.network.encoder(clip.to(self.device, self.dtype)))

    def routing(self, clip: torch.Tensor) -> torch.Tensor:
        """R: (1, P, d_clip) -> (1, d_r)."""
        return _aside(self.network.router_encoder(clip.to(self.device, self.dtype))[:, 0])

    def hidden(self, seen: Seen) -> list[torch.Tensor]:
        """{G^l}, the first included: each (1, T_l, C_l)."""
        latent = comfy.latent_formats.SDXL().process_in(seen.latent.to(self.device, torch.float32))
        mask = downsampled(seen.mask.to(latent), (latent.shape[-2], latent.shape[-1]))
        states = self.network.reference_net(latent.to(self.dtype), mask.to(self.dtype))
        return [_aside(state) for state in states]


def _aside(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(comfy.model_management.intermediate_device())
