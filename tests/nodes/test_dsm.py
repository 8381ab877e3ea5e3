"""Load DSM and DSM as nodes, with the host's own CLIP vision class and sampler."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy.clip_vision import ClipVisionModel

from comfyui_ensemble.attention_patches.dsm import KEY, item_mask
from comfyui_ensemble.attention_patches.dsm_adapter import DSMConfig, fresh_dsm
from comfyui_ensemble.attention_patches.dsm_file import load_dsm, write_dsm
from comfyui_ensemble.attention_patches.item_spans import SPANS_KEY
from comfyui_ensemble.models_info.registry import DSM_ADAPTERS
from comfyui_ensemble.models_info.vision_input import square
from comfyui_ensemble.nodes.cast import Cast, Subject
from comfyui_ensemble.nodes.dsm import EnsembleDSM, EnsembleDSMLoader
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.vision import hidden_states

CLIP_VISION = {
    "model_type": "clip_vision_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 6,
    "num_channels": 3,
    "patch_size": 8,
    "image_size": 32,
    "projection_dim": 16,
}
CONFIG = DSMConfig(
    text_width=384,
    width=64,
    heads=4,
    clip_width=32,
    clip_depth=6,
    clip_layers=(0, 4, 5),
    subjects=3,
    model_width=256,
    double_blocks=2,
    single_blocks=6,
)


def make_clip_vision(**changed) -> ClipVisionModel:
    model = ClipVisionModel({**CLIP_VISION, **changed})
    generator = torch.Generator().manual_seed(0)
    model.load_sd({name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in model.get_sd().items()})
    return model


@pytest.fixture(scope="module")
def clip_vision() -> ClipVisionModel:
    return make_clip_vision()


@pytest.fixture(scope="module")
def dsm(tmp_path_factory: pytest.TempPathFactory):
    """An adapter whose heads are as if trained, through the pack's own file."""
    path = tmp_path_factory.mktemp("dsm") / "a.safetensors"
    write_dsm(path, trained(CONFIG), CONFIG)
    return load_dsm(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/ensemble_dsm."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, DSM_ADAPTERS, ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def trained(config: DSMConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in fresh_dsm(config, 0).items()
    }


def person(name: str, height: int = 40, width: int = 40, seed: int = 0, mask: torch.Tensor | None = None) -> Subject:
    picture = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))
    return Subject(picture, mask, name, f"the person {name}", "person")


CAST = Cast((person("alice", seed=1), person("bob", 60, 24, seed=2)))


def cond(clip, text: str):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def apply(model, conditioning, dsm, clip_vision, cast=CAST, strengths=(1.0, 1.0), **options) -> Any:
    return EnsembleDSM.execute(model, conditioning, dsm, cast, clip_vision, *strengths, **options).result


def run(model, positive, negative, size=(16, 16)) -> torch.Tensor:
    latent = torch.zeros(1, 16, *size)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(model, noise, 2, 2.0, "euler", "simple", positive, negative, latent, seed=3)


def test_every_layer_of_the_vision_model_is_counted_as_the_host_does(clip_vision):
    states = hidden_states(clip_vision, CAST, (4, 5))
    for subject, state in zip(CAST.subjects, states, strict=True):
        alone = clip_vision.encode_image(square(subject.image))
        assert torch.equal(state[0], alone.penultimate_hidden_states[0])
        assert torch.equal(state[1], alone.last_hidden_state[0])
    assert clip_vision.return_all_hidden_states is False  # the host's object is as it was


@pytest.mark.parametrize("height, width", [(40, 40), (60, 23), (5, 64)])
def test_the_whole_picture_is_seen(height, width):
    picture = torch.rand(1, height, width, 3)
    whole = square(picture)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    assert whole.shape == (1, side, side, 3)
    assert torch.equal(whole[:, top : top + height, left : left + width], picture)
    assert torch.isclose(whole.sum(), picture.sum() + 3 * (side * side - height * width))  # white around


def test_what_lies_outside_the_mask_is_not_seen(clip_vision):
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:30, 5:35] = 1
    one = person("a", mask=mask)
    other = dataclasses.replace(one, image=torch.where(mask[..., None] > 0, one.image, torch.rand(1, 40, 40, 3)))
    assert torch.equal(hidden_states(clip_vision, Cast((one,)), (3,)), hidden_states(clip_vision, Cast((other,)), (3,)))


def test_both_offsets_reach_the_picture(flux, clip, dsm, clip_vision):
    positive, negative = cond(clip, "alice and bob dance"), cond(clip, "")
    plain = run(flux, positive, negative, (17, 23))
    pictures = [plain]
    for strengths in [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -0.5)]:
        model, modulated = apply(flux, positive, dsm, clip_vision, strengths=strengths)
        pictures.append(run(model, modulated, negative, (17, 23)))
        assert torch.equal(modulated[0][0], positive[0][0]) == (strengths[0] == 0)
        assert (KEY in modulated[0][1]) == (model is not flux) == (strengths[1] != 0)
    for number, picture in enumerate(pictures):
        assert torch.isfinite(picture).all() and not any(torch.equal(picture, other) for other in pictures[:number])
    assert torch.equal(plain, run(flux, positive, negative, (17, 23)))
    assert KEY not in positive[0][1]


