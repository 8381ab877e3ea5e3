"""Encoders in folders: against Transformers' own processors and models."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from comfyui_ensemble.evaluation import encoders as module
from comfyui_ensemble.evaluation.encoders import HostVision
from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.models_info.registry import CLIP_VIT_B_32, DINO_VIT_S_16, DINOV2_BASE, GME_2B
from devtools.small_encoders import write_small_clip, write_small_dino

TEXTS = ["a cat", "two men in red coats shake hands in a park {at night}"]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    """Of several shapes, odd ones among them, as 8 bits would hold them."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(50, 37), (64, 91), (33, 33), (20, 131)]
    smooth = [torch.rand(1, 3, 6, 7, generator=generator) for _ in shapes]
    grown = [
        torch.nn.functional.interpolate(small, shape, mode="bicubic").clamp(0, 1)
        for small, shape in zip(smooth, shapes, strict=True)
    ]
    return [(picture[0].movedim(0, -1) * 255).round() / 255 for picture in grown]


def load_encoder(folder: Path) -> Any:
    """Of any kind."""
    return module.load_encoder(folder)


def images(pictures: list[torch.Tensor]) -> list[Image.Image]:
    return [Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)) for picture in pictures]


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def pillow_processor(folder: Path):
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, use_fast=False)


def normalised(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy((np.asarray(image) / 255 - MEAN) / STD).float().movedim(-1, 0)


def test_dino_sees_pictures_as_the_papers_show_them(encoders, pictures):
    """Shorter side to 256 / 224 of the model's, the middle cut out: here 37 and 32."""
    from transformers import ViTModel

    folder = encoders / DINO_VIT_S_16.name
    cut = []
    for image in images(pictures):
        width, height = image.size
        short = min(width, height)
        resized = image.resize((int(37 * width / short), int(37 * height / short)), Image.Resampling.BICUBIC)
        left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
        cut.append(normalised(resized.crop((left, top, left + 32, top + 32))))
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    expected = unit(model(pixel_values=torch.stack(cut)).last_hidden_state[:, 0])
    given = load_encoder(folder).pictures(pictures)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    assert (given @ given.T).fill_diagonal_(0).max() < 0.999  # it does look at them


def test_dinov2_is_transformers_own(encoders, pictures):
    from transformers import Dinov2Model

    folder = encoders / DINOV2_BASE.name
    model = Dinov2Model.from_pretrained(folder).eval()
    inputs = pillow_processor(folder)(images(pictures), return_tensors="pt")
    output = model(**inputs)
    given = load_encoder(folder).pictures(pictures)
    torch.testing.assert_close(given, unit(output.last_hidden_state[:, 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(given, unit(output.pooler_output), rtol=0, atol=1e-5)


@pytest.mark.parametrize("safetensors", [True, False])
def test_clip_is_transformers_own(pictures, tmp_path, safetensors):
    """Its logits are the cosines, scaled."""
    from transformers import AutoTokenizer, CLIPModel

    folder = write_small_clip(tmp_path / "clip", safetensors)
    model = CLIPModel.from_pretrained(folder).eval()
    inputs = pillow_processor(folder)(images(pictures), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    expected = model(**inputs, **tokens).logits_per_image / model.logit_scale.exp()
    encoder = load_encoder(folder)
    given = encoder.pictures(pictures) @ encoder.texts(TEXTS).T
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_siglip_is_transformers_own(pictures, tmp_path):
    """Its texts are padded to their full length, and the padding is seen, as it was trained."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel

    write_small_clip(tmp_path / "clip")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "clip" / "tokenizer.json"), pad_token="!", model_max_length=12
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"bos_token_id": 49406, "eos_token_id": 49407}
    model: Any = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8})
    ).eval()
    folder = tmp_path / "siglip"
    for part in (model, tokenizer, SiglipImageProcessor(size={"height": 32, "width": 32})):
        part.save_pretrained(folder)
    inputs = pillow_processor(folder)(images(pictures), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    logits = model(**inputs, input_ids=tokens["input_ids"]).logits_per_image
    expected = (logits - model.logit_bias) / model.logit_scale.exp()
    encoder = load_encoder(folder)
    torch.testing.assert_close(encoder.pictures(pictures) @ encoder.texts(TEXTS).T, expected, rtol=0, atol=1e-5)


def test_a_long_text_is_cut_and_says_so(encoders):
    encoder = load_encoder(encoders / "openai" / CLIP_VIT_B_32.name)
    long = "a red coat " * 60
    assert encoder.cuts(long) and not encoder.cuts(TEXTS[1])
    assert torch.isfinite(encoder.texts([long])).all()


def test_gme_is_the_last_token_of_qwens_own_conversation(encoders, pictures):
    from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

    folder = encoders / GME_2B.name
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = pillow_processor(folder)
    size = {"shortest_edge": 256 * 28 * 28, "longest_edge": 1280 * 28 * 28}

    def state(said: str, **images_kwargs) -> torch.Tensor:
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            + said
            + "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
        )
        inputs = processor(text=[text], return_tensors="pt", **images_kwargs)
        if images_kwargs:
            assert 256 <= int(inputs["image_grid_thw"].prod()) / 4 <= 1280
        return model(**inputs, output_hidden_states=True).hidden_states[-1][:, -1]

    token = "<|vision_start|><|image_pad|><|vision_end|>"
    expected = torch.cat(
        [state(token, images=[image], images_kwargs={"size": size}) for image in images(pictures[:2])]
        + [state(text) for text in TEXTS]
    )
    encoder = load_encoder(folder)
    given = torch.cat([encoder.pictures(pictures[:2]), encoder.texts(TEXTS)])
    torch.testing.assert_close(given, unit(expected), rtol=0, atol=1e-4)
    assert (given @ given.T).fill_diagonal_(0).max() < 0.9999


@pytest.mark.parametrize("name", [DINO_VIT_S_16.name, DINOV2_BASE.name, f"openai/{CLIP_VIT_B_32.name}"])
def test_places_are_the_patches_of_the_squeezed_picture(encoders, pictures, name):
    from transformers import AutoModel

    folder = encoders / name
    side, patches, options = {"dino-vits16": (32, 16, {"add_pooling_layer": False}), "dinov2-base": (28, 4, {})}.get(
        name, (32, 16, {})
    )
    processor = pillow_processor(folder)
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    squeezed = [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) / 255 for image in images(pictures)]
    pixels = torch.stack([torch.from_numpy((values - mean) / std).float().movedim(-1, 0) for values in squeezed])
    model = AutoModel.from_pretrained(folder, **options).eval()
    model = getattr(model, "vision_model", model)
    expected = unit(model(pixel_values=pixels).last_hidden_state[:, -patches:])
    given = load_encoder(folder).places(pictures)
    assert given.shape[1] == patches
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


def test_registers_are_no_places(tmp_path, pictures):
    from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, image_size=28, patch_size=14, num_register_tokens=3
    )
    model = Dinov2WithRegistersModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path / "model"
    )
    assert load_encoder(tmp_path / "model").places(pictures[:1]).shape[1] == 4


def test_comfyuis_own_clip_vision(vision, pictures):
    expected = torch.cat([vision.encode_image(picture[None])["image_embeds"] for picture in pictures])
    torch.testing.assert_close(HostVision(vision).pictures(pictures), unit(expected.float()), rtol=0, atol=1e-6)


def test_many_pictures_are_the_same_as_few(encoders, pictures):
    encoder = load_encoder(encoders / DINO_VIT_S_16.name)
    many = encoder.pictures(pictures * 9)
    torch.testing.assert_close(many, encoder.pictures(pictures).repeat(9, 1), rtol=0, atol=1e-6)


def test_nothing_is_fetched(encoders, pictures, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in (DINO_VIT_S_16.name, f"openai/{CLIP_VIT_B_32.name}"):
        assert load_encoder(encoders / name).pictures(pictures[:1]).isfinite().all()


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_never_run_code(tmp_path):
    folder = write_small_clip(tmp_path / "clip", safetensors=False)
    torch.save({"logit_scale": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(EvaluationError, match="clip cannot be read"):
        load_encoder(folder)
    assert not (tmp_path / "ran").exists()


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2")


def no_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def remove_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if "layer" in name)
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


def unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoModel": "modeling_own.Own"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto}))
    (folder / "modeling_own.py").write_text("raise SystemExit('code of the folder was run')")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_config, "no config.json"),
        (break_config, "names no kind"),
        (no_type, "names no kind"),
        (remove_processor, "cannot be read"),
        (cut_weights, "cannot be read"),
        (remove_weights, "cannot be read"),
        (lose_weight, "lacks weights such as"),
        (other_shape, "cannot be read|lacks weights"),
        (unknown_type, "cannot be read"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_a_damaged_folder_is_told_in_one_sentence(tmp_path, damage, words):
    folder = write_small_dino(tmp_path / "dino")
    damage(folder)
    with pytest.raises(EvaluationError, match=words) as caught:
        load_encoder(folder)
    assert "dino" in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=10, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(EvaluationError, match="bert is a bert model"):
        load_encoder(tmp_path / "bert")
