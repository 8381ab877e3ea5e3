"""Load SAM and SAM Segment as the host calls them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy_extras.nodes_bounding_boxes import CreateBoundingBoxes

from comfyui_ensemble.attention_patches.anchor_align import mask_box
from comfyui_ensemble.models_info.registry import SAM_VIT_B, SAMS, register_folders
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.sam import EnsembleSAMLoader, EnsembleSAMSegment
from devtools.small_sam import random_sam

SIDE = 256
SPOT = (96, 48, 176, 208)
SPOT_BOX = {"x": 90, "y": 40, "width": 90, "height": 170}


def lit(
    box: tuple[int, int, int, int] = SPOT, height: int = SIDE, width: int = SIDE, channels: int = 3
) -> torch.Tensor:
    picture = 0.4 * torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(0))
    left, top, right, bottom = box
    picture[:, top:bottom, left:right] += 0.5
    return picture


def segment(sam, image, **inputs) -> torch.Tensor:
    result: Any = EnsembleSAMSegment.execute(sam, image, **inputs).result
    (mask,) = result
    assert mask.dtype == torch.float32 and set(mask.unique().tolist()) <= {0.0, 1.0}
    return mask


def refused(sam, image, **inputs) -> str:
    with pytest.raises(InputError) as caught:
        EnsembleSAMSegment.execute(sam, image, **inputs)
    message = str(caught.value)
    assert message.startswith("SAM Segment, ") and message.endswith(".") and "\n" not in message
    return message.removeprefix("SAM Segment, ")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/sams."""
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, SAMS, ([str(models)], {".safetensors", ".pth"}))
    return models


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("segment_anything")
    path = tmp_path_factory.mktemp("sam") / "random.pth"
    torch.save(random_sam().state_dict(), path)
    from comfyui_ensemble.models_info.sam import load_sam

    return load_sam(path)


def test_the_subject_without_a_prompt(bright_sam):
    (mask,) = segment(bright_sam, lit())
    assert mask_box(mask) == SPOT


def test_a_batch_and_an_alpha_channel(bright_sam):
    boxes = [SPOT, (32, 64, 112, 240)]
    masks = segment(bright_sam, torch.cat([lit(box, channels=4) for box in boxes]))
    assert [mask_box(mask) for mask in masks] == boxes


def test_not_sure_is_one_sentence(random_model):
    assert refused(random_model, lit()) == (
        "image: SAM is not sure of any subject in it; connect a box or write a point."
    )


@pytest.mark.parametrize("channels", [3, 4])
def test_a_box_and_points_reach_the_model(random_model, channels):
    """Random weights: other prompts give other masks."""
    image = lit(channels=channels)
    prompts = [
        {"box": SPOT_BOX},
        {"box": {**SPOT_BOX, "x": 10, "width": 30}},
        {"point": "100, 60"},
        {"point": "10, 200"},
        {"point": "100, 60", "negative_point": "10, 200"},
        {"box": SPOT_BOX, "point": "100, 60"},
        {"box": SPOT_BOX, "negative_point": "100, 60"},
    ]
    masks = [segment(random_model, image, **prompt) for prompt in prompts]
    assert all(mask.shape == (1, SIDE, SIDE) for mask in masks)
    assert not any(torch.equal(one, other) for number, one in enumerate(masks) for other in masks[:number])


@pytest.mark.parametrize("text", ["100, 60\n10 200", "100 60; 10,200", '[{"x": 100, "y": 60}, {"x": 10, "y": 200}]'])
def test_points_are_written_in_several_ways(random_model, text):
    assert torch.equal(
        segment(random_model, lit(), point=text), segment(random_model, lit(), point="100.0, 60.0\n10.0, 200.0\n")
    )


