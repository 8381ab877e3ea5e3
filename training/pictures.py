"""Picture files as tensors of bytes, upright, as a training reads them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from .buckets import Size
from .errors import TrainingError

MASKED = 127  # a mask's pixel is of the subject where it is brighter than this
_DRAFT = 8  # a JPEG's smallest draft: all of the file is read, an eighth of each side is computed
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF


class DataError(TrainingError):
    """What is wrong with the training data and what to do: one sentence without its full stop."""

    def __init__(self, sentence: str, input_name: str = "data") -> None:
        super().__init__(sentence, input_name)


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture file once it has been read to its end.

    Attributes:
        digest: of the file's bytes.
        size: upright.
        empty: whether it marks nothing: read as a mask, all dark; otherwise, all transparent.
    """

    digest: str
    size: Size
    empty: bool


def examine(path: Path, as_mask: bool) -> PictureFacts:
    """Read a picture file to its end.

    Raises:
        DataError: it is no picture, or is damaged.
    """
    data = path.read_bytes()
    with _opened(data) as image:
        width, height = image.size
        sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
        if not as_mask:
            image.draft(None, (max(1, width // _DRAFT), max(1, height // _DRAFT)))  # does nothing but for a JPEG
        image.load()
        marks = _mask(image) if as_mask else _alpha(image)
        empty = marks is not None and not (np.asarray(marks) > MASKED).any()
    return PictureFacts(digest(data), (height, width) if sideways else (width, height), empty)


def read_picture(data: bytes) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A picture file's colours (h, w, 3) and, where it has transparency, its alpha (h, w); both uint8.

    Raises:
        DataError: it is no picture, or is damaged.
    """
    with _opened(data) as image:
        upright = _eight_bit(ImageOps.exif_transpose(image))
        alpha = _alpha(upright)
        # Colours are those that are stored, under transparency too, as the host's Load Image reads them.
        colours = upright.convert("RGBA" if alpha is not None else "RGB")
        return _tensor(colours)[..., :3], None if alpha is None else _tensor(alpha)


def read_mask(data: bytes) -> torch.Tensor:
    """A mask file's brightness (h, w) uint8; what is transparent in it is dark.

    Raises:
        DataError: it is no picture, or is damaged.
    """
    with _opened(data) as image:
        return _tensor(_mask(_eight_bit(ImageOps.exif_transpose(image))))


def digest(data: bytes) -> str:
    """Of a file's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            yield image
    except UnidentifiedImageError:
        raise DataError("is no picture that can be read; save it as PNG, JPEG or WebP") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DataError(f"is damaged ({error}); copy or save it again") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey pictures of more bits as eight; Pillow would cut their values off instead of scaling them."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    return image


def _alpha(image: Image.Image) -> Image.Image | None:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return image.convert("RGBA").getchannel("A")
    return None


def _mask(image: Image.Image) -> Image.Image:
    grey, alpha = _eight_bit(image).convert("RGBA").convert("L"), _alpha(image)
    return grey if alpha is None else ImageChops.multiply(grey, alpha)


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image))
