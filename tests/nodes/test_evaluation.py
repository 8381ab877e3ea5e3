"""Pose Similarity, Similarity and Evaluation Report as the host calls them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from comfy_api.latest import io
from comfy_extras.nodes_bounding_boxes import CreateBoundingBoxes

from comfyui_ensemble.evaluation.crops import subject_crop
from comfyui_ensemble.evaluation.encoders import load_encoder
from comfyui_ensemble.evaluation.oks import frame_scores
from comfyui_ensemble.evaluation.results import Measurement, read_results, results_table
from comfyui_ensemble.evaluation.similarity import load_measure
from comfyui_ensemble.models_info.registry import (
    CLIP_VIT_B_32,
    DETECTORS,
    DINO_VIT_S_16,
    FACE_NETWORKS,
    MissingModelError,
)
from comfyui_ensemble.nodes.errors import InputError
from comfyui_ensemble.nodes.evaluation import EnsembleEvaluationReport, EnsembleOKS, EnsembleSimilarity
from comfyui_ensemble.nodes.evaluation_report import told_apart
from comfyui_ensemble.pose_db.keypoints import frame_from_people
from devtools.small_encoders import write_small_face_network, write_small_owl


def outputs(node: type[io.ComfyNode], **inputs) -> tuple[float, list[Measurement]]:
    result: Any = node.execute(**inputs).result
    score, table = result
    assert isinstance(score, float) and isinstance(table, str)
    return score, read_results(table)


def refused(node: Any, **inputs) -> str:
    with pytest.raises(InputError) as caught:
        node.execute(**inputs)
    message = str(caught.value)
    assert message.startswith(f"{node.DISPLAY_NAME}, ") and message.endswith(".") and "\n" not in message
    return message.removeprefix(f"{node.DISPLAY_NAME}, ")


def people(*lefts: float) -> np.ndarray:
    body = np.concatenate([np.random.default_rng(5).uniform(0, 1, (18, 2)) * (60, 200), np.ones((18, 1))], axis=1)
    return np.stack([body + np.array([left, 100, 0]) for left in lefts])


def pictures(seed: int, count: int, height: int = 40, width: int = 60) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def known(monkeypatch: pytest.MonkeyPatch, name: str, *folders: Path) -> None:
    """Let ComfyUI look for models in these folders alone."""
    _, endings = folder_paths.folder_names_and_paths[name]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(folder) for folder in folders], endings))
    folder_paths.filename_list_cache.pop(name, None)


# Pose Similarity


def test_oks_of_every_person_of_every_picture():
    reference = frame_from_people(people(50, 300), 640, 480)
    found = [frame_from_people(people(302, 51), 640, 480), frame_from_people(people(55), 640, 480)]
    score, rows = outputs(EnsembleOKS, pose=found, reference_pose=[reference], subjects="king\n\n queen", key="duel")
    expected = [person.score or 0.0 for frame in found for person in frame_scores(frame, reference)]
    assert [row.score for row in rows] == expected and expected[3] == 0
    assert score == pytest.approx(sum(expected) / 4)
    assert [(row.key, row.subject) for row in rows] == [
        ("duel 1", "king"),
        ("duel 1", "queen"),
        ("duel 2", "king"),
        ("duel 2", "queen"),
    ]
    assert {row.metric for row in rows} == {"OKS"} and "nobody" in rows[3].note


def test_oks_without_anybody_in_the_reference_is_no_number():
    nobody = frame_from_people(np.zeros((0, 18, 3)), 640, 480)
    score, rows = outputs(EnsembleOKS, pose=nobody, reference_pose=nobody)
    assert math.isnan(score)
    people = {"scores": [], "similarities": [], "ignored": [], "crowd": []}
    assert rows == [Measurement("OKS", None, "1", note="nobody is in the reference", people=people)]


def test_oks_says_what_does_not_go_together():
    frame = frame_from_people(people(50), 640, 480)
    assert "proportions" in refused(EnsembleOKS, pose=frame, reference_pose=frame_from_people(people(50), 480, 640))
    assert refused(EnsembleOKS, pose=[frame], reference_pose=[frame] * 2).startswith(
        "reference_pose: 2 frames came for 1"
    )
    assert refused(EnsembleOKS, pose="pose", reference_pose=frame).startswith("pose: ")
    assert "BODY-18" in refused(EnsembleOKS, pose=frame, reference_pose=frame_from_people(people(50)[:, :17], 640, 480))


# Similarity


@pytest.mark.parametrize("metric", ["CLIP-I", "DINO", "DINOv2"])
def test_whole_pictures_are_compared_with_every_reference(encoders, metric):
    image, reference = pictures(0, 2), pictures(1, 3, 50, 50)
    score, rows = outputs(EnsembleSimilarity, image=image, metric=metric, reference=reference, subjects="dog")
    encoder = load_measure(metric).encoders[0]
    expected = encoder.pictures(list(image)) @ encoder.pictures(list(reference)).T
    assert [row.score for row in rows] == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert score == pytest.approx(float(expected.mean()), abs=1e-5)
    assert [row.key for row in rows] == ["1"] * 3 + ["2"] * 3
    assert [row.reference for row in rows[:3]] == ["reference 1", "reference 2", "reference 3"]
    assert [row.subject for row in rows[:3]] == ["dog", "", ""]


def test_texts_and_long_ones(encoders):
    image = pictures(0, 2)
    _, rows = outputs(EnsembleSimilarity, image=image, metric="CLIP-T", text="a cat", key="cat")
    encoder: Any = load_encoder(encoders / "openai" / CLIP_VIT_B_32.name)
    expected = encoder.pictures(list(image)) @ encoder.texts(["a cat"]).T
    assert [row.score for row in rows] == pytest.approx(expected[:, 0].tolist(), abs=1e-5)
    assert [(row.key, row.reference, row.note) for row in rows] == [("cat 1", "a cat", ""), ("cat 2", "a cat", "")]
    _, rows = outputs(EnsembleSimilarity, image=image[:1], metric="CLIP-T", text="red coat " * 80)
    assert "longer than the model reads" in rows[0].note


def test_boxes_give_every_subject_its_own_reference(encoders):
    image, reference = pictures(0, 2), pictures(1, 2, 50, 30)
    corners = [(0, 0, 20, 40), (30, 5, 60, 35)]
    boxes = [{"x": a, "y": b, "width": c - a, "height": d - b} for a, b, c, d in corners]
    _, rows = outputs(
        EnsembleSimilarity, image=image, metric="DINO", reference=reference, boxes=boxes, subjects="king\nqueen"
    )
    encoder = load_encoder(encoders / DINO_VIT_S_16.name)
    references = encoder.pictures([subject_crop(picture, (0, 0, 30, 50)) for picture in reference])
    expected = [
        float(encoder.pictures([subject_crop(picture, box)])[0] @ references[place])
        for picture in image
        for place, box in enumerate(corners)
    ]
    assert [row.score for row in rows] == pytest.approx(expected, abs=1e-5)
    assert [row.subject for row in rows] == ["king", "queen", "king", "queen"]


def test_boxes_of_the_hosts_own_node_and_one_reference_for_all(encoders):
    made: Any = CreateBoundingBoxes.execute(64, 64, [{"x": 4, "y": 4, "width": 20, "height": 20}]).result
    _, rows = outputs(
        EnsembleSimilarity, image=pictures(0, 1, 64, 64), metric="DINO", reference=pictures(1, 1), boxes=made[1]
    )
    assert [row.subject for row in rows] == ["subject 1"] and rows[0].score is not None


def test_masks_take_the_background_away(encoders):
    image, reference = pictures(0, 1), pictures(1, 1)
    mask = torch.zeros(2, 40, 60)
    mask[0, 5:30, 5:25] = 1
    mask[1, 10:35, 30:58] = 1
    other = torch.where(mask.sum(dim=0)[..., None] > 0, image, 1 - image)
    first, second = (
        outputs(EnsembleSimilarity, image=each, metric="DINO", reference=reference, masks=mask)[1]
        for each in (image, other)
    )
    assert len(first) == 2 and [row.score for row in first] == [row.score for row in second]


def test_a_detector_finds_the_subjects_or_says_that_it_does_not(encoders, tmp_path, monkeypatch):
    write_small_owl(tmp_path / "owl")
    known(monkeypatch, DETECTORS, tmp_path)
    inputs = {"image": pictures(0, 1), "metric": "DINO", "reference": pictures(1, 2), "detector": "owl"}
    score, rows = outputs(EnsembleSimilarity, **inputs, subjects="a king\na queen")
    assert [row.note for row in rows] == ["found by owl"] * 2 and not math.isnan(score)
    monkeypatch.setattr("comfyui_ensemble.evaluation.detector.Detector.find", lambda *_: None)
    score, rows = outputs(EnsembleSimilarity, **inputs, subjects="a king\na queen")
    assert math.isnan(score) and [row.note for row in rows] == ["'a king' was not found", "'a queen' was not found"]
    assert refused(EnsembleSimilarity, **inputs).startswith("subjects: a detector needs words")
    box = {"x": 0, "y": 0, "width": 9, "height": 9}
    assert refused(EnsembleSimilarity, **inputs, subjects="a", boxes=box).startswith("detector: boxes or masks")


def test_structure_compares_place_by_place(encoders):
    image = pictures(0, 2)
    score, _ = outputs(EnsembleSimilarity, image=image, metric="Structure", reference=image)
    assert score == pytest.approx(1, abs=1e-5)
    mirrored, rows = outputs(EnsembleSimilarity, image=image, metric="Structure", reference=image[:1].flip(2))
    assert mirrored < 0.99 and len(rows) == 2
    refusal = refused(EnsembleSimilarity, image=image, metric="Structure", reference=pictures(0, 1, 60, 60))
    assert "60 x 40, the reference 60 x 60" in refusal
    assert "3 structure pictures" in refused(
        EnsembleSimilarity, image=image, metric="Structure", reference=pictures(1, 3)
    )


def test_a_loaded_clip_vision_instead_of_a_folder(vision):
    image, reference = pictures(0, 1), pictures(1, 1)
    _, rows = outputs(EnsembleSimilarity, image=image, metric="CLIP-I", reference=reference, clip_vision=vision)
    one, other = (vision.encode_image(each)["image_embeds"].float() for each in (image, reference))
    assert rows[0].score == pytest.approx(float(torch.cosine_similarity(one, other)), abs=1e-5)
    refusal = refused(EnsembleSimilarity, image=image, metric="CLIP-T", text="a cat", clip_vision=vision)
    assert refusal.startswith("clip_vision: CLIP-T cannot")


@pytest.fixture
def face_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    write_small_face_network(tmp_path / "models" / "antelopev2" / "glintr100.onnx")
    known(monkeypatch, FACE_NETWORKS, tmp_path)
    return "models/antelopev2/glintr100.onnx"


def faces(*middles: float) -> dict[str, Any]:
    """Heads at shares of a picture's width, seen from the front."""
    bodies = np.zeros((len(middles), 18, 3))
    for body, middle in zip(bodies, middles, strict=True):
        body[[14, 15, 0]] = [(middle - 0.05, 0.3, 1), (middle + 0.05, 0.3, 1), (middle, 0.4, 1)]
    return frame_from_people(bodies * (600, 400, 1), 600, 400)


