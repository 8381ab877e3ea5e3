"""Samples as FLUX reads them: encoded once, the same from any thread, kept where they are asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import comfy.sd
import pytest
import torch

from comfyui_ensemble.attention_patches.item_prompt import encode_caption
from comfyui_ensemble.attention_patches.prompt_tokens import text_lanes
from comfyui_ensemble.training.cache import EncodedCache
from comfyui_ensemble.training.encoding import MOST_KEPT, keep_in_folder, keep_in_memory, keep_nothing
from comfyui_ensemble.training.flux_encoding import FluxEncoders, draw_pose_map
from comfyui_ensemble.training.sample import TrainingSample
from comfyui_ensemble.training.tiny import tiny_vae
from devtools.block_scenes import BlockScenes

LAYERS = (0, 3)


@pytest.fixture
def sample() -> TrainingSample:
    return BlockScenes(blocks=(2,)).sample(1)


def encode_all(encoders: FluxEncoders, sample: TrainingSample) -> list[torch.Tensor]:
    pose = draw_pose_map(sample, 4)
    assert pose is not None
    prompt = encoders.prompt(sample.caption, {each.name: each.description for each in sample.subjects})
    assert prompt.pooled is not None
    return [
        encoders.target(sample.target),
        encoders.pose_map(pose),
        *(encoders.reference(each) for each in sample.subjects),
        *(encoders.vision(each, LAYERS) for each in sample.subjects),
        prompt.text,
        prompt.pooled,
    ]


def test_everything_is_encoded_once(vae, clip, vision, sample):
    keep = EncodedCache("")
    encoders = FluxEncoders(vae, clip, vision, keep)
    first = encode_all(encoders, sample)
    assert keep.made == 7  # target, pose map, two references, two looks, one caption
    for again, one in zip(encode_all(encoders, sample), first, strict=True):
        assert again is one
    afresh = encode_all(FluxEncoders(vae, clip, vision), sample)
    for again, one in zip(afresh, first, strict=True):
        assert torch.equal(again, one)


def test_what_differs_is_kept_apart(vae, clip, vision, sample):
    encoders = FluxEncoders(vae, clip, vision, EncodedCache(""))
    one, other = sample.subjects
    assert not torch.equal(encoders.reference(one), encoders.reference(other))
    half = replace(one, reference_mask=one.reference_mask / 2)
    assert not torch.equal(encoders.reference(one), encoders.reference(half))
    assert not torch.equal(encoders.vision(one, (1,)), encoders.vision(one, (2,)))
    caption = f"{one.description} beside {other.description}"
    assert encoders.prompt(caption, {"a": one.description}).spans.keys() == {"a"}
    assert encoders.prompt(caption, {"b": other.description}).spans.keys() == {"b"}
    assert (
        encoders.prompt(caption, {"a": one.description}).spans
        != encoders.prompt(caption, {"a": other.description}).spans
    )


def test_many_threads_get_what_one_gets(vae, clip, vision):
    samples = [BlockScenes(blocks=(2,), count=8).sample(index) for index in range(8)]
    expected = [encode_all(FluxEncoders(vae, clip, vision), sample) for sample in samples]
    encoders = FluxEncoders(vae, clip, vision, EncodedCache(""))

    def encode(sample: TrainingSample) -> list[torch.Tensor]:
        with torch.no_grad():
            return encode_all(encoders, sample)

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(encode, samples), expected, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_a_folder_serves_later_starts_and_no_other_encoders(vae, clip, vision, sample, tmp_path: Path):
    first = encode_all(FluxEncoders(vae, clip, vision, keep_in_folder(tmp_path)), sample)
    later = keep_in_folder(tmp_path)
    found = encode_all(FluxEncoders(vae, clip, vision, later), sample)
    assert isinstance(later, EncodedCache) and later.made == 0
    base = FluxEncoders(vae, clip, keep=later)  # a training that looks at nobody
    assert torch.equal(base.target(sample.target), first[0]) and later.made == 0
    assert all(torch.equal(one, other) for one, other in zip(found, first, strict=True))
    other_vae = comfy.sd.VAE(sd=tiny_vae(1))
    keep = keep_in_folder(tmp_path)
    assert not torch.equal(FluxEncoders(other_vae, clip, vision, keep).target(sample.target), first[0])


def test_data_without_end_is_not_kept():
    assert keep_in_memory(MOST_KEPT + 1) is keep_nothing
    assert isinstance(keep_in_memory(MOST_KEPT), EncodedCache)


def test_gradients_accept_what_the_hosts_encoders_made(vae, clip, vision, sample):
    """This runs in inference mode, as the loading of the models did."""
    with torch.inference_mode(False), torch.no_grad():
        made = encode_all(FluxEncoders(vae, clip, vision), sample)
    assert not any(value.is_inference() for value in made)


def test_nobody_to_draw(sample):
    nobody = replace(sample, subjects=tuple(replace(each, person=None) for each in sample.subjects))
    assert draw_pose_map(nobody, 4) is None
    unseen = [{"pose_keypoints_2d": [0.0] * 54}]
    assert draw_pose_map(replace(sample, subjects=(replace(sample.subjects[0], person=unseen[0]),)), 4) is None


@pytest.mark.parametrize("encoder", ["clip", "flux_clip"])
def test_brackets_of_a_caption_are_no_weights_and_no_placeholders(request, vae, encoder):
    """Its tokens are those of the words as they stand, also where the tokenizer reads weights."""
    clip = request.getfixturevalue(encoder)
    words = "a (red:1.5) {block}"
    caption = f"here: {words} (really)"
    prompt = FluxEncoders(vae, clip).prompt(caption, {"it": words})
    ((start, stop),) = prompt.spans["it"]
    lane = text_lanes(clip)[0]
    placed = encode_caption(clip, caption, {"it": words})
    assert placed.placed.readable.text == caption
    read = lane.tokenizer.tokenizer(caption)["input_ids"]
    written = [lane.tokenizer.inv_vocab[token] for token in read]
    assert [token.piece for token in placed.tokens[start:stop]] == written[start:stop]
    assert "red" in "".join(written[start:stop]) and "really" not in "".join(written[start:stop])
