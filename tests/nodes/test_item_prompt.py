"""Item Prompt with the host's own text encoders, and what DSM makes of it in the host's sampler."""

from __future__ import annotations

import copy
from typing import Any

import comfy.hooks
import comfy.sample
import node_helpers
import pytest
import torch
from comfy.text_encoders.flux import FluxClipModel
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from comfy_extras.nodes_hooks import SetClipHooks

from comfyui_ensemble.attention_patches.dsm import KEY
from comfyui_ensemble.attention_patches.dsm_adapter import fresh_dsm
from comfyui_ensemble.attention_patches.dsm_file import load_dsm, write_dsm
from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY
from comfyui_ensemble.models_info.registry import TINY_VISION
from comfyui_ensemble.models_info.tiny_vision import load_tiny_vision
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.nodes.dsm import EnsembleDSM
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.item_prompt import EnsembleItemPrompt
from comfyui_ensemble.training.tiny import DSM_CONFIG

ENCODERS = ("flux_clip", "sdxl_clip", "clip")


def subject(name: str, description: str, seed: int = 0) -> Subject:
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(seed))
    return Subject(picture, None, name, description, "person")


ALICE, BOB = subject("alice", "a woman in a red coat", 1), subject("bob", "a man in a hat", 2)
CAST = Cast((ALICE, BOB))


def item_prompt(clip, prompt: str, cast: Cast = CAST, **options) -> Any:
    return EnsembleItemPrompt.execute(clip, prompt, cast, **options).result