def test_faces_are_found_by_poses(face_network):
    image = pictures(0, 1, 80, 120)
    both = faces(0.25, 0.75)
    halves = torch.cat([image[:, :, :60], image[:, :, 60:]])
    own = frame_from_people(np.array([faces(0.5)["people"][0]["pose_keypoints_2d"]]).reshape(1, 18, 3), 600, 400)
    for person in own["people"]:  # the same heads in pictures of half the width
        values = np.array(person["pose_keypoints_2d"]).reshape(18, 3)
        values[:, 0] = (values[:, 0] - 300) * 2 + 300 * (values[:, 2] > 0)
        person["pose_keypoints_2d"] = values.reshape(-1).tolist()
    inputs = {"image": image, "metric": "FaceSim", "reference": halves, "pose": both, "reference_pose": own}
    _, rows = outputs(EnsembleSimilarity, **inputs, subjects="king\nqueen")
    assert [row.score for row in rows] == pytest.approx([1, 1], abs=1e-3)
    assert all("eyes and nose" in row.note for row in rows)
    crossed = [{"x": 60, "y": 0, "width": 60, "height": 80}, {"x": 0, "y": 0, "width": 60, "height": 80}]
    _, rows = outputs(EnsembleSimilarity, **inputs, boxes=crossed)
    assert max(row.score or 0 for row in rows) < 0.9
    _, rows = outputs(EnsembleSimilarity, **{**inputs, "pose": faces(0.25)})
    assert rows[0].score is not None and (rows[1].score, rows[1].note) == (None, "no face was found")
    _, rows = outputs(EnsembleSimilarity, **{**inputs, "reference_pose": frame_from_people(np.zeros((0, 18, 3)), 9, 9)})
    assert [row.note for row in rows] == ["no face was found in the reference"] * 2