def test_boxes_come_in_every_form_of_the_host(random_model):
    other = {"x": 10, "y": 100, "width": 60.5, "height": 90, "score": 0.7}
    image = lit()
    both = segment(random_model, image, box=[SPOT_BOX, other])
    assert both.shape == (2, SIDE, SIDE)
    for number, box in enumerate([SPOT_BOX, other]):
        for form in (box, [box], [[box]]):
            assert torch.equal(segment(random_model, image, box=form)[0], both[number])
    assert torch.equal(segment(random_model, image, box=[[SPOT_BOX, other]]), both)
    pictures = torch.cat([image, image.flip(1)])
    each = segment(random_model, pictures, box=[[SPOT_BOX], [SPOT_BOX, other]])
    assert each.shape[0] == 3 and torch.equal(each[0], both[0])
    assert torch.equal(segment(random_model, pictures, box=SPOT_BOX), each[:2])


def test_boxes_drawn_in_the_hosts_editor(random_model):
    drawn: Any = CreateBoundingBoxes.execute(SIDE, SIDE, editor_state=[{**SPOT_BOX, "metadata": {}}]).result
    assert torch.equal(segment(random_model, lit(), box=drawn[1]), segment(random_model, lit(), box=SPOT_BOX))


def test_a_box_is_cut_at_the_edge_of_the_picture(random_model):
    over = {"x": -20, "y": 200, "width": 100, "height": 300}
    inside = {"x": 0, "y": 200, "width": 80, "height": 56}
    assert torch.equal(segment(random_model, lit(), box=over), segment(random_model, lit(), box=inside))


@pytest.mark.parametrize("shape", [(16, 16), (80, 8000), (8000, 80), (17, 23)])
def test_small_and_long_pictures(random_model, shape):
    image = torch.rand(1, *shape, 3)
    assert segment(random_model, image, point="3, 3").shape == (1, *shape)


def test_a_picture_like_a_thread_is_refused(random_model):
    assert refused(random_model, torch.rand(1, 3, 8000, 3), point="3, 1") == (
        "image: a picture of 8000 x 3 pixels is too narrow for SAM; crop it."
    )


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"box": []}, "box: there is none for picture 1; draw one or disconnect the input."),
        ({"box": [[]]}, "box: there is none for picture 1;"),
        ({"box": "boxes"}, "box: there is none for picture 1;"),
        ({"box": [[SPOT_BOX], [SPOT_BOX]]}, "box: boxes of 2 pictures came for 1; use those found in these pictures."),
        ({"box": {"x": 1, "y": 2}}, "box: box 1 lacks x, y, width or height;"),
        ({"box": [SPOT_BOX, {**SPOT_BOX, "x": "left"}]}, "box: box 2 lacks x, y, width or height;"),
        (
            {"box": {**SPOT_BOX, "x": 300}},
            "box: box 1 (90 x 170 at (300, 40)) covers nothing of the 256 x 256 picture;",
        ),
        ({"box": {**SPOT_BOX, "width": -5}}, "box: box 1 (-5 x 170 at (90, 40)) covers nothing of"),
        ({"box": {**SPOT_BOX, "height": float("nan")}}, "box: box 1 (90 x nan at (90, 40)) covers nothing of"),
        ({"point": "here"}, "point: 'here' is no point; write x, y in pixels, one point a line."),
        ({"point": "1, 2, 3"}, "point: '1, 2, 3' is no point;"),
        ({"point": "[" * 100_000}, "point: '[[[["),
        ({"point": '[{"x": 1e400, "y": 1}, {"x": ' + "9" * 400 + ', "y": 1}]'}, "point: '[{"),
        ({"point": "[1, 2]"}, "point: '[1, 2]' is no point;"),
        ({"point": "nan, 2"}, "point: (nan, 2) lies outside the 256 x 256 picture;"),
        ({"point": "256, 2"}, "point: (256, 2) lies outside the 256 x 256 picture; count pixels from its upper left"),
        ({"point": "5, 5", "negative_point": "-1, 2"}, "negative_point: (-1, 2) lies outside the 256 x 256 picture;"),
        ({"negative_point": "5, 5"}, "negative_point: alone it says only what is not meant; write a point or"),
        ({"box": [SPOT_BOX, SPOT_BOX], "point": "5, 5"}, "point: it cannot belong to 2 boxes at once; connect one box"),
    ],
)
def test_bad_prompts_are_one_sentence(random_model, inputs, message):
    assert refused(random_model, lit(), **inputs).startswith(message)


