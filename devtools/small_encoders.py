"""Encoders of random weights, of Transformers' own classes and as small as they get, laid out as the published folders are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

WIDTH = 32
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _offline() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _lively(model: Any) -> Any:
    """Weights large enough that what a model sees makes a difference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def write_small_dino(folder: Path, side: int = 32) -> Path:
    """DINO v1 as published: a ViT whose own preprocessing squashes pictures."""
    _offline()
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    model = ViTModel(ViTConfig(**SMALL, image_size=side, patch_size=8), add_pooling_layer=False)
    _lively(model).save_pretrained(folder)
    processor: Any = ViTImageProcessor(size={"height": side, "width": side}, **IMAGENET)
    processor.save_pretrained(folder)
    return folder


def write_small_dinov2(folder: Path) -> Path:
    """DINOv2 as published: trained on larger pictures than it is shown."""
    _offline()
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=WIDTH, num_attention_heads=2, num_hidden_layers=2, image_size=56, patch_size=14)
    _lively(Dinov2Model(config)).save_pretrained(folder)
    processor: Any = BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, resample=3, **IMAGENET
    )
    processor.save_pretrained(folder)
    return folder


def write_small_clip(folder: Path, safetensors: bool = True) -> Path:
    """CLIP with its real tokenizer, which ComfyUI brings."""
    _offline()
    import comfy.sd1_clip
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    tokenizer: Any = CLIPTokenizer.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")
    text = {**SMALL, "max_position_embeddings": 77, "vocab_size": len(tokenizer), "eos_token_id": 49407}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    model = _lively(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)))
    model.save_pretrained(folder)
    if not safetensors:  # as the oldest of the published folders are
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder)
    processor: Any = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def write_small_gme(folder: Path) -> Path:
    """A Qwen2-VL with its real tokenizer, which ComfyUI brings; its config names code of its own, as GME's does."""
    _offline()
    import json

    import comfy.text_encoders.qwen_image
    from transformers import (
        AutoTokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizers = Path(comfy.text_encoders.qwen_image.__file__).parent / "qwen25_tokenizer"
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizers)
    text = {**SMALL, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": WIDTH, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        **{
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
            for name, token in (
                ("image", "image_pad"),
                ("video", "video_pad"),
                ("vision_start", "vision_start"),
                ("vision_end", "vision_end"),
            )
        },
    )
    _lively(Qwen2VLForConditionalGeneration(config)).save_pretrained(folder)
    Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor()).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written["auto_map"] = {"AutoModel": "modeling_gme_qwen2vl.GmeQwen2VL"}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def write_small_owl(folder: Path) -> Path:
    """OWLv2, which finds what words say, with CLIP's tokenizer."""
    _offline()
    import comfy.sd1_clip
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    tokenizers = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    tokenizer: Any = CLIPTokenizer.from_pretrained(tokenizers, model_max_length=16)
    text = {**SMALL, "max_position_embeddings": 16, "vocab_size": len(tokenizer)}
    vision = {**SMALL, "image_size": 64, "patch_size": 16}
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=WIDTH))
    _lively(model).save_pretrained(folder)
    images: Any = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def write_small_grounding_dino(folder: Path) -> Path:
    """GroundingDINO with a tokenizer of a few words."""
    _offline()
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "man", "red", "coat", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer: Any = BertTokenizer(str(folder / "vocab.txt"))
    sizes: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "out_indices": [2, 3, 4]}
    backbone = SwinConfig(image_size=64, embed_dim=8, **sizes)
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config={**SMALL, "model_type": "bert", "vocab_size": 2000},
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=12,
        num_feature_levels=4,
    )
    _lively(GroundingDinoForObjectDetection(config)).save_pretrained(folder)
    images: Any = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def write_small_face_network(path: Path, side: int = 112) -> Path:
    """A face network that is one matrix; it needs the package onnx."""
    import numpy as np
    import onnx  # pyright: ignore[reportMissingImports]
    from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

    matrix = np.random.default_rng(0).normal(size=(3 * side * side, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["input.1"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["683"]),
    ]
    graph = helper.make_graph(
        nodes,
        "face",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["None", 3, side, side])],
        [helper.make_tensor_value_info("683", TensorProto.FLOAT, ["None", 16])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path