def test_faces_without_poses_are_the_crops(face_network):
    image = pictures(0, 1, 112, 112)
    score, rows = outputs(EnsembleSimilarity, image=image, metric="FaceSim", reference=image)
    assert score == pytest.approx(1, abs=1e-5) and "not aligned" in rows[0].note
    chosen, _ = outputs(EnsembleSimilarity, image=image, metric="FaceSim", reference=image, model=face_network)
    assert chosen == score


def test_a_missing_model_is_one_sentence(encoders, monkeypatch):
    image = pictures(0, 1)
    with pytest.raises(MissingModelError, match=r"^Similarity: fashion-clip is missing: .* folder\.$"):
        EnsembleSimilarity.execute(image, "FashionCLIP-I", reference=image)
    known(monkeypatch, FACE_NETWORKS)
    with pytest.raises(MissingModelError, match=r"^Similarity: glintr100.onnx is missing: .*fal/AuraFace"):
        EnsembleSimilarity.execute(image, "FaceSim", reference=image)


def test_without_onnxruntime_faces_are_not_measured(tmp_path, monkeypatch):
    (tmp_path / "glintr100.onnx").write_bytes(b"")
    known(monkeypatch, FACE_NETWORKS, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    image = pictures(0, 1)
    assert "pip install onnxruntime" in refused(EnsembleSimilarity, image=image, metric="FaceSim", reference=image)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"metric": "PSNR"}, "metric: there is no 'PSNR'; choose one of: CLIP-I"),
        ({"metric": "CLIP-T"}, "text: it is empty"),
        ({"metric": "DINO"}, "reference: nothing is connected"),
        ({"metric": "DINO", "model": "../secret", "reference": 1}, "model: there is no '../secret'"),
        ({"metric": "DINO", "detector": "/etc", "reference": 1, "subjects": "a"}, "detector: there is no '/etc'"),
        ({"metric": "CLIP-T", "model": DINO_VIT_S_16.name, "text": "a cat"}, "model: dino-vits16 reads no texts"),
        (
            {"metric": "DINO", "reference": 2, "boxes": [{"x": 0, "y": 0, "width": 9, "height": 9}]},
            "1 subjects came with 2",
        ),
        ({"metric": "DINO", "reference": 1, "boxes": {"x": 99, "y": 0, "width": 9, "height": 9}}, "boxes: box 1"),
        ({"metric": "DINO", "reference": 1, "masks": torch.ones(1, 9, 9)}, "a mask is 9 x 9"),
        ({"metric": "DINO", "reference": 1, "masks": torch.zeros(1, 40, 60)}, "empty"),
        ({"metric": "DINO", "reference": 1, "image": 2, "masks": torch.ones(3, 40, 60)}, "masks: 3 masks came for 2"),
        ({"metric": "FaceSim", "reference": 1, "pose": [1, 2]}, "pose: "),
    ],
)
def test_bad_inputs_are_told_in_one_sentence(encoders, inputs, words):
    made = {name: pictures(0, value) for name, value in inputs.items() if isinstance(value, int)}
    assert words in refused(EnsembleSimilarity, **({"image": pictures(3, 1)} | inputs | made))