def test_strength_zero_is_bit_identical(flux, clip, dsm, clip_vision):
    positive, negative = cond(clip, "alice and bob dance"), cond(clip, "")
    model, modulated = apply(flux, positive, dsm, clip_vision, strengths=(0.0, 0.0))
    assert torch.equal(run(flux, positive, negative), run(model, modulated, negative))


def test_a_fresh_adapter_is_bit_identical(flux, clip, clip_vision, tmp_path):
    write_dsm(tmp_path / "a.safetensors", fresh_dsm(CONFIG, 0), CONFIG)
    positive, negative = cond(clip, "alice and bob dance"), cond(clip, "")
    model, modulated = apply(flux, positive, load_dsm(tmp_path / "a.safetensors"), clip_vision)
    assert torch.equal(run(flux, positive, negative), run(model, modulated, negative))


def test_who_is_in_the_cast_matters(flux, clip, dsm, clip_vision):
    positive = cond(clip, "alice and bob dance")
    _, both = apply(flux, positive, dsm, clip_vision)
    _, turned = apply(flux, positive, dsm, clip_vision, cast=Cast(CAST.subjects[::-1]))
    _, one = apply(flux, positive, dsm, clip_vision, cast=Cast(CAST.subjects[:1]))
    assert not torch.allclose(both[0][0], turned[0][0]) and not torch.allclose(both[0][0], one[0][0])


def test_every_entry_of_a_conditioning_has_its_own_offset(flux, clip, dsm, clip_vision):
    entries = cond(clip, "alice dances") + cond(clip, "a much longer prompt in which bob sleeps in the shade")
    entries[0][1]["end_percent"] = 0.5
    _, modulated = apply(flux, entries, dsm, clip_vision)
    for number, entry in enumerate(modulated):
        _, alone = apply(flux, entries[number : number + 1], dsm, clip_vision)
        assert torch.equal(entry[0], alone[0][0]) and torch.equal(entry[1][KEY], alone[0][1][KEY])
    assert modulated[0][1]["end_percent"] == 0.5


def test_per_item_uses_the_spans_of_the_prompt(flux, clip, dsm, clip_vision):
    positive = cond(clip, "alice and bob dance")
    length = positive[0][0].shape[1]
    _, plain = apply(flux, positive, dsm, clip_vision)
    _, without_spans = apply(flux, positive, dsm, clip_vision, per_item=True)
    assert torch.equal(plain[0][1][KEY], without_spans[0][1][KEY])
    positive[0][1][SPANS_KEY] = {"bob": [(3, 4)], "alice": [(1, 2)], "nobody": [(0, 1)]}
    _, switched_off = apply(flux, positive, dsm, clip_vision)
    assert torch.equal(plain[0][1][KEY], switched_off[0][1][KEY])
    _, per_item = apply(flux, positive, dsm, clip_vision, per_item=True)
    hidden = hidden_states(clip_vision, CAST, CONFIG.clip_layers)
    allowed = item_mask([[(1, 2)], [(3, 4)]], length, hidden.shape[1] * hidden.shape[2])
    torch.testing.assert_close(per_item[0][1][KEY], dsm.model.trunk(positive[0][0], hidden, allowed))
    same = torch.isclose(plain[0][1][KEY], per_item[0][1][KEY], atol=1e-5).all(dim=-1)[0].tolist()
    assert same == [token not in (1, 3) for token in range(length)]


@pytest.mark.parametrize("span", [(3, 99), (-1, 2), (4, 4), (5, 2)])
def test_spans_that_do_not_fit(flux, clip, dsm, clip_vision, span):
    positive = cond(clip, "alice and bob dance")
    positive[0][1][SPANS_KEY] = {"alice": [span]}
    with pytest.raises(InputError, match="item spans do not fit its"):
        apply(flux, positive, dsm, clip_vision, per_item=True)


