"""The captioner: Transformers' own Florence-2, small, taught what to say; and folders that hold something else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from comfyui_ensemble.training.construction import florence as module
from comfyui_ensemble.training.construction.captioners import FileCaptioner, FlorenceCaptioner, find_captioner
from comfyui_ensemble.training.construction.described import Described, from_json
from comfyui_ensemble.training.construction.florence import CAPTION, GROUNDING, OBJECTS, Florence, without_preamble
from comfyui_ensemble.training.construction.steps import ItemError
from comfyui_ensemble.training.errors import TrainingError
from devtools.small_florence import write_small_florence

CAPTIONED = "A woman in a red coat with a dog."
LESSONS = {
    CAPTION: f"The image shows a{CAPTIONED[1:]}",
    GROUNDING + CAPTIONED: "A woman<loc_100><loc_0><loc_499><loc_999>a dog<loc_600><loc_500><loc_900><loc_999>",
    OBJECTS: "human face<loc_200><loc_20><loc_300><loc_150>dog<loc_1><loc_2><loc_3><loc_4><loc_600><loc_500><loc_901><loc_998>",
}
WIDTH, HEIGHT = 320, 200


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_florence(tmp_path_factory.mktemp("captioner") / "small", LESSONS)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights."""
    return write_small_florence(tmp_path_factory.mktemp("captioner") / "fresh")


def places(answer: str) -> list[tuple[str, tuple[float, ...]]]:
    """Words and boxes of an answer as the paper defines them: each place token is the middle of one of 1000 bins."""
    found = []
    for words, tokens in re.findall(r"([^<]+)((?:<loc_\d+>)+)", answer):
        bins = [(int(place) + 0.5) / 1000 for place in re.findall(r"\d+", tokens)]
        for start in range(0, len(bins), 4):
            sides = [share * side for share, side in zip(bins[start : start + 4], (WIDTH, HEIGHT) * 2, strict=True)]
            found.append((words, tuple(sides)))
    return found


def test_what_it_was_taught_comes_back_with_boxes_in_pixels(taught):
    described = FlorenceCaptioner(taught).describe(Path(), torch.full((HEIGHT, WIDTH, 3), 0.5))
    assert described.caption == CAPTIONED
    for answer, given in (
        (LESSONS[GROUNDING + CAPTIONED], described.phrases),
        (LESSONS[OBJECTS], described.objects),
    ):
        expected = places(answer)
        assert [words for words, _ in given] == [words for words, _ in expected]
        for (_, box), (_, exact) in zip(given, expected, strict=True):
            np.testing.assert_allclose(box, exact, atol=1.0)  # Transformers gives whole pixels, rounded down
    assert from_json(json.loads(json.dumps(described.as_json()))) == described


@pytest.mark.parametrize("task", [GROUNDING, OBJECTS])
def test_places_are_read_as_the_paper_defines_them(fresh, task):
    """Transformers' own reading of answers, on answers of our own."""
    processor = Florence(fresh)._processor
    answer = (
        "a café chair<loc_0><loc_0><loc_999><loc_999>it<loc_1><loc_1><loc_2><loc_2>"
        "two hats<loc_7><loc_8><loc_90><loc_91><loc_3><loc_4><loc_5><loc_6>"
    )
    read = processor.post_process_generation(f"</s><s>{answer}</s>", task=task, image_size=(WIDTH, HEIGHT))[task]
    expected = places(answer)
    expected = [(words.replace("é", ""), box) for words, box in expected]  # what is beyond ASCII is dropped
    if task == GROUNDING:  # and so are the pronouns that the model's folder names
        expected = [(words, box) for words, box in expected if words != "it"]
    assert read["labels"] == [words for words, _ in expected]
    np.testing.assert_allclose(read["bboxes"], [box for _, box in expected], atol=1.0)