def test_choices_are_checked_before_the_run(encoders):
    assert EnsembleSimilarity.validate_inputs("DINO", "none", "the metric's own") is True
    assert EnsembleSimilarity.validate_inputs(None, None, None) is True
    assert "there is no 'x'" in str(EnsembleSimilarity.validate_inputs("DINO", "none", "x"))
    assert "choose one of" in str(EnsembleSimilarity.validate_inputs("x", "none", "x"))
    inputs: Any = EnsembleSimilarity.define_schema().inputs
    (combo,) = (each for each in inputs if each.id == "model")
    assert DINO_VIT_S_16.name in combo.options


# Evaluation Report


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def report(**inputs) -> tuple[Path, torch.Tensor]:
    result: Any = EnsembleEvaluationReport.execute(**inputs).result
    path, image = result
    return Path(path), image


ROWS = [Measurement("OKS", 0.5, "duel", "king"), Measurement("OKS", None, "feast", "king", note="is a crowd")]


def test_a_report_is_written_with_its_pictures(output):
    likeness = results_table([Measurement("DINO", 0.25, "duel", "king"), Measurement("DINO", 0.75, "feast", "king")])
    tables = {"table0": [results_table(ROWS)], "table1": [likeness]}
    path, image = report(results=tables, name=["feasts"], images=[pictures(0, 2)], compare_with=["none"])
    assert path == output / "feasts" / "report.html" and path.is_file()
    page = path.read_text(encoding="utf-8")
    assert "duel" in page and page.count("data:image/jpeg") >= 2
    written = json.loads((path.parent / "report.json").read_text())
    assert written and sorted(file.name for file in path.parent.iterdir()) == [
        "measurements.csv",
        "report.html",
        "report.json",
        "report.md",
        "scores.png",
    ]
    assert image.ndim == 4 and image.shape[0] == 1 and image.shape[3] == 3 and 0 <= image.min() <= image.max() <= 1


