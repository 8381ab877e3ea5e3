"""OKS, its matching, and average precision: against pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.oks import (
    Found,
    Truth,
    coco_people,
    frame_scores,
    match,
    person_scores,
    read_truth,
    similarities,
)
from comfyui_ensemble.evaluation.oks_precision import NAMES, People, average_precision, precision_of
from comfyui_ensemble.evaluation.oks_rows import oks_rows
from comfyui_ensemble.evaluation.results import Measurement, read_results, results_table
from comfyui_ensemble.pose_db.exchange import COCO_KEYPOINTS
from comfyui_ensemble.pose_db.keypoints import KEYPOINT_INDEX, KEYPOINTS, frame_from_people

pycocotools = pytest.importorskip("pycocotools")
SIZE = 640


def random_truth(rng: np.random.Generator, people: int) -> list[dict]:
    """COCO annotations: some people without keypoints, some crowds, areas from small to large."""
    annotations = []
    for _ in range(people):
        side = float(rng.choice([20, 60, 150, 400]))
        corner = rng.uniform(0, SIZE - side / 2, 2)
        keypoints = np.concatenate([corner + rng.uniform(0, side, (17, 2)), rng.integers(0, 3, (17, 1))], axis=1)
        keypoints[keypoints[:, 2] == 0] = 0
        if rng.random() < 0.15:
            keypoints[:] = 0
        annotations.append(
            {
                "bbox": [*corner.tolist(), side, side * 1.5],
                "area": float(rng.uniform(0.3, 0.8) * side * side * 1.5),
                "iscrowd": int(rng.random() < 0.15),
                "keypoints": keypoints.reshape(-1).tolist(),
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                "category_id": 1,
            }
        )
    return annotations


def random_found(rng: np.random.Generator, truth: list[dict], extra: int) -> list[dict]:
    """COCO results: near the truth or anywhere, with keypoints that were not found, equal scores among them."""
    found = []
    for annotation in [*truth, *truth[:1], *[None] * extra]:
        keypoints = np.concatenate([rng.uniform(0, SIZE, (17, 2)), rng.uniform(0.1, 1, (17, 1))], axis=1)
        if annotation is not None:
            spread = rng.choice([0.01, 0.05, 0.2]) * annotation["area"] ** 0.5
            keypoints[:, :2] = np.array(annotation["keypoints"]).reshape(17, 3)[:, :2] + rng.normal(0, spread, (17, 2))
        keypoints[rng.random(17) < 0.1] = 0
        found.append(
            {"keypoints": keypoints.reshape(-1).tolist(), "score": float(rng.choice([0.2, 0.5, 0.9])), "category_id": 1}
        )
    return found


def evaluation(pictures: list[tuple[list[dict], list[dict]]]):
    """pycocotools' evaluation of pictures: (annotations, results) each."""
    from pycocotools.coco import COCO  # pyright: ignore[reportMissingModuleSource]
    from pycocotools.cocoeval import COCOeval  # pyright: ignore[reportMissingModuleSource]

    truth, found = [], []
    for picture, (people, results) in enumerate(pictures, 1):
        truth += [{**person, "image_id": picture} for person in people]
        found += [{**result, "image_id": picture} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        coco: Any = COCO()
        coco.dataset = {
            "images": [{"id": picture} for picture in range(1, len(pictures) + 1)],
            "annotations": [{**annotation, "id": number} for number, annotation in enumerate(truth, 1)],
            "categories": [{"id": 1, "name": "person"}],
        }
        coco.createIndex()
        evaluate = COCOeval(coco, coco.loadRes(found), "keypoints")
        evaluate.evaluate()
        evaluate.accumulate()
        evaluate.summarize()
    return evaluate


def as_truth(annotations: list[dict]) -> Truth:
    crowd = np.array([bool(annotation["iscrowd"]) for annotation in annotations], dtype=bool)
    empty = np.array([annotation["num_keypoints"] == 0 for annotation in annotations], dtype=bool)
    return Truth(
        np.array([annotation["keypoints"] for annotation in annotations]).reshape(-1, 17, 3),
        np.array([annotation["area"] for annotation in annotations]),
        np.array([annotation["bbox"] for annotation in annotations]).reshape(-1, 4),
        crowd | empty,
        crowd,
    )


def as_found(results: list[dict]) -> Found:
    people = np.array([result["keypoints"] for result in results]).reshape(-1, 17, 3)
    return Found.of(people, np.array([result["score"] for result in results]))


def random_pictures(seed: int, count: int) -> list[tuple[list[dict], list[dict]]]:
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        annotations = random_truth(rng, int(rng.integers(1, 6)))
        pictures.append((annotations, random_found(rng, annotations, int(rng.integers(0, 3)))))
    return pictures


def test_similarities_are_those_of_pycocotools():
    pictures = random_pictures(0, 200)
    evaluate = evaluation(pictures)
    compared = 0
    for number, (people, results) in enumerate(pictures, 1):
        expected = np.array(evaluate.computeOks(number, 1))
        given = similarities(as_found(results).keypoints, as_truth(people))
        np.testing.assert_allclose(given, expected, rtol=0, atol=1e-12)
        compared += (expected > 1e-3).sum()
    assert compared > 500


def test_people_are_matched_as_pycocotools_matches_them():
    pictures = random_pictures(1, 200)
    evaluate = evaluation(pictures)
    first, last = 1, 0
    matched = 0
    for number, (people, results) in enumerate(pictures):
        first, last = last + 1, last + len(people)
        judged = evaluate.evalImgs[number]  # the first range of areas: all of them
        found, truth = as_found(results), as_truth(people)
        for row, threshold in enumerate(evaluate.params.iouThrs):
            given = match(similarities(found.keypoints, truth), truth.ignored, truth.crowd, threshold)
            ids = [0 if person is None else first + person for person in given]
            assert ids == judged["dtMatches"][row].astype(int).tolist()
            matched += sum(person is not None for person in given)
    assert matched > 1000


def stats_of(evaluate: Any) -> dict[str, float]:
    """pycocotools' numbers for people of all sizes."""
    return dict(zip(NAMES, evaluate.stats[[0, 1, 2, 5, 6, 7]].tolist(), strict=True))


@pytest.mark.parametrize("seed", [2, 3])
def test_average_precision_is_that_of_pycocotools(seed):
    pictures = random_pictures(seed, 60)
    expected = stats_of(evaluation(pictures))
    given = average_precision([People.of(as_found(results), as_truth(people)) for people, results in pictures])
    assert given == pytest.approx(expected, abs=1e-12) and 0.1 < expected["AP"] < 0.9


def as_frame(people: list[dict], **facts: str) -> dict[str, Any]:
    """COCO's people as an OpenPose frame, whose eighteenth keypoint is the neck; `facts` are fields that it has too."""
    bodies = np.zeros((len(people), 18, 3))
    for body, person in zip(bodies, people, strict=True):
        body[[KEYPOINT_INDEX[name] for name in COCO_KEYPOINTS]] = np.reshape(person["keypoints"], (17, 3))
    frame = frame_from_people(bodies, SIZE, SIZE)
    for written, person in zip(frame["people"], people, strict=True):
        written.update({name: person[name] for name in facts.values()})
    return frame


def test_tables_of_oks_carry_what_average_precision_needs():
    """Through frames, measurements and their text; with crowds, with people whose keypoints are unknown, and with nobody."""
    pictures = [*random_pictures(4, 40), ([], random_found(np.random.default_rng(5), [], 2))]
    for _people, results in pictures:
        for result in results:  # a frame's people have no score of their own; it is the mean of their confidences
            result["score"] = float(np.reshape(result["keypoints"], (17, 3))[:, 2].mean())
    tables = [
        results_table(oks_rows(Measurement("OKS", None, str(number)), ["alice"], as_frame(results), frame))
        for number, (people, results) in enumerate(pictures)
        for frame in [as_frame(people, area="area", box="bbox", crowd="iscrowd")]
    ]
    rows = read_results("".join(tables))
    assert [rows[0].subject, rows[-1].note] == ["alice", "nobody is in the reference"]
    expected = stats_of(evaluation(pictures))
    assert precision_of(rows) == pytest.approx(expected, abs=1e-6) and 0.1 < expected["AP"] < 0.9


def test_average_precision_with_nobody_found_or_nobody_to_find():
    annotations = random_truth(np.random.default_rng(0), 3)
    nobody = Found.of(np.zeros((0, 17, 3)))
    assert average_precision([People.of(nobody, as_truth(annotations))]) == dict.fromkeys(NAMES, 0.0)
    assert average_precision([People.of(nobody, as_truth([]))]) == {} == precision_of([])


def test_average_precision_needs_the_people_of_every_score():
    frame = frame_from_people(np.stack([standing(50), standing(300)]), 640, 480)
    rows = oks_rows(Measurement("OKS", None, "a"), [], frame, frame)
    unmeasured = Measurement("OKS", None, "b", note="the picture was not made")
    assert precision_of([*rows, unmeasured]) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    assert precision_of([*rows, Measurement("OKS", 0.5, "c")]) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"scores": "high"},
        {"similarities": [[1.0]]},
        {"scores": [1e999, 1.0]},
        {"scores": [10**400, 1.0]},
        {"crowd": []},
        {"ignored": None},
    ],
)
def test_damaged_people_are_told_in_one_sentence(change):
    frame = frame_from_people(np.stack([standing(50), standing(300)]), 640, 480)
    rows = oks_rows(Measurement("OKS", None, "a"), [], frame, frame)
    assert rows[0].people is not None
    rows[0].people.update(change)
    with pytest.raises(EvaluationError, match="the people of the picture 'a' are damaged; measure it again"):
        precision_of(rows)


