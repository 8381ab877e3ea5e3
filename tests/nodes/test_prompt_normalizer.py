"""The normalizer node: the rules, and a language model of the host's own classes."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.sd
import pytest
import torch
from comfy import sd1_clip
from comfy.text_encoders.llama import Qwen3_4B
from comfy.text_encoders.z_image import ZImageTokenizer

from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.prompt_normalizer import ANSWER_TOKENS, EnsemblePromptNormalizer
from comfyui_ensemble.pose_db.normalizer import instruction, normalize_by_rules

PROMPT = "cinematic photo of Anna waving goodbye from the porch, golden hour"
ANSWER = "a woman waving goodbye from the porch"
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
END = 151645  # <|im_end|>


@pytest.fixture
def language_model() -> comfy.sd.CLIP:
    """A Qwen3 of the host's class and tokenizer, one layer of width 32, random weights."""
    network: Any = Qwen3_4B  # the host's parameters are typed by their defaults
    text_model: Any = partial(
        sd1_clip.SDClipModel,
        textmodel_json_config=TINY,
        special_tokens={"pad": 151643},
        model_class=network,
        enable_attention_masks=True,
        layer_norm_hidden_state=False,
    )
    clip = comfy.sd.CLIP(
        SimpleNamespace(
            params={},
            clip=partial(sd1_clip.SD1ClipModel, name="qwen3_4b", clip_model=text_model),
            tokenizer=ZImageTokenizer,
        )
    )
    generator = torch.Generator().manual_seed(0)
    for name, value in clip.cond_stage_model.named_parameters():
        value.data = torch.ones(value.shape) if "norm" in name else 0.3 * torch.randn(value.shape, generator=generator)
    return clip


def teach(clip: comfy.sd.CLIP, answer: str) -> None:
    """Train the model until it answers the instruction for PROMPT with `answer`."""
    language = clip.cond_stage_model.qwen3_4b.transformer
    question = [token for token, _ in clip.tokenize(instruction(PROMPT), min_length=1)["qwen3_4b"][0]]
    wanted = [*clip.tokenizer.qwen3_4b.tokenizer(answer)["input_ids"], END]
    # The tests run in inference mode, in which nothing can be differentiated.
    with torch.inference_mode(False), torch.enable_grad():
        parameters: dict[str, torch.Tensor] = {
            name: torch.nn.Parameter(value.clone()) for name, value in language.named_parameters()
        }
        ids = torch.tensor([question + wanted[:-1]])
        optimizer = torch.optim.Adam(parameters.values(), lr=0.03)
        for _ in range(200):
            embedded = torch.nn.functional.embedding(ids, parameters["model.embed_tokens.weight"])
            hidden = torch.func.functional_call(language, parameters, (None,), {"embeds": embedded})[0]
            logits = hidden[0, len(question) - 1 :] @ parameters["model.embed_tokens.weight"].T
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(wanted))
            if loss < 0.01:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    language.load_state_dict(parameters)


def test_the_rules_answer_without_a_model():
    assert EnsemblePromptNormalizer.execute(PROMPT).result == (ANSWER,)


def test_a_language_models_sentence_is_the_query(language_model):
    teach(language_model, f"Answer: {ANSWER}.")
    output = EnsemblePromptNormalizer.execute(PROMPT, language_model)
    assert output.result == (ANSWER,)
    assert output.ui is None


def test_gibberish_falls_back_to_the_rules_with_a_note(language_model, caplog):
    """Random weights write random words, through the host's real tokenizer, cache and sampling."""
    tokens = language_model.tokenize(instruction(PROMPT), min_length=1)
    said = language_model.decode(language_model.generate(tokens, do_sample=False, max_length=ANSWER_TOKENS))
    assert said.strip()
    output = EnsemblePromptNormalizer.execute(PROMPT, language_model)
    assert output.result == (normalize_by_rules(PROMPT),)
    shown: Any = output.ui
    assert "built-in rules were used" in shown.as_dict()["text"][0]
    assert "built-in rules were used" in caplog.text


def test_an_empty_answer_falls_back_to_the_rules(language_model):
    teach(language_model, "")
    assert EnsemblePromptNormalizer.execute(PROMPT, language_model).result == (normalize_by_rules(PROMPT),)


def test_the_same_prompt_gives_the_same_query(language_model):
    first, second = (EnsemblePromptNormalizer.execute(PROMPT, language_model).result for _ in range(2))
    assert first == second


def test_a_text_encoder_that_cannot_write_is_refused(clip):
    with pytest.raises(InputError, match="clip: this text encoder cannot write text; connect a language model"):
        EnsemblePromptNormalizer.execute(PROMPT, clip)


@pytest.mark.parametrize("prompt", ["", "  \n "])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(InputError, match="prompt: it is empty"):
        EnsemblePromptNormalizer.execute(prompt)
    assert "it is empty" in str(EnsemblePromptNormalizer.validate_inputs(prompt))
    assert EnsemblePromptNormalizer.validate_inputs() is True