def test_points_are_checked_before_the_run():
    assert EnsembleSAMSegment.validate_inputs() is True  # linked
    assert EnsembleSAMSegment.validate_inputs(point="1, 2", negative_point="") is True
    assert EnsembleSAMSegment.validate_inputs(point="here", negative_point="") == (
        "SAM Segment, point: 'here' is no point; write x, y in pixels, one point a line."
    )
    assert "negative_point: 'x' is no point" in str(EnsembleSAMSegment.validate_inputs(point="", negative_point="x"))


def test_an_interrupt(bright_sam):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        segment(bright_sam, lit())
    assert mask_box(segment(bright_sam, lit())[0]) == SPOT


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
def test_the_loader_finds_what_is_in_its_folder(folder, name):
    pytest.importorskip("segment_anything")
    weights = {key: value.contiguous() for key, value in random_sam().state_dict().items()}
    if name.endswith(".pth"):
        torch.save(weights, folder / name)
    else:
        from safetensors.torch import save_file

        save_file(weights, folder / name)
    (folder / "notes.txt").write_text("no model")
    choices: Any = EnsembleSAMLoader.define_schema().inputs[0]
    assert choices.options == [name]
    assert EnsembleSAMLoader.validate_inputs(name) is True and EnsembleSAMLoader.validate_inputs() is True
    result: Any = EnsembleSAMLoader.execute(name).result
    assert segment(result[0], lit(), box=SPOT_BOX).any()
    before = EnsembleSAMLoader.fingerprint_inputs(name)
    os.utime(folder / name, (1, 1))
    assert EnsembleSAMLoader.fingerprint_inputs(name) != before


def test_without_a_file_it_says_where_to_get_one(folder):
    assert EnsembleSAMLoader.validate_inputs("sam_vit_b_01ec64.pth") == (
        "Load SAM, sam_name: there is no 'sam_vit_b_01ec64.pth' in models/sams; get sam_vit_b_01ec64.pth from"
        " github.com/facebookresearch/segment-anything."
    )


@pytest.mark.parametrize("name", ["gone.pth", "../secret.pth", "/etc/passwd", ""])
def test_the_loader_refuses_what_is_not_there(folder, name):
    (folder.parent / "secret.pth").write_bytes(b"secret")
    (folder / "here.pth").write_bytes(b"")
    message = f"Load SAM, sam_name: there is no '{name}' in models/sams; choose one of: here.pth."
    assert EnsembleSAMLoader.validate_inputs(name) == message
    with pytest.raises(InputError, match="there is no"):
        EnsembleSAMLoader.execute(name)


def test_the_loader_passes_on_what_is_wrong_with_a_file(folder):
    pytest.importorskip("segment_anything")
    (folder / "cut.safetensors").write_bytes(b"12345678")
    with pytest.raises(InputError) as error:
        EnsembleSAMLoader.execute("cut.safetensors")
    assert str(error.value) == (
        "Load SAM, sam_name: 'cut.safetensors' will not do: it is no whole checkpoint; download or copy it again."
    )


def test_without_the_library_it_says_so(folder, monkeypatch):
    (folder / "a.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ModuleNotFoundError) as error:
        EnsembleSAMLoader.execute("a.pth")
    assert "Load SAM: the Python package segment-anything is not installed; run `pip install segment-anything`" in str(
        error.value
    )


def test_the_folder_is_registered():
    register_folders()
    assert {".pth", ".safetensors"} <= folder_paths.folder_names_and_paths[SAMS][1]
    assert SAM_VIT_B.missing().startswith("sam_vit_b_01ec64.pth is missing: it is needed for cutting subjects out")


def test_the_contract():
    loader, node = EnsembleSAMLoader.define_schema(), EnsembleSAMSegment.define_schema()
    assert (loader.node_id, [entry.id for entry in loader.inputs]) == ("EnsembleSAMLoader", ["sam_name"])
    assert (node.node_id, [entry.id for entry in node.inputs]) == (
        "EnsembleSAMSegment",
        ["sam", "image", "box", "point", "negative_point"],
    )
    assert [output.display_name for output in [*loader.outputs, *node.outputs]] == ["sam", "mask"]
    assert all(entry.tooltip for entry in [*loader.inputs, *node.inputs])
