"""all-MiniLM-L6-v2 as a host CLIP object against the sentence-transformers library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from comfyui_ensemble.models_info.minilm import CHUNK, load_minilm_clip
from comfyui_ensemble.models_info.registry import MissingModelError, find_minilm

TEXTS = ["", "a knight", "two people shaking hands, seen from behind", "naïve café: 3.5 £ — 舞者"]


@pytest.fixture(scope="module")
def library() -> SentenceTransformer:
    return SentenceTransformer(str(find_minilm()), device="cpu", local_files_only=True)


def encode(clip, text):
    cond = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return cond[0][0], cond[0][1]["pooled_output"]


@pytest.mark.parametrize("text", TEXTS)
def test_equals_the_library(clip, library, text):
    tokens, pooled = encode(clip, text)
    expected = library.encode([text], output_value="token_embeddings")[0].numpy()
    # The host keeps text encoders in half precision on a CPU; the library computes in single.
    np.testing.assert_allclose(tokens[0].numpy(), expected, atol=1e-2)
    np.testing.assert_allclose(pooled[0].numpy(), expected.mean(0), atol=5e-3)
    unit = torch.nn.functional.normalize(pooled)[0].numpy()
    assert float(unit @ library.encode(text, normalize_embeddings=True)) > 0.9999


def test_long_prompts_become_chunks_of_one_length(clip):
    tokens = clip.tokenize("word " * 600)["minilm"]
    assert [len(chunk) for chunk in tokens] == [CHUNK] * 3
    embeddings, pooled = encode(clip, "word " * 600)
    assert embeddings.shape == (1, 3 * CHUNK, 384) and pooled.shape == (1, 384)
    padding = 3 * (CHUNK - 2) - 600
    assert not embeddings[0, -padding:].any() and embeddings[0, : 3 * CHUNK - padding].any(-1).all()


def test_weights_in_a_prompt_change_their_words_alone(clip):
    plain, _ = encode(clip, "a red fox jumps")
    same, _ = encode(clip, "a (red:1.0) fox jumps")
    strong, _ = encode(clip, "a (red:1.5) fox jumps")
    assert torch.equal(plain, same)
    changed = (strong - plain).abs().amax(-1)[
        0
    ] > 1e-4  # an empty prompt runs along in the batch, which moves last digits
    assert changed.tolist() == [False, False, True, False, False, False]


def test_a_folder_without_the_model_says_where_to_get_it(tmp_path: Path):
    with pytest.raises(MissingModelError, match=r"all-MiniLM-L6-v2 is missing: .* models/sentence_transformers folder"):
        load_minilm_clip(tmp_path)
