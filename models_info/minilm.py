"""all-MiniLM-L6-v2 as a host CLIP object: the text encoder of the embedded default weights.

The host's BERT is the network and the host's token weighting, chunking and memory management do the rest, so every stock
text node works on it. A token's embedding is 384 wide; the pooled vector is the mean over the tokens (the sentence
embedding before its normalisation: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import comfy.sd
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.text_encoders.bert import BertModel
from transformers import PreTrainedTokenizerFast

from .registry import MINILM, MissingModelError

NAME = "minilm"
WIDTH = 384
CHUNK = 256  # tokens the model was trained to read at once; a longer prompt becomes several chunks
_START, _END, _PAD = 101, 102, 0

# The host's parameters are typed by their defaults, which are narrower than what they take.
_TOKENIZER: Any = PreTrainedTokenizerFast  # reads tokenizer.json, and its import is light
_NETWORK: Any = BertModel


class MiniLMTokenizer(sd1_clip.SDTokenizer):
    """WordPiece tokens in chunks of at most 256; chunks are padded only where there are several, to one length."""

    def __init__(self, folder: Path, embedding_directory: list[str] | None = None, tokenizer_data: Any = None) -> None:
        super().__init__(
            str(folder),
            max_length=CHUNK,
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=WIDTH,
            embedding_key=NAME,
            tokenizer_class=_TOKENIZER,
            pad_to_max_length=False,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> list[list[tuple]]:
        chunks = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        longest = max(map(len, chunks))
        padding = (self.pad_token, 1.0, 0) if return_word_ids else (self.pad_token, 1.0)
        return [[*chunk, *[padding] * (longest - len(chunk))] for chunk in chunks]


class MiniLMClipModel(sd1_clip.SDClipModel):
    """The host's BERT at all-MiniLM-L6-v2's size, with the mean over the tokens as its pooled output."""

    def __init__(
        self, config: dict[str, Any], device: Any = "cpu", dtype: Any = None, model_options: Any = None
    ) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=config,
            special_tokens={"start": _START, "end": _END, "pad": _PAD},
            model_class=_NETWORK,
            enable_attention_masks=True,
            zero_out_masked=True,
            return_attention_masks=True,
            model_options=model_options or {},
        )

    def forward(self, tokens: list[list]) -> tuple[torch.Tensor, torch.Tensor]:
        """Chunks of token ids -> embeddings (chunks, L, 384), their means over the real tokens (chunks, 384)."""
        embeddings, _, extra = cast("tuple[torch.Tensor, None, dict[str, torch.Tensor]]", super().forward(tokens))
        real = extra["attention_mask"].unsqueeze(-1).to(embeddings)
        return embeddings, (embeddings * real).sum(1) / real.sum(1)


def load_minilm_clip(folder: Path, embedding_directory: list[str] | None = None) -> comfy.sd.CLIP:
    """all-MiniLM-L6-v2 from a sentence-transformers folder as a host CLIP object.

    Raises:
        MissingModelError: the folder lacks a file of the model.
    """
    weights_file, config_file = folder / "model.safetensors", folder / "config.json"
    if not (weights_file.is_file() and config_file.is_file() and (folder / "tokenizer.json").is_file()):
        raise MissingModelError(MINILM.missing())
    config = json.loads(config_file.read_text(encoding="utf-8"))
    published = cast("dict[str, torch.Tensor]", comfy.utils.load_torch_file(str(weights_file), safe_load=True))
    weights = {f"bert.{key}": value for key, value in published.items()}
    model: Any = partial(MiniLMClipModel, config)
    tokenizer: Any = partial(MiniLMTokenizer, folder)
    return comfy.sd.CLIP(
        SimpleNamespace(
            params={},
            clip=partial(sd1_clip.SD1ClipModel, name=NAME, clip_model=model),
            tokenizer=partial(sd1_clip.SD1Tokenizer, name=NAME, tokenizer=tokenizer),
        ),
        embedding_directory=embedding_directory,
        parameters=sum(value.numel() for value in weights.values()),
        state_dict=[weights],
    )
