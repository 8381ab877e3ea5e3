"""SAM through the pack's loader against the published library with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from comfyui_ensemble.models_info.sam import SAMError, SAMNetwork, _check_shapes, _read_config, load_sam
from comfyui_ensemble.models_info.sam_masks import look_at, prompted_logits
from devtools.small_sam import random_sam

library: Any = pytest.importorskip("segment_anything")

SHAPES = [(100, 73), (16, 16), (16, 300), (128, 128), (300, 200)]
BOX = (3.0, 4.0, 11.0, 13.0)
PROMPTS = [
    {"box": BOX},
    {"points": [(5.0, 6.0)]},
    {"points": [(5.0, 6.0), (7.5, 9.0)]},
    {"points": [(5.0, 6.0)], "not_points": [(1.0, 12.0)]},
    {"box": BOX, "points": [(5.0, 6.0)], "not_points": [(4.0, 5.0)]},
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return random_sam()


@pytest.fixture(scope="module", params=["any name.pth", "other.safetensors"])
def file(request, theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(theirs.state_dict(), tmp_path_factory.mktemp("sam") / request.param)


def written(weights: Any, path: Path) -> Path:
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height + width))


def their_logits(theirs: Any, image: torch.Tensor, box=None, points=(), not_points=()) -> tuple[np.ndarray, Any]:
    predictor = library.SamPredictor(theirs)
    predictor.set_image((image * 255).round().byte().numpy())
    marks = np.array([*points, *not_points]) if points or not_points else None
    masks, quality, _ = predictor.predict(
        point_coords=marks,
        point_labels=None if marks is None else np.array([1] * len(points) + [0] * len(not_points)),
        box=None if box is None else np.array(box),
        multimask_output=box is None and len(points) + len(not_points) == 1,
        return_logits=True,
    )
    return masks[quality.argmax()], predictor.features


@pytest.mark.parametrize("shape", SHAPES)
def test_features_and_masks_equal_the_library(file, theirs, shape):
    sam, image = load_sam(file), picture(*shape)
    seen = look_at(sam, image)
    for prompt in PROMPTS:
        expected, features = their_logits(theirs, image, **prompt)
        torch.testing.assert_close(seen.features, features, atol=1e-4, rtol=1e-4)
        logits = prompted_logits(sam, seen, **prompt)
        assert logits.shape == shape and logits.dtype == torch.float32
        np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    assert np.ptp(expected) > 0.01


def test_windows_that_do_not_divide_and_whole_ones(tmp_path):
    """Grids whose windows need padding, and windows as large as the grid."""
    for grid, window in [(7, 3), (6, 6), (4, 2)]:
        theirs = random_sam(grid, window, seed=grid)
        sam = load_sam(written(theirs.state_dict(), tmp_path / f"{grid}.pth"))
        image = picture(40, 50)
        expected, features = their_logits(theirs, image, points=[(20.0, 20.0)])
        seen = look_at(sam, image)
        torch.testing.assert_close(seen.features, features, atol=1e-4, rtol=1e-4)
        logits = prompted_logits(sam, seen, points=[(20.0, 20.0)])
        np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    "size, parameters, width, blocks, whole",
    [
        ("vit_b", 93_735_472, 768, 12, [2, 5, 8, 11]),
        ("vit_l", 312_342_832, 1024, 24, [5, 11, 17, 23]),
        ("vit_h", 641_090_608, 1280, 32, [7, 15, 23, 31]),
    ],
)
def test_the_published_sizes_are_told_by_their_weights(size, parameters, width, blocks, whole):
    with torch.device("meta"):
        published = library.sam_model_registry[size]()
    weights = published.state_dict()
    config = _read_config(weights)
    assert (config.encoder.width, config.encoder.grid, config.encoder.image_size) == (width, 64, 1024)
    assert [64 if number in whole else 14 for number in range(blocks)] == list(config.encoder.windows)
    ours = SAMNetwork(config, torch.float32, "meta", comfy.ops.manual_cast)
    _check_shapes(weights, ours)
    assert sum(value.numel() for value in ours.parameters()) == parameters


def test_half_precision_where_the_host_says_so(file, theirs, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *arguments, **others: True)
    sam, image = load_sam(file), picture(100, 73)
    network: Any = sam.model
    kinds = {name: value.dtype for name, value in network.state_dict().items()}
    assert {kind for name, kind in kinds.items() if name.startswith("image_encoder.")} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if not name.startswith("image_encoder.")} == {torch.float32}
    expected, features = their_logits(theirs, image, box=BOX)
    seen = look_at(sam, image)
    assert float(torch.nn.functional.cosine_similarity(seen.features.flatten(), features.flatten(), dim=0)) > 0.99
    assert np.corrcoef(prompted_logits(sam, seen, box=BOX).flatten(), expected.flatten())[0, 1] > 0.98


def test_a_file_in_half_precision(theirs, tmp_path):
    weights = {name: value.half() for name, value in theirs.state_dict().items()}
    sam, image = load_sam(written(weights, tmp_path / "half.safetensors")), picture(100, 73)
    assert {value.dtype for value in sam.model.state_dict().values()} == {torch.float32}  # on a CPU
    expected, _ = their_logits(theirs, image, box=BOX)
    logits = prompted_logits(sam, look_at(sam, image), box=BOX)
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


def test_weights_partly_left_behind(file):
    """The host leaves layers on the offload device when memory is short, and casts them one by one."""
    sam, image = load_sam(file), picture(100, 73)
    whole = prompted_logits(sam, look_at(sam, image), box=BOX)
    sam.detach()
    sam.load(sam.load_device, lowvram_model_memory=1)
    network: Any = sam.model
    assert network.model_lowvram
    left = [name for name, layer in network.named_modules() if hasattr(layer, "prev_comfy_cast_weights")]
    assert all(name.startswith("image_encoder.") for name in left) and len(left) > 20
    assert torch.equal(whole, prompted_logits(sam, look_at(sam, image), box=BOX))


def test_it_is_one_model_to_the_memory_manager(file):
    sam = load_sam(file)
    look_at(sam, picture(30, 30))
    assert sam in [loaded.model for loaded in comfy.model_management.current_loaded_models]
    assert sam.clone().model is sam.model
    assert load_sam(file, disable_dynamic=True).is_dynamic() is False


class Spy:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(theirs, tmp_path):
    trace = tmp_path / "was here"
    path = written({**theirs.state_dict(), "spy": Spy(trace)}, tmp_path / "bad.pth")
    with pytest.raises(SAMError, match="no checkpoint of weights alone and was not opened"):
        load_sam(path)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_file_that_is_cut_off(theirs, tmp_path, name):
    path = written(theirs.state_dict(), tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SAMError, match="it is no whole checkpoint; download or copy it again"):
        load_sam(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_that_is_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SAMError, match=r"it is no (whole )?checkpoint"):
        load_sam(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("image_encoder.pos_embed"),
        lambda weights: weights.pop("mask_decoder.mask_tokens.weight"),
        lambda weights: weights.pop("image_encoder.blocks.1.attn.rel_pos_h"),
        lambda weights: weights.pop("image_encoder.neck.2.weight"),
        lambda weights: weights.update({"mask_decoder.hf_token.weight": torch.zeros(1, 32)}),
        lambda weights: weights.update({"image_encoder.blocks.0.attn.qkv.weight": torch.zeros(3, 32)}),
        lambda weights: weights.update({"image_encoder.patch_embed.proj.weight": "text"}),
        lambda weights: weights.update({name: torch.zeros(()) for name in list(weights)}),
        lambda weights: [weights.pop(name) for name in list(weights) if name.startswith("image_encoder.")],
    ],
)
def test_another_network(theirs, tmp_path, change):
    weights = dict(theirs.state_dict())
    change(weights)
    with pytest.raises(SAMError) as error:
        load_sam(written(weights, tmp_path / "other.pth"))
    assert "is not as in the original SAM" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[torch.zeros(3)], torch.zeros(3), {"state_dict": [1]}])
def test_what_is_no_checkpoint(tmp_path, content):
    with pytest.raises(SAMError, match=r"it is no whole checkpoint|it holds no weights; choose another file"):
        load_sam(written(content, tmp_path / "list.pth"))