def stock(clip, prompt: str) -> Any:
    """What the host's CLIPTextEncode does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("repeats", [1, 40])
def test_the_conditioning_is_the_stock_nodes_and_the_spans(request, encoder, repeats):
    clip = request.getfixturevalue(encoder)
    ((text, options),), picture = item_prompt(clip, "({alice}:1.2) hugs a man in a hat, both laugh; " * repeats)
    ((expected, stock_options),) = stock(
        clip, "(a woman in a red coat:1.2) hugs a man in a hat, both laugh; " * repeats
    )
    assert torch.equal(text, expected)
    assert options.keys() == {*stock_options, SPANS_KEY}
    assert all(torch.equal(options[key], value) for key, value in stock_options.items() if value is not None)
    assert list(options[SPANS_KEY]) == ["alice", "bob"]
    flat = [index for ranges in options[SPANS_KEY].values() for start, stop in ranges for index in range(start, stop)]
    assert len(flat) == len(set(flat)) and min(flat) >= 0 and max(flat) < text.shape[1]
    assert picture.shape[0] == 1 and picture.shape[2:] == (1024, 3) and picture.dtype == torch.float32


def test_known_spans(flux_clip, sdxl_clip, clip):
    """Counted by hand: T5 spends a token of its own on the space before "a", CLIP and BERT begin with a start token."""
    prompt = "we see {alice} and {bob}"
    spans = [item_prompt(encoder, prompt)[0][0][1][SPANS_KEY] for encoder in (flux_clip, sdxl_clip, clip)]
    words = {"alice": [(3, 9)], "bob": [(10, 15)]}
    assert spans[1:] == [words, words]
    pieces = flux_clip.tokenizer.t5xxl.tokenizer.tokenize("we see a woman in a red coat and a man in a hat")
    assert "".join(pieces[slice(*spans[0]["alice"][0])]) == "▁a▁woman▁in▁a▁red▁coat"
    assert "".join(pieces[slice(*spans[0]["bob"][0])]) == "▁a▁man▁in▁a▁hat"


def test_every_entry_of_a_schedule_has_the_spans(clip):
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(1.0, 0.0))
    frames.add(comfy.hooks.HookKeyframe(0.5, 0.5))
    hooks.set_keyframes_on_hooks(frames)
    (scheduled,) = SetClipHooks().apply_hooks(clip, True, True, hooks)
    conditioning = item_prompt(scheduled, "{alice} {bob}")[0]
    assert len(conditioning) == len(stock(scheduled, "a")) == 2
    assert [options[SPANS_KEY] for _, options in conditioning] == 2 * [{"alice": [(1, 7)], "bob": [(7, 12)]}]


def test_what_is_missing_is_said_or_appended(clip):
    prompt = "A woman in a red coat waves."
    with pytest.raises(InputError) as error:
        item_prompt(clip, prompt)
    assert str(error.value) == (
        "Item Prompt, prompt: it does not say 'a man in a hat' (bob), or only inside the words of another subject; write"
        " these words or the placeholder {bob} where they belong, or set missing to append."
    )
    ((text, options),) = item_prompt(clip, prompt, missing="append")[0]
    assert torch.equal(text, stock(clip, "A woman in a red coat waves., a man in a hat")[0][0])
    assert options[SPANS_KEY] == {"alice": [(1, 7)], "bob": [(10, 15)]}


@pytest.mark.parametrize(
    "prompt, cast, sentence",
    [
        (" \n", CAST, "prompt: it is empty; write what the picture shows, with {name} for a subject."),
        ("a", Cast(()), "cast: it is empty; add a subject."),
        (
            "a",
            Cast((ALICE, subject("x", ""), subject("y", " (  :1.2)"))),
            "cast: no words describe x and y; write some in",
        ),
        (
            "{alice} {x}",
            Cast((ALICE, BOB, subject("x", "a (Woman) in  a red coat"))),
            "cast: alice and x are all described as 'a woman in a red coat'; use words of its own for each.",
        ),
        ("{carol}", CAST, "prompt: {carol} stands for nobody; the cast has alice, bob (write \\{ for a bracket that"),
        (
            "{x}",
            Cast((subject("x", "\u200d\u200b"),)),
            "cast: this text encoder reads nothing in the description of x; use other words.",
        ),
        (
            "{x}",
            Cast((subject("x", "very " * 300 + "tall"),)),
            "cast: the description of x is 301 tokens long, this text encoder reads 254 in one go; shorten it.",
        ),
    ],
)
def test_bad_input(clip, prompt, cast, sentence):
    with pytest.raises(InputError) as error:
        item_prompt(clip, prompt, cast)
    assert f"Item Prompt, {sentence}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("encoder, words, limit", [("flux_clip", 512, 512), ("sdxl_clip", 75, 75)])
def test_the_longest_description(request, encoder, words, limit):
    clip = request.getfixturevalue(encoder)
    ((_, options),) = item_prompt(clip, "x {x}", Cast((subject("x", "red " * words),)))[0]
    assert sum(stop - start for start, stop in options[SPANS_KEY]["x"]) == limit
    with pytest.raises(InputError, match=f"is {limit + 1} tokens long, this text encoder reads {limit} in one go"):
        item_prompt(clip, "x {x}", Cast((subject("x", "red " * (words + 1)),)))


def test_a_text_encoder_that_cannot_be_followed(flux_clip):
    clip = flux_clip.clone()
    clip.tokenizer = SD3Tokenizer()
    with pytest.raises(InputError) as error:
        item_prompt(clip, "{alice} {bob}")
    assert str(error.value) == (
        "Item Prompt, clip: this text encoder reads prompts in a way that cannot be followed; use one of FLUX.1, SDXL or"
        " MiniLM."
    )


class Shortened(FluxClipModel):
    """As some text encoders do: fewer embeddings than tokens."""

    def encode_token_weights(self, token_weight_pairs):
        encoded: Any = super().encode_token_weights(token_weight_pairs)
        return encoded[0][:, 1:], encoded[1]


def test_a_text_encoder_that_leaves_tokens_out(flux_clip):
    clip = flux_clip.clone()
    clip.cond_stage_model = copy.copy(clip.cond_stage_model)
    clip.cond_stage_model.__class__ = Shortened
    with pytest.raises(InputError, match="Item Prompt, clip: this text encoder reads prompts in a way that cannot be"):
        item_prompt(clip, "{alice} {bob}")


@pytest.fixture(scope="module")
def dsm(tmp_path_factory: pytest.TempPathFactory):
    """An adapter whose heads are as if trained."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in fresh_dsm(DSM_CONFIG, 0).items()
    }
    path = tmp_path_factory.mktemp("dsm") / "a.safetensors"
    write_dsm(path, weights, DSM_CONFIG)
    return load_dsm(path)