def standing(left: float, width: float = 60, height: float = 200) -> np.ndarray:
    """(18, 3) somebody."""
    rng = np.random.default_rng(5)
    person = np.concatenate([rng.uniform(0, 1, (18, 2)) * (width, height) + (left, 100), np.ones((18, 1))], axis=1)
    return person


def test_body_18_becomes_coco_17_by_name():
    people = np.zeros((1, 18, 3))
    people[0, :, 0] = np.arange(18) + 10
    people[0, :, 2] = 1
    given = coco_people(frame_from_people(people, 100, 100))[0, :, 0] - 10
    assert [KEYPOINTS[round(index)] for index in given] == list(COCO_KEYPOINTS)
    assert KEYPOINT_INDEX["neck"] not in given.round()


def test_frames_of_both_dialects_and_sizes_agree():
    people = np.stack([standing(50), standing(300)])
    moved = people + np.array([4, -3, 0])
    reference = frame_from_people(people, 640, 480)
    pixels = frame_scores(frame_from_people(moved, 640, 480), reference)
    half = frame_scores(frame_from_people(moved * (0.5, 0.5, 1), 320, 240), reference)
    shares = frame_scores(frame_from_people(moved / (640, 480, 1), 640, 480), reference)
    area = 0.53 * np.ptp(people[0, [KEYPOINT_INDEX[name] for name in COCO_KEYPOINTS], :2], axis=0).prod()
    sigmas = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
    expected = float(np.exp(-25 / (2 * area * (2 * sigmas) ** 2)).mean())
    for scores in (pixels, half, shares):
        assert [score.score for score in scores] == pytest.approx([expected, expected], abs=1e-9)
        assert [score.found for score in scores] == [0, 1]


