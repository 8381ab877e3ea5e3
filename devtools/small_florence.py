"""A Florence-2 a thousandth of the published size, of Transformers' own classes, for tests: what it says was taught in seconds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIDE, PATCH = 64, 32  # of its pictures; of what one token of them shows
LEARNING_RATE, MOST_STEPS = 5e-3, 600
SURE = 0.9  # of every token, from which on an answer is known by heart


def write_small_florence(folder: Path, lessons: Mapping[str, str] | None = None, seed: int = 0) -> Path:
    """Write a model's folder as the published ones are laid out.

    Args:
        lessons: what it answers to a task and its text, such as {"<CAPTION>": "a dog", "<OD>": "dog<loc_1>..."}, whatever the
            picture; None leaves the weights random.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import CLIPImageProcessor, Florence2Processor

    torch.manual_seed(seed)
    images: Any = CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    images.image_seq_length = (SIDE // PATCH) ** 2 + 1
    rules = {
        "pure_text": {},
        "description_with_bboxes": {"PATTERN": None},
        "phrase_grounding": {"banned_grounding_tokens": ["it", "they", "the image"]},
    }
    processor = Florence2Processor(images, _tokenizer(), post_processor_config=rules)
    model = _model(processor.tokenizer)
    if lessons is not None:
        _teach(model, processor, lessons)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    """Bytes, Florence's thousand places, and its marks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    places = [AddedToken(f"<loc_{place}>", special=True, normalized=False) for place in range(1000)]
    tokenizer.add_tokens(places, special_tokens=True)
    return tokenizer


def _model(tokenizer: Any) -> Any:
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration
    from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

    width = 64
    vision = Florence2VisionConfig(
        depths=(1, 1),
        patch_size=(7, 3),
        patch_stride=(8, 4),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
        embed_dim=(16, 32),
        num_heads=(2, 2),
        num_groups=(2, 2),
        window_size=4,
        projection_dim=width,
        drop_path_rate=0.0,
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=2 * width,
        decoder_ffn_dim=2 * width,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        dropout=0.0,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    return Florence2ForConditionalGeneration(
        Florence2Config(
            text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_id=tokenizer.image_token_id
        )
    )


def _teach(model: Any, processor: Any, lessons: Mapping[str, str]) -> None:
    """Train until every answer is known by heart."""
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    with torch.inference_mode(False), torch.enable_grad():
        asked = [processor(text=question, images=grey, return_tensors="pt") for question in lessons]
        answers = [
            processor.tokenizer(f"<s>{answer}</s>", return_tensors="pt").input_ids for answer in lessons.values()
        ]
        for _ in range(MOST_STEPS):
            given = [model(**inputs, labels=labels) for inputs, labels in zip(asked, answers, strict=True)]
            if all(_least_sure(answer.logits, labels) > SURE for answer, labels in zip(given, answers, strict=True)):
                break
            optimizer.zero_grad()
            torch.stack([answer.loss for answer in given]).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


def _least_sure(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The lowest probability of a right token: logits (1, n, vocabulary), labels (1, n)."""
    return float(logits.detach().softmax(dim=-1).gather(-1, labels[..., None]).min())