@pytest.fixture(scope="module")
def vision(tiny_models):
    return load_tiny_vision(tiny_models / TINY_VISION.folder / TINY_VISION.name)


def run(model, positive, negative) -> torch.Tensor:
    latent = torch.zeros(1, 16, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(model, noise, 2, 2.0, "euler", "simple", positive, negative, latent, seed=3)


def test_dsm_reads_the_spans(flux, clip, dsm, vision):
    """The words of alice see her alone: another bob changes no offset of theirs, and every other one."""

    def modulated(bob: Subject, per_item: bool) -> Any:
        positive = item_prompt(clip, "{alice} hugs {bob} in the rain", Cast((ALICE, bob)))[0]
        return EnsembleDSM.execute(flux, positive, dsm, Cast((ALICE, bob)), vision, 1.0, 1.0, per_item=per_item).result

    other = subject("bob", BOB.description, seed=9)
    (_, ((text, options),)), (_, ((other_text, other_options),)) = modulated(BOB, True), modulated(other, True)
    hers = set(range(*options[SPANS_KEY]["alice"][0]))
    same = torch.isclose(options[KEY], other_options[KEY], atol=1e-6).all(-1)[0].tolist()
    assert [index for index, kept in enumerate(same) if kept] == sorted(hers) == list(range(1, 7))
    assert torch.isclose(text, other_text, atol=1e-6).all(-1)[0].tolist() == same
    pictures = [
        run(model, positive, stock(clip, "")) for model, positive in (modulated(BOB, True), modulated(BOB, False))
    ]
    assert torch.isfinite(pictures[0]).all() and not torch.equal(*pictures)


def test_spans_alone_change_nothing_in_the_sampler(flux, clip, vision, dsm):
    negative = stock(clip, "")
    positive = item_prompt(clip, "{alice} hugs {bob}")[0]
    plain = stock(clip, "a woman in a red coat hugs a man in a hat")
    assert torch.equal(run(flux, positive, negative), run(flux, plain, negative))
    written = node_helpers.conditioning_set_values(plain, {SPANS_KEY: {"alice": [(1, 7)], "bob": [(8, 13)]}})
    results = []
    for conditioning in (positive, written):
        result: Any = EnsembleDSM.execute(flux, conditioning, dsm, CAST, vision, 1.0, 1.0, per_item=True).result
        results.append(run(result[0], result[1], negative))
    assert torch.equal(*results)


def test_nothing_is_changed_by_being_read(clip):
    options, cast = copy.copy(clip.tokenizer_options), copy.copy(CAST)
    item_prompt(clip, "{alice} {bob}")
    assert clip.tokenizer_options == options and cast == CAST


def test_the_contract():
    schema = EnsembleItemPrompt.define_schema()
    inputs: Any = schema.inputs
    assert (schema.node_id, schema.category) == ("EnsembleItemPrompt", "ensemble/flux")
    assert [entry.id for entry in inputs] == ["clip", "prompt", "cast", "missing"]
    assert [output.display_name for output in schema.outputs] == ["conditioning", "spans_image"]
    assert all(entry.tooltip for entry in inputs) and inputs[3].options == ["error", "append"] and inputs[3].optional
    assert not inputs[1].dynamic_prompts  # the page would take the braces off
    assert EnsembleItemPrompt.validate_inputs() is True and EnsembleItemPrompt.validate_inputs("a") is True
    assert EnsembleItemPrompt.validate_inputs(" ") == (
        "Item Prompt, prompt: it is empty; write what the picture shows, with {name} for a subject."
    )
