"""Pictures of a report: small, and as text that a page holds within itself."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# The name that a measurement calls it by -> its file, or (H, W, 3) uint8 or float in [0, 1].
Pictures = Mapping[str, "Path | np.ndarray"]

QUALITY = 82  # of JPEG
PAPER = (255, 255, 255)  # behind what is transparent


def embedded(source: Path | np.ndarray, side: int) -> str | None:
    """A picture that is at most `side` pixels wide and high as a data address; None where it cannot be read."""
    picture = _read(source, side)
    if picture is None:
        return None
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return data_address(file.getvalue(), "jpeg")


def data_address(content: bytes, kind: str) -> str:
    """The address of a picture that is in the page itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _read(source: Path | np.ndarray, side: int) -> Image.Image | None:
    if isinstance(source, np.ndarray):
        pixels = source if source.dtype == np.uint8 else (source.clip(0, 1) * 255).round().astype(np.uint8)
        return _small(Image.fromarray(pixels), side)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as picture:
                picture.draft("RGB", (side, side))  # JPEG alone: decodes no more than is needed
                return _small(ImageOps.exif_transpose(picture), side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # missing, damaged, or too large to be a picture


def _small(picture: Image.Image, side: int) -> Image.Image:
    whole = picture.convert("RGBA")
    whole.thumbnail((side, side), Image.Resampling.LANCZOS)
    paper = Image.new("RGB", whole.size, PAPER)
    paper.paste(whole, mask=whole.getchannel("A"))
    return paper
