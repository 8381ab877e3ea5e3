"""Pictures and texts as vectors whose cosine says how alike they are.

* `VisionEncoder`: DINO v1 and v2 (and v3): the class token of the last layer; for places, the patch tokens.
* `DualEncoder`: CLIP, FashionCLIP, SigLIP and whatever else of Transformers has projected features of pictures and texts.
* `HostVision`: a CLIP_VISION of ComfyUI, for pictures alone.
* GME is in `gme.py`.

Those that read texts have `texts`, which gives vectors of the same space as `pictures`; those that know places have `places`.

Pictures are (H, W, 3) in [0, 1]; vectors are float32 on the CPU, of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from comfy.clip_vision import ClipVisionModel
from torch.nn.functional import normalize

from .errors import EvaluationError
from .model_folder import HeldModel, image_processor, model_type, read_network, read_part

BATCH = 16  # pictures or texts at once
VISION_ONLY = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
DINO_ENLARGED = 256 / 224  # of the side that is cut out, to which DINO's own evaluation resizes the shorter side first


class Encoder(Protocol):
    name: str

    def pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, d) of pictures."""
        ...


def load_encoder(folder: Path) -> Encoder:
    """The encoder in a folder.

    Raises:
        EvaluationError: one sentence about the folder.
    """
    from .gme import GME_TYPE, GMEEncoder

    kind = model_type(folder)
    if kind in VISION_ONLY:
        return VisionEncoder(folder, kind)
    return GMEEncoder(folder) if kind == GME_TYPE else DualEncoder(folder, kind)


def as_image(picture: torch.Tensor) -> Any:
    """A picture (H, W, 3) in [0, 1] as Pillow has it."""
    from PIL import Image

    values = picture[..., :3].clamp(0, 1).mul(255).round().to(device="cpu", dtype=torch.uint8)
    return Image.fromarray(np.ascontiguousarray(values.numpy()))


def in_batches(items: Sequence[Any], encode: Any) -> torch.Tensor:
    """`encode` of some items at a time, as vectors of length 1."""
    parts = [encode(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]
    return normalize(torch.cat(parts), dim=-1)


class VisionEncoder:
    """A DINO of any version.

    A folder whose own preprocessing squashes pictures to squares, as that of DINO v1 does, is used as the papers use it:
    shorter side to 256, 224 x 224 cut out of the middle.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        from transformers import AutoModel

        self.name = folder.name
        self._processor = image_processor(folder)
        options: dict[str, Any] = {"add_pooling_layer": False} if kind == "vit" else {}  # DINO's checkpoints have none
        self._model = HeldModel(read_network(folder, AutoModel, **options))
        config = self._model.network.config
        self._leading = 1 + getattr(config, "num_register_tokens", 0)  # tokens before those of the patches
        crop = (
            getattr(self._processor, "crop_size", None) if getattr(self._processor, "do_center_crop", False) else None
        )
        self._crops = bool(crop)
        self._side = int(crop["height"] if crop else config.image_size)

    def pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        return in_batches(pictures, lambda some: self._tokens(self._cut(some))[:, 0])

    def places(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, P, d) of the patches of pictures that are squeezed into a square, so that nothing is cut off."""
        squeeze = _transform(self._side, self._side, None, self._processor)
        return in_batches(
            pictures,
            lambda some: self._tokens(torch.stack([squeeze(as_image(one)) for one in some]))[:, self._leading :],
        )

    def _cut(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, 3, S, S) as the class token is made of."""
        images = [as_image(picture) for picture in pictures]
        if self._crops:
            return self._processor(images, return_tensors="pt")["pixel_values"]
        cut = _transform(round(self._side * DINO_ENLARGED), None, self._side, self._processor)
        return torch.stack([cut(image) for image in images])

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, T, d) after the last layer and its normalisation."""
        return self._model.run(lambda network, device: network(pixel_values=pixels.to(device)).last_hidden_state)


def _transform(height: int, width: int | None, crop: int | None, processor: Any) -> Any:
    """Pillow's picture -> (3, H, W): resized (its shorter side, where no width is given), cut out, normalised."""
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.Resize(height if width is None else (height, width), interpolation=bicubic),
            *([] if crop is None else [transforms.CenterCrop(crop)]),
            transforms.ToTensor(),
            transforms.Normalize(processor.image_mean, processor.image_std),
        ]
    )


class DualEncoder:
    """A model that puts pictures and texts into one space."""

    def __init__(self, folder: Path, kind: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.name = folder.name
        network = read_network(folder, AutoModel)
        if not (hasattr(network, "get_image_features") and hasattr(network, "get_text_features")):
            raise EvaluationError(
                f"{folder.name} is a {kind} model, which has no features of pictures and texts; choose a CLIP, SigLIP, DINO"
                " or GME model"
            )
        self._processor = image_processor(folder)
        self._tokenizer: Any = read_part(
            folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
        self._longest = int(network.config.text_config.max_position_embeddings)
        self._full = kind.startswith("siglip")  # trained on texts padded to full length, the padding unmasked
        self._model = HeldModel(network)

    def pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        return in_batches(pictures, self._pictures)

    def _pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        inputs = self._processor([as_image(picture) for picture in pictures], return_tensors="pt")
        return self._model.run(lambda network, device: _features(network.get_image_features(**inputs.to(device))))

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return in_batches(texts, self._texts)

    def _texts(self, texts: Sequence[str]) -> torch.Tensor:
        inputs = self._tokenizer(
            list(texts),
            padding="max_length" if self._full else "longest",
            truncation=True,
            max_length=self._longest,
            return_attention_mask=not self._full,
            return_tensors="pt",
        )
        return self._model.run(lambda network, device: _features(network.get_text_features(**inputs.to(device))))

    def cuts(self, text: str) -> bool:
        """Whether the end of a text is left out because the model reads no more than so many tokens."""
        return len(self._tokenizer(text)["input_ids"]) > self._longest

    def places(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """(N, P, d) of the patches of pictures that are squeezed into a square, so that nothing is cut off."""
        side = int(self._model.network.config.vision_config.image_size)
        squeeze = _transform(side, side, None, self._processor)

        def tokens(some: Sequence[torch.Tensor]) -> torch.Tensor:
            pixels = torch.stack([squeeze(as_image(picture)) for picture in some])
            states = self._model.run(
                lambda network, device: network.vision_model(pixel_values=pixels.to(device)).last_hidden_state
            )
            patches = (side // int(self._model.network.config.vision_config.patch_size)) ** 2
            return states[:, -patches:]

        return in_batches(pictures, tokens)


def _features(output: Any) -> torch.Tensor:
    """Newer versions of Transformers give the projected features as one of several results."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class HostVision:
    """ComfyUI's CLIP_VISION, which sees the middle square of a picture."""

    def __init__(self, model: ClipVisionModel) -> None:
        self.name = "clip_vision"
        self._model = model

    def pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        return normalize(torch.cat([self._picture(picture) for picture in pictures]), dim=-1)

    def _picture(self, picture: torch.Tensor) -> torch.Tensor:
        output = self._model.encode_image(picture[None, ..., :3])
        values = output["image_embeds"]
        if values is None:  # encoders without a projection, such as DINO
            values = output["last_hidden_state"][:, 0]
        return values.float().cpu().reshape(1, -1)
