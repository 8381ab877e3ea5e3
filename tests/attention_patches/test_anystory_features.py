"""AnyStory's features: every subject through the encoding half, and the background."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import pytest
import torch

from comfyui_ensemble.attention_patches.anystory_features import (
    Background,
    Seen,
    SubjectFeatures,
    downsampled,
    encode_features,
)
from comfyui_ensemble.attention_patches.anystory_file import AnyStory, load_anystory, write_anystory
from comfyui_ensemble.attention_patches.anystory_network import AnyStoryConfig, base_layers, fresh_anystory

ZERO = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(99))


def seen(seed: int, size: tuple[int, int] = (8, 8)) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., seed : 30 - seed, 5:35] = 1
    clip = 5 * torch.randn(1, 50, 64, generator=generator)
    return Seen(clip, 8 * torch.randn(1, 4, *size, generator=generator), mask)


def encode(anystory, *subjects: Seen, **options: Any) -> SubjectFeatures:
    names = [f"subject {number}" for number in range(len(subjects))]
    return encode_features(anystory, names, subjects, ZERO, **options)


def same(one: SubjectFeatures, other: SubjectFeatures, order: list[int]) -> bool:
    """Whether the subjects of `other` are those of `one` in another order, bit by bit."""
    entries = [*order, -1]
    layers = zip(one.hidden[1:], other.hidden[1:], strict=True)
    return (
        torch.equal(one.tokens[entries], other.tokens)
        and torch.equal(one.router[entries], other.router)
        and all(torch.equal(a[order], b) for a, b in layers if a is not None and b is not None)
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_everything_comes_from_the_network(anystory, count):
    subjects = [seen(number) for number in range(count)]
    features = encode(anystory, *subjects)
    network, config = anystory.encoding.model, anystory.config
    assert features.names == tuple(f"subject {number}" for number in range(count))
    assert features.network is anystory.injecting
    assert features.tokens.shape == (count + 1, config.queries, config.text_width)
    assert features.router.shape == (count + 1, config.router_width)
    for number, subject in enumerate(subjects):
        assert torch.equal(features.tokens[number], network.encoder(subject.clip)[0])
        assert torch.equal(features.router[number], network.router_encoder(subject.clip)[0, 0])
        latent = comfy.latent_formats.SDXL().process_in(subject.latent)
        states = network.reference_net(latent, torch.nn.functional.interpolate(subject.mask, (8, 8), mode="area"))
        for kept, state in zip(features.hidden[1:], states[1:], strict=True):
            assert kept is not None and torch.equal(kept[number], state[0])
    assert features.hidden[0] is None and features.background_hidden is None
    for layer, kept in zip(base_layers(config)[1:], features.hidden[1:], strict=True):
        assert kept is not None and kept.shape == (count, (8 // layer.factor) ** 2, layer.width)


def test_the_background_is_the_zero_image_s(anystory):
    features, network = encode(anystory, seen(0)), anystory.encoding.model
    assert torch.equal(features.null_tokens, network.encoder(ZERO)[0])
    assert torch.equal(features.tokens[-1], features.null_tokens)
    assert torch.equal(features.router[-1], network.router_encoder(ZERO)[0, 0])


@pytest.mark.parametrize("routes_itself", [False, True])
def test_a_background_picture(anystory, routes_itself):
    place = dataclasses.replace(seen(7), mask=torch.ones(1, 1, 40, 40))
    plain = encode(anystory, seen(0), seen(1))
    features = encode(anystory, seen(0), seen(1), background=Background(place, routes_itself))
    alone = encode(anystory, place)
    assert torch.equal(features.tokens[-1], alone.tokens[0])
    assert torch.equal(features.router[-1], alone.router[0] if routes_itself else plain.router[-1])
    assert torch.equal(features.null_tokens, plain.null_tokens)
    assert features.background_hidden is not None and features.background_hidden[0] is None
    for kept, state in zip(features.background_hidden[1:], alone.hidden[1:], strict=True):
        assert kept is not None and state is not None and torch.equal(kept, state)
    for part in ("tokens", "router"):
        assert torch.equal(getattr(features, part)[:2], getattr(plain, part)[:2])
    assert len(features.names) == 2


def test_the_order_of_the_cast_changes_nothing_but_the_order(anystory):
    subjects = [seen(number) for number in range(4)]
    order = [2, 0, 3, 1]
    assert same(encode(anystory, *subjects), encode(anystory, *[subjects[number] for number in order]), order)


def test_the_mask_is_the_share_of_every_latent_pixel():
    mask = torch.rand(1, 1, 32, 48)
    small = downsampled(mask, (4, 6))
    for y in range(4):
        for x in range(6):
            assert torch.isclose(small[0, 0, y, x], mask[0, 0, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean())
    assert torch.equal(downsampled(torch.ones(1, 1, 37, 37), (8, 8)), torch.ones(1, 1, 8, 8))


def test_the_mask_reaches_the_reference_net(tmp_path, anystory):
    """In a trained network: fresh ones do not look at it yet."""
    weights = {name: value.clone() for name, value in anystory.encoding.model.state_dict().items()}
    weights |= {name: value.clone() for name, value in anystory.injecting.model.state_dict().items()}
    weights["reference_net.input_blocks.0.0.weight"][:, 4] = 1
    trained = written(tmp_path / "a.safetensors", weights, anystory.config)
    one = encode(trained, seen(1))
    other = encode(trained, dataclasses.replace(seen(1), mask=seen(2).mask))
    assert torch.equal(one.tokens, other.tokens)
    first, second = one.hidden[1], other.hidden[1]
    assert first is not None and second is not None and not torch.equal(first, second)


def test_progress_after_each_picture_and_a_stop(anystory):
    calls = []
    encode(anystory, seen(0), seen(1), on_picture=lambda: calls.append(None))
    encode(anystory, seen(0), background=Background(seen(1), False), on_picture=lambda: calls.append(None))
    assert len(calls) == 4
    stop = comfy.model_management.InterruptProcessingException
    with pytest.raises(stop):
        encode(anystory, seen(0), seen(1), on_picture=lambda: (_ for _ in ()).throw(stop))
    assert same(encode(anystory, seen(0)), encode(anystory, seen(0)), [0])


def test_it_is_loaded_through_the_host_s_memory_manager(anystory):
    comfy.model_management.unload_all_models()
    encode(anystory, seen(0))
    # The host may still list a model of another test that nobody holds any more.
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    assert loaded == [anystory.encoding]  # the other half waits until a picture is sampled


def test_low_memory_loading(anystory):
    """With a single byte for weights, every layer's are brought in when it is their turn."""
    whole = encode(anystory, seen(0))
    comfy.model_management.unload_all_models()
    anystory.encoding.load(anystory.encoding.load_device, lowvram_model_memory=1)
    assert anystory.encoding.model.model_lowvram
    network = anystory.encoding.model
    assert torch.equal(whole.tokens[0], network.encoder(seen(0).clip)[0])
    anystory.encoding.detach()


@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_of_the_file(tmp_path, anystory, weights):
    rounded = {name: value.to(weights) for name, value in fresh_anystory(anystory.config, 0).items()}
    exact = {name: value.float() for name, value in rounded.items()}
    found, expected = (
        encode(written(tmp_path / f"{number}.safetensors", given, anystory.config), seen(0))
        for number, given in enumerate((rounded, exact))
    )
    for one, other in [(found.tokens, expected.tokens), (found.router, expected.router)]:
        assert (one.float() - other).square().mean() < 1e-2 * other.square().mean()
    assert found.hidden[-1] is not None and torch.isfinite(found.hidden[-1]).all()


def written(path: Path, weights: dict[str, torch.Tensor], config: AnyStoryConfig) -> AnyStory:
    write_anystory(path, weights, config)
    return load_anystory(path)
