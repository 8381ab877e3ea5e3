"""The construction's nodes, alone and on a real server."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from PIL import Image

from comfyui_ensemble.models_info.registry import CAPTIONERS, OPENPOSE, SAMS, MissingModelError
from comfyui_ensemble.nodes import training_construction as module
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.training_construction import (
    BESIDE,
    EnsembleBuildTrainingData,
    EnsembleCaptionBoxes,
    EnsembleSameSubjectPairs,
)
from devtools.server import ComfyServer
from devtools.small_florence import write_small_florence

CAPTIONED = "A woman with a dog."
BOXES = "A woman<loc_100><loc_0><loc_499><loc_999>a dog<loc_600><loc_500><loc_900><loc_999>"
LESSONS = {
    "<MORE_DETAILED_CAPTION>": CAPTIONED,
    f"<CAPTION_TO_PHRASE_GROUNDING>{CAPTIONED}": BOXES,
    "<OD>": "dog<loc_601><loc_501><loc_901><loc_998>",
}


def outputs(made: io.NodeOutput) -> tuple:
    assert made.result is not None
    return made.result


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert text.endswith(".") and "\n" not in text
    return text


@pytest.fixture(scope="module")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioners")
    write_small_florence(folder / "small", LESSONS)
    return folder


@pytest.fixture
def with_captioners(captioners, monkeypatch) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, CAPTIONERS, ([str(captioners)], {".safetensors"}))
    folder_paths.filename_list_cache.pop(CAPTIONERS, None)


def outputs_named(node: type[io.ComfyNode]) -> list[str | None]:
    return [output.display_name for output in node.define_schema().outputs]


# Caption with Boxes


@pytest.mark.usefixtures("with_captioners")
def test_captions_boxes_and_categories_of_a_batch():
    assert EnsembleCaptionBoxes.validate_inputs(captioner="small") is True
    captions, boxes, tables = outputs(EnsembleCaptionBoxes.execute(torch.full((2, 100, 200, 3), 0.5), "small"))
    assert captions == [CAPTIONED] * 2 and tables == ["person: A woman\nanimal: a dog"] * 2
    for found in boxes:
        assert [box["label"] for box in found] == ["A woman", "a dog"]
        woman = [found[0][key] for key in ("x", "y", "width", "height")]
        np.testing.assert_allclose(woman, (20.1, 0.05, 79.8, 99.9), atol=1.0)


@pytest.mark.usefixtures("with_captioners")
@pytest.mark.parametrize("name", ["large", "../small", "files", ""])
def test_captioners_that_are_not_there(name):
    with pytest.raises(InputError) as caught:
        EnsembleCaptionBoxes.execute(torch.zeros(1, 32, 32, 3), name)
    assert one_sentence(caught.value).startswith("Caption with Boxes, captioner: ")
    assert EnsembleCaptionBoxes.validate_inputs(captioner=name) == str(caught.value)
    assert EnsembleCaptionBoxes.validate_inputs(captioner=None) is True


# Same-Subject Pairs


def pictures() -> list[torch.Tensor]:
    """Four pictures of two sizes: the third is the first in another place, the fourth is a copy of the second."""
    random = np.random.default_rng(3)
    subjects = [torch.from_numpy(random.random((48, 40, 3), dtype=np.float32)) for _ in range(2)]
    first, third = torch.ones(1, 96, 96, 3), torch.ones(1, 96, 96, 3)
    first[0, 10:58, 12:52], third[0, 20:68, 12:52] = subjects[0], subjects[0]
    return [first, subjects[1][None], third, subjects[1][None] * 0.9 + 0.05]


def test_pairs_and_what_is_no_pair(vision):
    given = pictures()
    first, second, table = outputs(EnsembleSameSubjectPairs.execute(given, [vision], [0.2], [1]))
    assert len(first) == len(second) == 1 and table.startswith("1, 3: 0.")
    assert torch.equal(first[0], given[0]) and torch.equal(second[0], given[2])
    _, _, table = outputs(EnsembleSameSubjectPairs.execute(given, [vision], [0.2], [1], [1.0]))
    assert [line.split(":")[0] for line in table.splitlines()] == ["1, 3", "2, 4"]


def test_pairs_that_cannot_be(vision):
    with pytest.raises(InputError, match="Same-Subject Pairs, image: it is a single picture"):
        EnsembleSameSubjectPairs.execute([torch.zeros(1, 8, 8, 3)], [vision], [0.5])
    with pytest.raises(InputError, match=r"Same-Subject Pairs, threshold: no two pictures reach 1; lower it\."):
        EnsembleSameSubjectPairs.execute(pictures(), [vision], [1.0])


# Build Training Data


def draw(folder: Path) -> None:
    """Two pictures of one bright square each, described beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 80, (256, 256, 3)).astype(np.uint8)
        left = 16 * (2 + 5 * number)
        pixels[64:192, left : left + 96] = (230, 200, 180)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        words = {"caption": "A woman.", "phrases": [["A woman", [left, 64, left + 96, 192]]]}
        (folder / f"{number}.json").write_text(json.dumps(words))