def test_runs_of_one_node_are_told_apart():
    assert [row.key for row in told_apart([ROWS, ROWS[:1]])] == ["run 1: duel", "run 1: feast", "run 2: duel"]
    assert [row.key for row in told_apart([ROWS[:1], ROWS[1:]])] == ["duel", "feast"]
    assert told_apart([ROWS]) == ROWS


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"results": {"table0": [""]}}, "results: there are no measurements"),
        (
            {"results": {"table0": [results_table(ROWS)], "table1": ["hello"]}},
            "results: table 2: line 1 of the results",
        ),
        ({"results": {"table0": [results_table(ROWS)]}, "name": ["../up"]}, "name: '../up' cannot be a folder's name"),
        ({"results": {"table0": [results_table(ROWS)]}, "name": [" "]}, "name: it is empty"),
        (
            {"results": {"table0": [results_table(ROWS)]}, "images": [pictures(0, 3)]},
            "images: 3 pictures came, the tables are about 2",
        ),
    ],
)
def test_a_report_that_cannot_be_is_told_in_one_sentence(output, inputs, words):
    assert words in refused(EnsembleEvaluationReport, **inputs)
    assert list(output.iterdir()) == []


def test_names_are_checked_before_the_run():
    assert EnsembleEvaluationReport.validate_inputs(["fine"]) is True
    assert EnsembleEvaluationReport.validate_inputs(None) is True
    assert "cannot be" in str(EnsembleEvaluationReport.validate_inputs(["a/b"]))


def test_from_prompts_to_a_page_on_a_server(server):
    """Two prompts as a list: every node runs twice but the report, which takes all."""
    from comfyui_ensemble.models_info.registry import BUNDLED_POSES

    def node(class_type: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": class_type, "inputs": inputs}

    variations = {"action": "two people dancing", "attributes": "young\nold", "environments": "", "cameras": ""}
    prompt = {
        "1": node("EnsemblePoseDatabaseLoader", database=BUNDLED_POSES.name),
        "2": node("EnsemblePromptVariations", **variations, count=2, seed=1),
        "3": node("EnsemblePoseRetriever", pose_db=["1", 0], prompt=["2", 0], threshold=-1.0, rank=1),
        "4": node("EnsemblePoseRetriever", pose_db=["1", 0], prompt=["2", 0], threshold=-1.0, rank=2),
        "5": node("EnsemblePoseLayout", **{"poses.pose0": ["3", 0]}, width=512, height=512),
        "6": node("EnsemblePoseLayout", **{"poses.pose0": ["4", 0]}, width=512, height=512),
        "7": node("EnsembleOKS", pose=["5", 0], reference_pose=["6", 0], key=["2", 0]),
        "8": node("EnsembleOKS", pose=["6", 0], reference_pose=["6", 0], key=["2", 0]),
        "9": node("EnsemblePoseRender", pose=["5", 0], width=128, height=128, line_width=2),
        "10": node(
            "EnsembleEvaluationReport",
            **{"results.table0": ["7", 1], "results.table1": ["8", 1]},
            name="dances",
            images=["9", 0],
            compare_with="coco-pose",
        ),
    }
    history = server.run(prompt)
    assert history["outputs"]["10"]["text"][0].startswith("OKS: ")
    page = (server.data / "output" / "dances" / "report.html").read_text(encoding="utf-8")
    assert "dancing" in page and "ASTRA" in page and "<td>AP50</td>" in page
