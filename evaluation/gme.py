"""GME: pictures and texts in one space by a Qwen2-VL that was trained to embed.

The vector is the last layer's state at the last token of a fixed conversation, which holds the picture or the text.

Source: Zhang et al., "GME: Improving Universal Multimodal Retrieval by Multimodal LLMs", CVPR 2025. The conversation and the
bounds on a picture's size are those that the published models were used with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

from .encoders import as_image, in_batches
from .model_folder import HeldModel, image_processor, read_network, read_part

GME_TYPE = "qwen2_vl"
PIXELS_A_TOKEN = 28 * 28
FEWEST_TOKENS, MOST_TOKENS = 256, 1280  # that a picture becomes
LONGEST = 1800  # tokens of a conversation
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
CONVERSATION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{said}<|im_end|>\n"
    "<|im_start|>assistant\n<|endoftext|>"
)


class GMEEncoder:
    """A GME of any size in a folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoProcessor

        self.name = folder.name
        device = comfy.model_management.get_torch_device()
        dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
        self._model = HeldModel(read_network(folder, AutoModel, dtype))
        self._processor: Any = read_part(
            folder, lambda: AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
        sizes = {"shortest_edge": FEWEST_TOKENS * PIXELS_A_TOKEN, "longest_edge": MOST_TOKENS * PIXELS_A_TOKEN}
        self._processor.image_processor = image_processor(folder, size=sizes)

    def pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        # One at a time: 1,280 tokens each.
        return in_batches(pictures, lambda some: torch.cat([self._embed(PICTURE, as_image(one)) for one in some]))

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return in_batches(texts, lambda some: torch.cat([self._embed(one) for one in some]))

    def _embed(self, said: str, image: Any = None) -> torch.Tensor:
        """(1, d) of a conversation in which this is said, about an image if there is one."""
        inputs = self._processor(
            text=[CONVERSATION.format(said=said)],
            images=None if image is None else [image],
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        )
        return self._model.run(lambda network, device: network(**inputs.to(device)).last_hidden_state[:, -1])