def test_a_model_that_is_not_flux(clip, dsm, clip_vision):
    unet = {"image_size": 32, "in_channels": 4, "model_channels": 32, "out_channels": 4, "num_res_blocks": [1]}
    unet |= {"channel_mult": [1], "transformer_depth": [0], "transformer_depth_output": [0, 0], "num_heads": 1}
    config = comfy.supported_models.SD15(
        {**unet, "transformer_depth_middle": -1, "context_dim": 32, "use_spatial_transformer": True}
    )
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(config.get_model({}), load_device=cpu, offload_device=cpu)
    with pytest.raises(InputError, match=r"DSM, model: it is a BaseModel model; connect a FLUX model\."):
        apply(model, cond(clip, "a"), dsm, clip_vision)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"model_width": 128}, "width 128, 2 + 6 blocks and text width 384, this one has width 256, 2 + 6 blocks"),
        ({"double_blocks": 3}, "width 256, 3 + 6 blocks"),
        ({"single_blocks": 7}, "width 256, 2 + 7 blocks"),
        ({"text_width": 4096}, "text width 4096"),
        ({"clip_width": 64}, "clip_vision: it has 6 layers of width 32, the adapter was trained with 6 of 64"),
        ({"clip_depth": 24}, "clip_vision: it has 6 layers of width 32, the adapter was trained with 24 of 32"),
        ({"subjects": 1}, "cast: it has 2 subjects, this adapter tells 1 apart"),
    ],
)
def test_an_adapter_of_another_width(flux, clip, clip_vision, tmp_path, change, sentence):
    config = dataclasses.replace(CONFIG, **change)
    write_dsm(tmp_path / "a.safetensors", fresh_dsm(config, 0), config)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        apply(flux, cond(clip, "a"), load_dsm(tmp_path / "a.safetensors"), clip_vision)
    assert str(error.value).startswith("DSM, ") and "\n" not in str(error.value)


def test_other_inputs_that_will_not_do(flux, clip, dsm, clip_vision):
    positive = cond(clip, "a")
    with pytest.raises(InputError, match="cast: it is empty; add a subject"):
        apply(flux, positive, dsm, clip_vision, cast=Cast(()))
    with pytest.raises(InputError, match="conditioning: its text is 8 wide, the adapter reads 384"):
        apply(flux, [[torch.zeros(1, 3, 8), {}]], dsm, clip_vision)
    model, once = apply(flux, positive, dsm, clip_vision)
    with pytest.raises(InputError, match="conditioning: it went through DSM before"):
        apply(model, once, dsm, clip_vision)
    with pytest.raises(InputError, match="model: it already carries another DSM adapter"):
        apply(model, positive, load_dsm(dsm.cached_patcher_init[1][0]), clip_vision)


def test_two_prompts_on_one_model(flux, clip, dsm, clip_vision):
    """Chained for two regional prompts with casts of their own."""
    model, first = apply(flux, cond(clip, "alice dances"), dsm, clip_vision, cast=Cast(CAST.subjects[:1]))
    again, second = apply(model, cond(clip, "bob sleeps"), dsm, clip_vision, cast=Cast(CAST.subjects[1:]))
    assert again is model and torch.isfinite(run(again, first + second, cond(clip, ""))).all()


def test_an_interrupt_while_looking_at_the_cast(flux, clip, dsm, clip_vision):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        apply(flux, cond(clip, "a"), dsm, clip_vision)


def test_the_loader_finds_what_is_in_its_folder(folder):
    write_dsm(folder / "mine.safetensors", fresh_dsm(CONFIG, 0), CONFIG)
    choices: Any = EnsembleDSMLoader.define_schema().inputs[0]
    assert choices.options == ["mine.safetensors"]
    assert EnsembleDSMLoader.validate_inputs("mine.safetensors") is True
    assert EnsembleDSMLoader.validate_inputs() is True  # linked
    loaded: Any = EnsembleDSMLoader.execute("mine.safetensors").result
    assert loaded[0].model.config == CONFIG
    before = EnsembleDSMLoader.fingerprint_inputs("mine.safetensors")
    os.utime(folder / "mine.safetensors", (1, 1))
    assert EnsembleDSMLoader.fingerprint_inputs("mine.safetensors") != before


@pytest.mark.parametrize("name", ["gone.safetensors", "../mine.safetensors", "/etc/passwd", ""])
def test_the_loader_refuses_what_is_not(folder, name):
    (folder.parent / "mine.safetensors").write_bytes(b"secret")
    message = EnsembleDSMLoader.validate_inputs(name)
    assert (
        message
        == f"Load DSM, dsm_name: there is no '{name}' in models/ensemble_dsm; put the adapter's file there or"
        + (" choose one of: none is there.")
    )
    with pytest.raises(InputError, match="there is no"):
        EnsembleDSMLoader.execute(name)


def test_the_loader_passes_on_what_is_wrong_with_a_file(folder):
    (folder / "cut.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError) as error:
        EnsembleDSMLoader.execute("cut.safetensors")
    assert str(error.value) == (
        "Load DSM, dsm_name: 'cut.safetensors' will not do: it is no whole safetensors file; download or copy it again."
    )


def test_the_contract():
    loader, node = EnsembleDSMLoader.define_schema(), EnsembleDSM.define_schema()
    assert (loader.node_id, [i.id for i in loader.inputs]) == ("EnsembleDSMLoader", ["dsm_name"])
    names = ["model", "conditioning", "dsm", "cast", "clip_vision", "global_strength", "layer_strength"]
    assert (node.node_id, [i.id for i in node.inputs]) == ("EnsembleDSM", [*names, "per_item"])
    assert [output.display_name for output in node.outputs] == ["model", "conditioning"]
    assert all(entry.tooltip for entry in [*loader.inputs, *node.inputs])
