"""Load AnyStory and AnyStory Encode as nodes, with the host's own CLIP vision class and VAE."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.clip_vision import ClipVisionModel

from comfyui_ensemble.attention_patches.anystory_features import SubjectFeatures
from comfyui_ensemble.attention_patches.anystory_file import AnyStory
from comfyui_ensemble.models_info.registry import ANYSTORY_NETWORKS, TINY_ANYSTORY
from comfyui_ensemble.models_info.tiny_vision import CONFIG as VISION
from comfyui_ensemble.models_info.vision_input import square
from comfyui_ensemble.nodes import anystory_encode
from comfyui_ensemble.nodes.anystory_encode import (
    BACKGROUND_AREAS,
    LEFT_OVER,
    RESEMBLES,
    EnsembleAnyStoryEncode,
    EnsembleAnyStoryLoader,
)
from comfyui_ensemble.nodes.cast import Cast, EnsembleSubject, Subject
from comfyui_ensemble.nodes.errors import InputError


def person(name: str, height: int = 40, width: int = 40, seed: int = 0) -> Subject:
    picture = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height - 2, width // 4 : width - 1] = 1
    return Subject(picture, mask, name, f"the person {name}", "person")


CAST = Cast((person("alice", seed=1), person("bob", 120, 48, seed=2)))
PLACE = torch.rand(1, 60, 90, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def anystory(anystory: AnyStory) -> AnyStory:
    """The tiny AnyStory with small references, to be quick."""
    return dataclasses.replace(anystory, config=dataclasses.replace(anystory.config, reference_size=64))


@pytest.fixture
def encode(anystory, vision, sdxl_vae) -> Any:
    def run(cast: Cast = CAST, **changed: Any) -> SubjectFeatures:
        inputs = {"anystory": anystory, "cast": cast, "clip_vision": vision, "vae": sdxl_vae, **changed}
        found: Any = EnsembleAnyStoryEncode.execute(**inputs).result
        return found[0]

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/ensemble_anystory."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, ANYSTORY_NETWORKS, ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def only(subject: Subject, **changed: Any) -> Cast:
    return Cast((dataclasses.replace(subject, **changed),))


def equal(one: SubjectFeatures, other: SubjectFeatures) -> bool:
    hidden = [*one.hidden[1:], *(one.background_hidden or ())[1:]]
    others = [*other.hidden[1:], *(other.background_hidden or ())[1:]]
    pairs = [(one.tokens, other.tokens), (one.router, other.router), *zip(hidden, others, strict=True)]
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def test_what_the_network_is_given(encode, anystory, vision, sdxl_vae):
    """The cut-out subject on a white square for CLIP, the same at the reference size for the VAE, and its mask."""
    features = encode()
    network, size = anystory.encoding.model, anystory.config.reference_size
    assert features.names == ("alice", "bob") and features.network is anystory.injecting
    for number, subject in enumerate(CAST.subjects):
        whole = square(subject.cut_out())
        clip = vision.encode_image(whole)["penultimate_hidden_states"]
        assert torch.equal(features.tokens[number], network.encoder(clip)[0])
        pixels = torch.nn.functional.interpolate(whole.movedim(-1, 1), (size, size), mode="bicubic", antialias=True)
        latent = 0.13025 * sdxl_vae.encode(pixels.clamp(0, 1).movedim(1, -1))
        assert latent.shape == (1, 4, size // 8, size // 8)
        state = network.reference_net(latent, torch.zeros(1, 1, size // 8, size // 8))  # fresh: blind to the mask
        assert torch.allclose(features.hidden[3][number], state[3][0], atol=1e-5)
    zero = vision.encode_image(torch.zeros(1, 224, 224, 3))["penultimate_hidden_states"]
    assert torch.equal(features.null_tokens, network.encoder(zero)[0])
    assert torch.equal(features.tokens[-1], features.null_tokens)
    assert torch.equal(features.router[-1], network.router_encoder(zero)[0, 0])


@pytest.mark.parametrize("height, width", [(40, 40), (30, 61), (61, 30), (1, 9)])
def test_the_mask_lies_where_the_subject_lies(height, width):
    subject = dataclasses.replace(person("a", height, width), mask=torch.ones(1, height, width))
    picture = anystory_encode._cut_out(subject)
    side = max(height, width)
    assert picture.pixels.shape == (1, side, side, 3) and picture.mask.shape == (1, side, side, 1)
    inside = picture.mask[0, ..., 0] == 1
    assert inside.sum() == height * width and not picture.mask[0, ..., 0][~inside].any()
    assert torch.equal(picture.pixels[0][inside].reshape(subject.image[0].shape), subject.image[0])
    assert (picture.pixels[0][~inside] == 1).all()


def test_what_lies_outside_the_mask_is_not_seen(encode):
    alice = CAST.subjects[0]
    assert alice.mask is not None
    other = torch.where(alice.mask[..., None] > 0, alice.image, torch.rand(1, 40, 40, 3))
    assert equal(encode(only(alice)), encode(only(alice, image=other)))
    assert not equal(encode(only(alice)), encode(only(alice, image=1 - alice.image)))


def test_the_same_subjects_give_the_same_features_in_any_order(encode):
    one, same = encode(), encode()
    assert equal(one, same)
    turned = encode(Cast(CAST.subjects[::-1]))
    assert turned.names == ("bob", "alice")
    assert torch.equal(turned.tokens, one.tokens[[1, 0, 2]]) and torch.equal(turned.router, one.router[[1, 0, 2]])
    assert all(torch.equal(a.flip(0), b) for a, b in zip(turned.hidden[1:], one.hidden[1:], strict=True))


def test_a_cast_of_twelve_in_pictures_of_many_sizes(encode):
    sizes = [(30 + 7 * number, 90 - 5 * number) for number in range(12)]
    cast = Cast(tuple(person(f"subject {n}", *size, seed=n) for n, size in enumerate(sizes)))
    features = encode(cast)
    assert len(features.names) == 12 and len(features.tokens) == len(features.router) == 13
    assert all(len(hidden) == 12 for hidden in features.hidden[1:])
    assert torch.equal(features.tokens[5], encode(Cast(cast.subjects[5:6])).tokens[0])


def test_a_background_picture(encode, anystory, vision):
    plain, left_over, resembles = encode(), *(encode(background=PLACE, background_area=a) for a in BACKGROUND_AREAS)
    network = anystory.encoding.model
    middle = PLACE[:, :, 15:75]  # a square of it, nothing added
    clip = vision.encode_image(middle)["penultimate_hidden_states"]
    for features in (left_over, resembles):
        assert features.names == plain.names
        assert torch.equal(features.tokens[-1], network.encoder(clip)[0])
        assert torch.equal(features.null_tokens, plain.null_tokens)
        assert torch.equal(features.tokens[:2], plain.tokens[:2])
        assert [len(hidden) for hidden in features.background_hidden[1:]] == [1] * (len(features.hidden) - 1)
    assert torch.equal(left_over.router, plain.router)
    assert torch.equal(resembles.router[-1], network.router_encoder(clip)[0, 0])
    with_alpha = torch.cat((PLACE, torch.rand(1, 60, 90, 1)), dim=-1)
    assert equal(left_over, encode(background=with_alpha))
    assert plain.background_hidden is None


def test_nothing_given_is_changed(encode, anystory, vision):
    pictures = [(subject.image.clone(), subject.mask.clone()) for subject in CAST.subjects if subject.mask is not None]
    weights = {name: value.clone() for name, value in anystory.encoding.model.state_dict().items()}
    encode(background=PLACE)
    for subject, (image, mask) in zip(CAST.subjects, pictures, strict=True):
        assert subject.mask is not None
        assert torch.equal(subject.image, image) and torch.equal(subject.mask, mask)
    assert all(torch.equal(value, weights[name]) for name, value in anystory.encoding.model.state_dict().items())
    assert vision.return_all_hidden_states is False


def test_an_alpha_channel_serves_as_mask(encode):
    alice = CAST.subjects[0]
    assert alice.mask is not None
    picture = torch.cat((alice.image, alice.mask[..., None]), dim=-1)
    cast: Any = EnsembleSubject.execute(picture, "alice", "a woman", "person").result
    assert equal(encode(cast[0]), encode(only(alice)))


def test_an_interrupt(encode):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        encode()
    assert equal(encode(), encode())


@pytest.mark.parametrize("background", [None, PLACE])
def test_progress_comes_to_its_end(encode, monkeypatch, background):
    seen: list[tuple[int, int]] = []

    def hook(value: int, total: int, *rest: Any, **more: Any) -> None:
        seen.append((value, total))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    encode(background=background)
    values = [value for value, _ in seen]
    assert values == sorted(set(values))
    # Three encoders for each picture, and the zero image for CLIP.
    assert seen[-1] == ((7, 7) if background is None else (10, 10))


def test_a_cast_that_will_not_do(encode):
    with pytest.raises(InputError) as error:
        encode(Cast(()))
    assert str(error.value) == "AnyStory Encode, cast: it is empty; add a subject."
    bare = Cast((dataclasses.replace(CAST.subjects[0], mask=None), CAST.subjects[1]))
    with pytest.raises(InputError) as error:
        encode(bare)
    assert str(error.value) == (
        "AnyStory Encode, cast: 'alice' cannot be told from the background; connect a mask to each one's Subject node,"
        " for example from Remove Background, or use a picture with an alpha channel."
    )
    with pytest.raises(InputError, match=r"cast: the mask of 'alice' is empty; paint the subject white\."):
        encode(only(CAST.subjects[0], mask=torch.zeros(1, 40, 40)))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"hidden_size": 32}, "it has 6 layers of width 32, the adapter was trained with 6 of 64"),
        ({"num_hidden_layers": 4}, "it has 4 layers of width 64, the adapter was trained with 6 of 64"),
    ],
)
def test_another_clip_vision_model(encode, change, sentence):
    with pytest.raises(InputError, match=f"^AnyStory Encode, clip_vision: {sentence}"):
        encode(clip_vision=ClipVisionModel({**VISION, **change}))


def test_another_vae(encode, vae):
    with pytest.raises(InputError) as error:
        encode(vae=vae)
    assert str(error.value) == (
        "AnyStory Encode, vae: it makes latents of 16 channels, SDXL's have 4; connect SDXL's VAE."
    )


def test_a_background_that_will_not_do(encode):
    with pytest.raises(InputError, match="background: it holds 2 pictures; pick one with Image From Batch"):
        encode(background=PLACE.expand(2, -1, -1, -1))
    with pytest.raises(InputError, match="background_area: 'everywhere' is unknown; choose one of: what is left over"):
        encode(background_area="everywhere")
    assert "'everywhere' is unknown" in str(EnsembleAnyStoryEncode.validate_inputs("everywhere"))
    assert EnsembleAnyStoryEncode.validate_inputs() is True  # linked
    assert all(EnsembleAnyStoryEncode.validate_inputs(area) is True for area in (LEFT_OVER, RESEMBLES))


def test_the_loader_finds_what_is_in_its_folder(folder, tiny_models):
    shutil.copy(tiny_models / TINY_ANYSTORY.folder / TINY_ANYSTORY.name, folder / "mine.safetensors")
    choices: Any = EnsembleAnyStoryLoader.define_schema().inputs[0]
    assert choices.options == ["mine.safetensors"]
    assert EnsembleAnyStoryLoader.validate_inputs("mine.safetensors") is True
    assert EnsembleAnyStoryLoader.validate_inputs() is True  # linked
    loaded: Any = EnsembleAnyStoryLoader.execute("mine.safetensors").result
    assert loaded[0].config.base == "sdxl"
    before = EnsembleAnyStoryLoader.fingerprint_inputs("mine.safetensors")
    os.utime(folder / "mine.safetensors", (1, 1))
    assert EnsembleAnyStoryLoader.fingerprint_inputs("mine.safetensors") != before


@pytest.mark.parametrize("name", ["gone.safetensors", "../mine.safetensors", "/etc/passwd", ""])
def test_the_loader_refuses_what_is_not(folder, name):
    (folder.parent / "mine.safetensors").write_bytes(b"secret")
    message = EnsembleAnyStoryLoader.validate_inputs(name)
    assert message == (
        f"Load AnyStory, name: there is no '{name}' in models/ensemble_anystory; put the file there or choose one of:"
        " none is there."
    )
    with pytest.raises(InputError, match="there is no"):
        EnsembleAnyStoryLoader.execute(name)


def test_the_loader_passes_on_what_is_wrong_with_a_file(folder):
    (folder / "cut.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError) as error:
        EnsembleAnyStoryLoader.execute("cut.safetensors")
    assert str(error.value) == (
        "Load AnyStory, name: 'cut.safetensors' will not do: it is no whole safetensors file; download or copy it again."
    )


def test_the_contract():
    loader, node = EnsembleAnyStoryLoader.define_schema(), EnsembleAnyStoryEncode.define_schema()
    assert (loader.node_id, [i.id for i in loader.inputs]) == ("EnsembleAnyStoryLoader", ["name"])
    names = ["anystory", "cast", "clip_vision", "vae", "background", "background_area"]
    assert (node.node_id, [i.id for i in node.inputs]) == ("EnsembleAnyStoryEncode", names)
    assert [entry.optional for entry in node.inputs] == [False] * 4 + [True] * 2
    assert [output.display_name for output in [*loader.outputs, *node.outputs]] == ["anystory", "features"]
    for schema in (loader, node):
        assert schema.category == "ensemble/anystory" and schema.description and "ensemble" in schema.search_aliases
        assert all(entry.tooltip for entry in schema.inputs)