def test_order_does_not_matter_and_the_missing_count_as_nothing():
    people = np.stack([standing(50), standing(300), standing(500)])
    reference = frame_from_people(people, 640, 480)
    scores = frame_scores(frame_from_people(people[[2, 0]], 640, 480), reference)
    assert [score.score for score in scores] == pytest.approx([1, 0, 1])
    assert [score.found for score in scores] == [1, None, 0]
    assert "nobody" in scores[1].note
    nobody = frame_scores(frame_from_people(np.zeros((0, 18, 3)), 640, 480), reference)
    assert [score.score for score in nobody] == [0, 0, 0]
    assert frame_scores(reference, frame_from_people(np.zeros((0, 18, 3)), 640, 480)) == []


def test_cocos_own_area_and_crowds_are_read():
    people = np.stack([standing(50), standing(300)])
    reference = frame_from_people(people, 640, 480)
    reference["people"][0] |= {"area": 5000, "bbox": [50, 100, 60, 200]}
    reference["people"][1] |= {"iscrowd": 1}
    truth, notes = read_truth(reference)
    assert truth.areas[0] == 5000 and truth.boxes[0].tolist() == [50, 100, 60, 200]
    assert truth.crowd.tolist() == truth.ignored.tolist() == [False, True]
    assert notes == ["", "is a crowd"]
    scores = frame_scores(reference, reference)
    assert [score.score for score in scores] == [pytest.approx(1), None] and scores[1].note == "is a crowd"


def test_people_without_size_do_not_count():
    people = np.zeros((2, 18, 3))
    people[0, 0] = (100, 100, 1)
    scores = frame_scores(frame_from_people(people, 640, 480), frame_from_people(people, 640, 480))
    assert [score.score for score in scores] == [None, None]
    assert ["too few" in scores[0].note, "no keypoints" in scores[1].note] == [True, True]


def test_a_crowd_may_be_found_several_times():
    truth = Truth(np.zeros((1, 17, 3)), np.ones(1), np.array([[0, 0, 9, 9.0]]), np.ones(1, bool), np.ones(1, bool))
    assert match(np.ones((3, 1)), truth.ignored, truth.crowd) == [0, 0, 0]
    assert person_scores(Found.of(np.ones((3, 17, 3))), truth)[0].score is None


def test_bad_frames_are_told_in_one_sentence():
    good = frame_from_people(standing(50)[None], 640, 480)
    with pytest.raises(EvaluationError, match="proportions"):
        frame_scores(frame_from_people(standing(50)[None], 480, 640), good)
    damaged = frame_from_people(standing(50)[None], 640, 480)
    damaged["people"][0]["area"] = "large"
    with pytest.raises(EvaluationError, match="area"):
        frame_scores(good, damaged)
    damaged = frame_from_people(np.zeros((1, 17, 3)), 640, 480)
    with pytest.raises(EvaluationError, match="BODY-18"):
        frame_scores(damaged, good)