def build_workflow(folder: str, name: str) -> dict:
    nodes = {
        "1": ("EnsembleSAMLoader", {"sam_name": "bright.pth"}),
        "2": ("EnsembleTinyCLIPVision", {}),
        "3": (
            "EnsembleBuildTrainingData",
            {"folder": folder, "name": name, "captioner": BESIDE, "sam": ["1", 0], "clip_vision": ["2", 0]}
            | {"poses": False, "config": '{"pair_similarity": 0.9, "duplicates": 1.0}'},
        ),
        "4": ("EnsembleTrainingData", {"manifest": ["3", 0], "resolution": 128, "reference_resolution": 64, "seed": 0}),
        "5": ("EnsembleTrainingData", {"manifest": ["3", 1], "resolution": 128, "reference_resolution": 64, "seed": 0}),
        "6": ("PreviewAny", {"source": ["4", 0]}),
        "7": ("PreviewAny", {"source": ["5", 0]}),
        "8": ("PreviewAny", {"source": ["3", 1]}),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def test_a_folder_becomes_data_that_a_training_takes(server: ComfyServer, bright_sam):
    (server.models / SAMS).mkdir(exist_ok=True)
    shutil.copy(bright_sam.cached_patcher_init[1][0], server.models / SAMS / "bright.pth")
    draw(server.data / "input" / "women")
    history = server.run(build_workflow("women", "of women"))
    texts = [text for output in history["outputs"].values() for text in output.get("text", ())]
    assert any("manifest.jsonl: 2 rows (2 person)" in text and "pairs.jsonl: 1 pairs" in text for text in texts)
    assert "of women/pairs.jsonl" in texts
    folder = server.data / "input" / "of women"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [row["subjects"][0]["box"] for row in rows] == [[32, 64, 128, 192], [112, 64, 208, 192]]
    info = server.get("/object_info/EnsembleBuildTrainingData")["EnsembleBuildTrainingData"]["input"]["required"]
    choices = info["folder"][1]["options"]
    assert "women" in choices and not any(choice.startswith("of women") for choice in choices)


@pytest.fixture
def input_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    draw(tmp_path / "women")
    return tmp_path


def execute(bright_sam, vision, **changes):
    given = {
        "folder": "women",
        "name": "data",
        "captioner": BESIDE,
        "sam": bright_sam,
        "clip_vision": vision,
        "poses": False,
    }
    return EnsembleBuildTrainingData.execute(**(given | changes))


def test_it_runs_again_when_a_picture_changes(input_folder, bright_sam, vision):
    manifest, _, text = outputs(execute(bright_sam, vision))
    assert manifest == "data/manifest.jsonl" and "2 rows" in text
    before = EnsembleBuildTrainingData.fingerprint_inputs(folder="women", name="data")
    assert before == EnsembleBuildTrainingData.fingerprint_inputs(folder="women", name="data", config="")
    (input_folder / "women" / "2.png").write_bytes((input_folder / "women" / "0.png").read_bytes())
    assert before != EnsembleBuildTrainingData.fingerprint_inputs(folder="women", name="data")
    assert EnsembleBuildTrainingData.fingerprint_inputs(folder="../women", name="data") is None


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"folder": "men"}, "Build Training Data, folder: there is no folder 'men' in ComfyUI's input folder"),
        ({"folder": "../women"}, "Build Training Data, folder: there is no folder '../women'"),
        ({"name": "a/b"}, "Build Training Data, name: 'a/b' cannot be a folder's name"),
        ({"name": " "}, "Build Training Data, name: it is empty; give the data a name"),
        ({"name": "women"}, "Build Training Data, name: the pictures lie in"),
        ({"captioner": "x"}, "Build Training Data, captioner: there is no captioner 'x'"),
        ({"config": '{"colours": 2}'}, "Build Training Data, config: colours is 2.0; it must lie between 0 and 1"),
        ({"config": '{"min_side": 999}'}, "Build Training Data, folder: no subject was found in"),
    ],
)
@pytest.mark.usefixtures("input_folder")
def test_what_cannot_be_built(bright_sam, vision, changes, said):
    with pytest.raises(InputError) as caught:
        execute(bright_sam, vision, **changes)
    assert said in one_sentence(caught.value)
    known = {key: value for key, value in changes.items() if value != "women" and "999" not in value}
    if known:
        assert said in str(EnsembleBuildTrainingData.validate_inputs(**known))


def test_linked_values_are_not_judged():
    assert EnsembleBuildTrainingData.validate_inputs() is True


@pytest.mark.usefixtures("input_folder")
def test_missing_pose_weights(bright_sam, vision, tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, OPENPOSE, ([str(tmp_path / "no")], {".pth"}))
    folder_paths.filename_list_cache.pop(OPENPOSE, None)
    monkeypatch.setattr(module, "require_packages", lambda *names: None)
    with pytest.raises(MissingModelError) as caught:
        execute(bright_sam, vision, poses=True)
    said = one_sentence(caught.value)
    assert said.startswith("Build Training Data: body_pose_model.pth is missing") and "or switch poses off" in said


def test_every_node_has_a_help_page_that_names_its_inputs_and_outputs():
    docs = Path(inspect.getfile(module)).parents[1] / "web" / "docs"
    for node in module.NODES:
        schema = node.define_schema()
        page = (docs / f"{schema.node_id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        for name in (*(each.id for each in schema.inputs), *outputs_named(node)):
            assert name is not None and name in page, (schema.node_id, name)
        assert all(each.tooltip for each in schema.inputs) and schema.search_aliases[-1] == "ensemble"