def test_a_model_that_knows_nothing_breaks_nothing(fresh, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_ANSWER", 12)
    captioner = FlorenceCaptioner(fresh)
    try:
        described = captioner.describe(Path(), torch.rand(50, 70, 3))
    except ItemError as error:
        assert "no words" in str(error)
    else:
        assert isinstance(described, Described) and described.caption


@pytest.mark.parametrize(
    "caption, plain",
    [
        ("The image shows a dog.", "A dog."),
        ("The image is of a man  in a hat", "A man in a hat"),
        ("In this image we can see two men.", "Two men."),
        ("This picture depicts Anna.", "Anna."),
        ("A photo of the image", "A photo of the image"),
        ("The image shows", "The image shows"),
        ("  ", ""),
    ],
)
def test_captions_speak_of_what_is_shown(caption, plain):
    assert without_preamble(caption) == plain


# Folders that will not do


def sentence(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text and not text.endswith(".")
    return text


def spoiled(folder: Path, copy: Path, how: str) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    if how == "another model":
        config["model_type"] = "llava"
    elif how == "code of its own":
        config["auto_map"] = {"AutoConfig": "configuration_florence2.Florence2Config"}
    elif how == "too wide":
        config["text_config"]["d_model"] = 128
    (copy / "config.json").write_text("{" if how == "no JSON" else json.dumps(config))
    if how in ("no weights", "a pickle"):
        (copy / "model.safetensors").unlink()
    if how == "a pickle":
        torch.save({}, copy / "pytorch_model.bin")
    if how == "half":
        data = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    if how == "no processor":
        (copy / "processor_config.json").unlink()
    if how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (copy / name).unlink()
    return copy


@pytest.mark.parametrize(
    "how, said",
    [
        ("another model", "holds llava and not Florence-2 in Transformers' own form; take one of florence-community's"),
        ("code of its own", "not Florence-2 in Transformers' own form"),
        ("no JSON", "has a config.json that cannot be read"),
        ("no weights", "has no model.safetensors; it is no Florence-2"),
        ("a pickle", "has no model.safetensors"),
        ("no processor", "has no processor_config.json"),
        ("no tokenizer", "copy the whole model again"),
        ("half", "copy the whole model again"),
        ("too wide", "copy the whole model again"),
    ],
)
def test_folders_that_will_not_do(fresh, tmp_path, how, said):
    folder = spoiled(fresh, tmp_path / "folder", how)
    with pytest.raises(TrainingError) as caught:
        captioner = find_captioner(str(folder))
        captioner.describe(Path(), torch.rand(40, 40, 3))
    assert sentence(caught.value).startswith("the captioner's folder folder ") and said in str(caught.value)
    assert caught.value.input_name == "captioner"


def test_a_missing_captioner_says_where_to_get_it():
    with pytest.raises(TrainingError) as caught:
        find_captioner("../secrets")
    said = sentence(caught.value)
    assert "there is no captioner '../secrets'" in said and "huggingface.co/florence-community" in said
    assert "models/ensemble_captioner" in said


# Files beside the pictures


def test_files_beside_the_pictures(tmp_path):
    captioner = FileCaptioner()
    picture, file = tmp_path / "a.png", tmp_path / "a.json"
    with pytest.raises(ItemError, match=r"^a.json is missing$"):
        captioner.describe(picture, torch.zeros(1, 1, 3))
    versions = {captioner.version(picture)}
    file.write_text('{"caption": " a  dog ", "phrases": [["a dog", [1, 2, 3, 4.5]]]}')
    versions.add(captioner.version(picture))
    assert captioner.describe(picture, torch.zeros(1, 1, 3)) == Described("a dog", (("a dog", (1.0, 2.0, 3.0, 4.5)),))
    file.write_text('{"caption": "a cat"}')
    versions.add(captioner.version(picture))
    assert len(versions) == 3 and captioner.describe(picture, torch.zeros(1, 1, 3)) == Described("a cat", ())


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "a.json is not JSON"),
        ("[]", "a.json has no caption; write"),
        ('{"caption": " "}', "a.json has no caption; write"),
        ('{"caption": "a", "phrases": {"a": 1}}', "a.json has phrases that are no list"),
        ('{"caption": "a", "phrases": [["a", [1, 2, 3]]]}', "a.json has phrases that are no words with a box"),
        (
            '{"caption": "a", "objects": [["a", [1, 2, 3, NaN]]]}',
            "a.json has objects without words, or a box with a number",
        ),
        ('{"caption": "a", "objects": [["", [1, 2, 3, 4]]]}', "a.json has objects without words"),
    ],
)
def test_files_that_say_something_else(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ItemError) as caught:
        FileCaptioner().describe(tmp_path / "a.png", torch.zeros(1, 1, 3))
    assert said in sentence(caught.value)
