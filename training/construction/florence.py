"""Captions and boxes of pictures from a Florence-2 model in a local folder, through Transformers' own classes.

Three questions are put to the model: a caption, the boxes of the phrases in that caption, and the objects it detects. Its
location tokens are read by Transformers' own post-processing.

Source: Xiao et al., "Florence-2", CVPR 2024.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy.model_patcher import CoreModelPatcher

from .boxes import Box
from .described import Described, Phrases
from .steps import file_identity

CAPTION, GROUNDING, OBJECTS = "<MORE_DETAILED_CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>", "<OD>"
WEIGHTS = "model.safetensors"
LONGEST_ANSWER = 1024  # tokens, as the model was trained
BEAMS = 3
_PREAMBLE = re.compile(
    r"^(?:in )?(?:the|this) (?:image|picture|photo|photograph|illustration|drawing)"
    r"(?: (?:shows|depicts|features|captures|portrays|displays|is of)|,? we (?:can )?see)\s+(?=\w)",
    re.IGNORECASE,
)


class CaptionerError(ValueError):
    """A folder that holds no usable captioner; the message is half a sentence about it."""


class Florence:
    """A Florence-2 model in the hands of the host's memory management."""

    def __init__(self, folder: Path) -> None:
        """Read the model.

        Raises:
            CaptionerError: the folder holds another model, or not the whole of it.
        """
        check_folder(folder)
        try:
            from transformers import Florence2ForConditionalGeneration, Florence2Processor
        except ImportError:
            raise CaptionerError("needs a newer transformers; run `pip install --upgrade transformers`") from None
        device = comfy.model_management.get_torch_device()
        self._dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
        self._processor: Any = _read(lambda: Florence2Processor.from_pretrained(folder, local_files_only=True))
        model, info = _read(
            lambda: Florence2ForConditionalGeneration.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=self._dtype, output_loading_info=True
            )
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            raise CaptionerError(f"lacks weights such as {_first(info)}; copy the whole model again")
        self._model: Any = model.eval()
        self._longest = min(LONGEST_ANSWER, self._model.config.text_config.max_position_embeddings - 1)
        # The host notes things on the model it holds, for which Transformers' own classes leave no room.
        self._patcher = CoreModelPatcher(
            torch.nn.ModuleDict({"network": self._model}),
            load_device=device,
            offload_device=comfy.model_management.unet_offload_device(),
        )

    def describe(self, picture: torch.Tensor) -> Described:
        """Caption, phrases and objects of a picture (H, W, 3) in [0, 1]."""
        pixels = picture.clamp(0, 1).mul(255).round().to(device="cpu", dtype=torch.uint8).numpy()
        caption = without_preamble(str(self._ask(pixels, CAPTION)))
        if not caption:
            return Described("", ())
        return Described(caption, _phrases(self._ask(pixels, GROUNDING, caption)), _phrases(self._ask(pixels, OBJECTS)))

    def _ask(self, pixels: np.ndarray, task: str, text: str = "") -> Any:
        """The model's answer to a task about a picture (H, W, 3) uint8, as Transformers reads it."""
        comfy.model_management.load_models_gpu([self._patcher], force_full_load=True)
        device = self._patcher.load_device
        inputs = self._processor(text=task + text, images=pixels, return_tensors="pt").to(device, self._dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=self._longest, num_beams=BEAMS, do_sample=False)
        answer = self._processor.batch_decode(tokens, skip_special_tokens=False)[0]
        size = (pixels.shape[1], pixels.shape[0])
        return self._processor.post_process_generation(answer.replace("<pad>", ""), task=task, image_size=size)[task]


def without_preamble(caption: str) -> str:
    """A caption that speaks of what is shown, not of the picture: "The image shows a dog." becomes "A dog."."""
    text = _PREAMBLE.sub("", " ".join(caption.split()))
    return text[:1].upper() + text[1:]


def _phrases(answer: Any) -> Phrases:
    """Words and boxes of an answer with boxes."""

    def box(values: Any) -> Box:
        left, top, right, bottom = (float(value) for value in values)
        return left, top, right, bottom

    return tuple(
        (str(words).strip(), box(values)) for words, values in zip(answer["labels"], answer["bboxes"], strict=True)
    )


def check_folder(folder: Path) -> None:
    """Raise `CaptionerError` where a folder does not hold a Florence-2 that can be read without code of its own."""
    for name in ("config.json", "processor_config.json", WEIGHTS):
        if not (folder / name).is_file() and not (name == WEIGHTS and (folder / f"{WEIGHTS}.index.json").is_file()):
            remedy = "it is no Florence-2 in Transformers' own form; take one of florence-community's"
            raise CaptionerError(f"has no {name}; {remedy}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CaptionerError("has a config.json that cannot be read; copy the model again") from None
    if not isinstance(config, dict) or config.get("model_type") != "florence2" or "auto_map" in config:
        kind = config.get("model_type") if isinstance(config, dict) else "no model"
        raise CaptionerError(
            f"holds {kind} and not Florence-2 in Transformers' own form; take one of florence-community's, which needs"
            " no code of its own"
        )


def captioner_identity(folder: Path) -> str:
    """Tells a model's folder from others."""
    return "-".join(file_identity(path) for path in sorted(folder.glob("*.safetensors")))


def _read(read: Callable[[], Any]) -> Any:
    """What Transformers reads from a folder, whose many ways to fail mean one thing."""
    try:
        return read()
    except Exception as error:
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CaptionerError(f"cannot be read ({first}); copy the whole model again") from None


def _first(info: Any) -> str:
    """The first weight that is missing or of another shape."""
    missing = [*info["missing_keys"], *info["mismatched_keys"]]
    names = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in missing)
    return names[0]
