"""What is compared with what, on pictures whose answers are known; and going on after being cut off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_ensemble.evaluation.asking import Asked, Asker
from comfyui_ensemble.evaluation.cases import Case, CaseSubject, read_cases, write_cases
from comfyui_ensemble.evaluation.crops import subject_crop
from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.gather import Gathered, gather
from comfyui_ensemble.evaluation.measure import Likeness, Poses, collect, digests_of, measure_all, plan_of
from comfyui_ensemble.evaluation.measured import open_measured, read_measured, write_results
from comfyui_ensemble.evaluation.people import PoseFiles, person_at
from comfyui_ensemble.evaluation.report_summary import Context
from comfyui_ensemble.evaluation.results import Measurement
from comfyui_ensemble.evaluation.similarity import METRICS, Measure, load_measure
from comfyui_ensemble.nodes.evaluation_similarity import EnsembleSimilarity
from comfyui_ensemble.pose_db.keypoints import frame_from_people
from comfyui_ensemble.pose_db.people import BODY

RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90)


def paint(path: Path, left: tuple[int, ...], right: tuple[int, ...], size: tuple[int, int] = (80, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, left[:3])
    picture.paste(right[:3], (size[0] // 2, 0, *size))
    picture.save(path)
    return path


class Colours:
    """An encoder that sees nothing but the mean colour, so that its cosines can be worked out by hand."""

    name = "colours"

    def __init__(self) -> None:
        self.seen = 0

    def pictures(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        self.seen += len(pictures)
        means = torch.stack([picture.mean(dim=(0, 1)) for picture in pictures])
        return torch.nn.functional.normalize(means, dim=-1)


def cosine(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    a, b = np.array(first, float), np.array(second, float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def two(tmp_path: Path) -> Gathered:
    """A picture whose left half is red and whose right is green; two subjects with two and one references."""
    paint(tmp_path / "shot.png", RED, GREEN)
    paint(tmp_path / "red.png", RED, RED, (40, 40))
    paint(tmp_path / "blue.png", BLUE, BLUE, (40, 40))
    subjects = (
        CaseSubject("left", "somebody red", "person", ("red.png", "blue.png"), (0.0, 0.0, 0.5, 1.0)),
        CaseSubject("right", "a green coat", "upper garment", ("blue.png",), (0.5, 0.0, 1.0, 1.0)),
    )
    return Gathered(tmp_path, [Case("shot", "red and green", subjects)], {"shot": tmp_path / "shot.png"})


def likeness(gathered: Gathered, name: str = "CLIP-I", **options) -> Likeness:
    return Likeness(Measure(METRICS[name], (Colours(),)), Asker(gathered, **options))


# What is compared


def test_subjects_are_compared_where_they_are(two):
    left, right = likeness(two).scores(two.cases)
    assert (left.subject, left.reference, left.picture, left.key) == ("left", "red.png", "shot.png", "shot")
    assert left.score == pytest.approx((1 + cosine(RED, BLUE)) / 2, abs=1e-4)
    assert left.note == "mean over 2 references"
    assert right.score == pytest.approx(cosine(GREEN, BLUE), abs=1e-4) and right.note == ""


def draw_mask(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = (80, 40)) -> str:
    """White in a box (left, top, right, bottom)."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)
    return path.name


def test_a_mask_says_where_a_subject_is_as_it_does_in_the_node(two, tmp_path, encoders):
    """It lies over both halves; with a box, what the box leaves is seen. In both, what it does not cover is white."""
    name = draw_mask(tmp_path / "mask.png", (20, 10, 60, 30))
    case = two.cases[0]
    masked = replace(case.subjects[0], mask=name, references=("red.png",))
    (asked,) = Asker(two).ask(METRICS["DINO"], replace(case, subjects=(replace(masked, box=None),)))
    white = np.ones((40, 40, 3), np.float32)
    white[10:30, :20], white[10:30, 20:] = np.array(RED, np.float32) / 255, np.array(GREEN, np.float32) / 255
    assert isinstance(asked, Asked) and np.allclose(asked.picture, white, atol=1e-6)
    assert asked.other.shape == (40, 40, 3)
    node: Any = EnsembleSimilarity.execute(
        Asker(two).picture(case)[None],
        "DINO",
        reference=Asker(two).read(tmp_path / "red.png")[None],
        masks=torch.from_numpy(np.asarray(Image.open(tmp_path / name), np.float32) / 255)[None],
    )
    (same,) = Likeness(load_measure("DINO"), Asker(two)).scores([replace(case, subjects=(replace(masked, box=None),))])
    assert node.result[0] == pytest.approx(same.score, abs=1e-5)
    (asked,) = Asker(two).ask(METRICS["DINO"], replace(case, subjects=(masked,)))
    assert isinstance(asked, Asked) and asked.picture.shape == (40, 40, 3)  # the left half
    assert (asked.picture[10:30, 20:] == asked.picture[10, 20]).all() and (asked.picture[:10] == 1).all()
    (asked,) = Asker(two, whole=True).ask(METRICS["DINO"], replace(case, subjects=(masked,)))
    assert isinstance(asked, Asked) and asked.picture.shape == (40, 80, 3)


def test_a_face_is_looked_for_in_the_box_around_a_mask(two, tmp_path):
    name = draw_mask(tmp_path / "mask.png", (44, 4, 76, 36))
    subject = replace(two.cases[0].subjects[0], category="face", box=None, mask=name)
    (tmp_path / "poses").mkdir()
    pose = frame_from_people(np.stack([standing(20, 30), standing(60)]), 80, 40)
    (tmp_path / "poses" / "shot_keypoints.json").write_text(json.dumps(pose), encoding="utf-8")
    asker = Asker(two, people=PoseFiles(tmp_path / "poses"))
    colours = []
    for each in (subject, replace(subject, mask="")):
        (asked,) = asker.ask(METRICS["FaceSim"], replace(two.cases[0], subjects=(each,)))
        assert isinstance(asked, Asked)
        colours.append(asked.picture[50, 50].tolist())
    assert colours == [pytest.approx(np.array(colour) / 255, abs=0.01) for colour in (GREEN, RED)]  # else the largest


def test_a_mask_that_will_not_do_is_one_sentence_and_the_others_have_their_scores(two, tmp_path):
    sentences = {
        draw_mask(tmp_path / "empty.png", (0, 0, 0, 0)): "the mask empty.png is empty; paint or find the subject in it",
        draw_mask(tmp_path / "small.png", (0, 0, 9, 9), (40, 20)): "the mask small.png is 40 x 20, its picture 80 x 40;"
        " make the mask of this picture",
    }
    left, right = two.cases[0].subjects
    for name, sentence in sentences.items():
        for box in (left.box, None):
            case = replace(two.cases[0], subjects=(replace(left, mask=name, box=box), right))
            bad, good = likeness(two).scores([case])
            assert (bad.subject, bad.score, bad.note) == ("left", None, sentence)
            assert good.score == pytest.approx(cosine(GREEN, BLUE), abs=1e-4)


def test_a_mask_that_was_painted_anew_is_measured_again(two, tmp_path):
    case = two.cases[0]
    name = draw_mask(tmp_path / "mask.png", (0, 0, 0, 0))
    subject = replace(case.subjects[0], mask=name, box=None, references=("red.png",))
    gathered = replace(two, cases=[replace(case, subjects=(subject,))])
    before = digests_of(gathered)
    draw_mask(tmp_path / "mask.png", (0, 0, 40, 40))
    assert before.keys() == digests_of(gathered).keys() and before != digests_of(gathered)


def test_whole_pictures_are_compared_on_request(two):
    both = tuple(np.add(RED, GREEN) / 2)
    left, right = likeness(two, whole=True).scores(two.cases)
    assert left.score == pytest.approx((cosine(both, RED) + cosine(both, BLUE)) / 2, abs=1e-4)
    assert right.score == pytest.approx(cosine(both, BLUE), abs=1e-4)


def test_a_cut_out_subject_has_a_reference_that_is_shown_whole(two, tmp_path):
    """A tall reference is padded to a square as the crop is; against a whole picture it stays as it is."""
    paint(tmp_path / "tall.png", RED, BLUE, (20, 60))
    case = two.cases[0]
    tall = replace(case, subjects=(replace(case.subjects[0], references=("tall.png",)),))
    (asked,) = Asker(two).ask(METRICS["DINO"], tall)
    assert isinstance(asked, Asked) and asked.other.shape == (60, 60, 3) and asked.picture.shape == (40, 40, 3)
    (asked,) = Asker(two, whole=True).ask(METRICS["DINO"], tall)
    assert isinstance(asked, Asked) and asked.other.shape == (60, 20, 3) and asked.picture.shape == (40, 80, 3)


def test_what_is_transparent_is_white(two, tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "nothing.png")
    assert (Asker(two).read(tmp_path / "nothing.png") == 1).all()


class Sighted:
    """A detector that finds everything on the right, and nothing that is called a unicorn."""

    name = "sighted"

    def find(self, picture: torch.Tensor, words: str):
        height, width = picture.shape[:2]
        return None if "unicorn" in words else (width / 2, 0.0, float(width), float(height))


def test_a_detector_finds_those_who_have_no_box(two):
    case = two.cases[0]
    subjects = (replace(case.subjects[1], box=None), replace(case.subjects[0], box=None, description="a unicorn"))
    found, lost = likeness(two, detector=Sighted()).scores([replace(case, subjects=subjects)])
    assert found.score == pytest.approx(cosine(GREEN, BLUE), abs=1e-4) and found.note == "found by sighted"
    assert lost.score is None and lost.note == "'a unicorn' was not found"


def test_texts_are_the_prompt_and_for_fashion_the_garments(two):
    (asked,) = Asker(two).ask(METRICS["CLIP-T"], two.cases[0])
    assert isinstance(asked, Asked) and (asked.other, asked.measurement.reference) == ("red and green", "red and green")
    (asked,) = Asker(two).ask(METRICS["FashionCLIP-T"], two.cases[0])
    assert isinstance(asked, Asked) and (asked.other, asked.measurement.subject) == ("a green coat", "right")
    (blank,) = Asker(two).ask(METRICS["CLIP-T"], replace(two.cases[0], prompt=""))
    assert isinstance(blank, Measurement) and blank.note == "there is no text for it"


def test_one_that_will_not_do_has_no_score_and_the_others_have_theirs(two, tmp_path, encoders):
    """Structure needs the same proportions."""
    paint(tmp_path / "wide.png", RED, GREEN, (80, 40))
    paint(tmp_path / "tall.png", RED, GREEN, (40, 80))
    cases = [replace(two.cases[0], key=key, structure=f"{key}.png") for key in ("wide", "tall")]
    gathered = Gathered(tmp_path, cases, dict.fromkeys(("wide", "tall"), tmp_path / "shot.png"))
    good, bad = Likeness(load_measure("Structure"), Asker(gathered)).scores(cases)
    assert good.score == pytest.approx(1.0, abs=1e-4) and good.reference == "wide.png"
    assert bad.score is None and "bring them to the same proportions" in bad.note
    (without,) = Likeness(load_measure("Structure"), Asker(gathered)).scores([replace(cases[0], structure="")])
    assert without.note == "there is no structure to keep"


def test_scores_are_those_of_the_metric_itself(two, encoders):
    """Through a real encoder of random weights."""
    measure = load_measure("CLIP-I")
    asker = Asker(two)
    picture = asker.picture(two.cases[0])
    crop = subject_crop(picture, (40, 0, 80, 40))
    (expected,) = measure.scores([crop], [asker.read(two.folder / "blue.png")])
    right = Likeness(measure, asker).scores(two.cases)[1]
    assert right.score == pytest.approx(expected, abs=1e-5)


# Poses and faces


def standing(x: float, size: float = 20) -> np.ndarray:
    """Somebody (18, 3) in pixels around an x."""
    random = np.random.default_rng(3)
    return np.concatenate([random.random((18, 2)) * size + (x - size / 2, 10), np.ones((18, 1))], axis=1)


def test_oks_is_asked_of_everybody(two, tmp_path):
    pose = frame_from_people(np.stack([standing(20), standing(60)]), 80, 40)
    case = replace(two.cases[0], pose=pose)
    near = frame_from_people(np.stack([standing(60), standing(20) + np.array([1, 0, 0])]), 80, 40)
    (tmp_path / "poses").mkdir()
    (tmp_path / "poses" / "shot_keypoints.json").write_text(json.dumps(near), encoding="utf-8")
    left, right = Poses(Asker(two, people=PoseFiles(tmp_path / "poses"))).scores([case])
    assert (left.subject, right.subject) == ("left", "right")
    assert right.score == pytest.approx(1.0) and left.score is not None and 0.1 < left.score < 1


def test_a_picture_nobody_has_looked_at_has_no_oks(two, tmp_path):
    (tmp_path / "poses").mkdir()
    case = replace(two.cases[0], pose=frame_from_people(np.stack([standing(20)]), 80, 40))
    (found,) = Poses(Asker(two, people=PoseFiles(tmp_path / "poses"))).scores([case])
    assert found.score is None and found.note == "nobody has looked for people in it"
    (found,) = Poses(Asker(two, people=PoseFiles(tmp_path / "poses"))).scores(two.cases)
    assert found.note == "no pose was asked for"


def test_who_is_in_a_box():
    frame = frame_from_people(np.stack([standing(20), standing(60, 36)]), 80, 60)

    def middle(person) -> float:
        assert person is not None
        return float(person[BODY][:, 0].mean() * 80)

    assert middle(person_at(frame, (0.0, 0.0, 0.5, 1.0))) == pytest.approx(20, abs=6)
    assert middle(person_at(frame, (0.5, 0.0, 1.0, 1.0))) == pytest.approx(60, abs=9)
    assert middle(person_at(frame, None)) == pytest.approx(60, abs=9)  # the largest
    assert person_at(frame, (0.4, 0.0, 0.5, 0.1)) is None
    assert person_at(frame_from_people(np.zeros((0, 18, 3)), 80, 60), None) is None


def test_faces_are_found_by_poses_or_by_a_detector_or_not_at_all(two, tmp_path):
    case = replace(
        two.cases[0], subjects=(replace(two.cases[0].subjects[0], category="face"), two.cases[0].subjects[1])
    )
    (blank,) = Asker(two).ask(METRICS["FaceSim"], case)
    assert isinstance(blank, Measurement) and blank.note.startswith("nothing looks for faces; give OpenPose's weights")
    (asked,) = Asker(two, detector=Sighted()).ask(METRICS["FaceSim"], case)
    assert isinstance(asked, Asked) and asked.picture.shape == asked.other.shape == (112, 112, 3)
    assert asked.picture[56, 56].tolist() == pytest.approx([value / 255 for value in RED], abs=0.01)
    (tmp_path / "poses").mkdir()
    pose = frame_from_people(np.stack([standing(20)]), 80, 40)
    (tmp_path / "poses" / "shot_keypoints.json").write_text(json.dumps(pose), encoding="utf-8")
    (asked,) = Asker(two, people=PoseFiles(tmp_path / "poses")).ask(METRICS["FaceSim"], case)
    assert isinstance(asked, Asked) and asked.measurement.note == "aligned by eyes and nose"


# What is measured


def test_goes_on_where_it_was_cut_off(tmp_path, two):
    """The third saving fails as a full disk would; what was saved before is not measured again."""
    keys = [f"k{number:02d}" for number in range(40)]
    for key in keys:
        shutil.copy(tmp_path / "shot.png", tmp_path / f"{key}.png")
    cases = [replace(two.cases[0], key=key) for key in keys]
    gathered = Gathered(tmp_path, cases, {key: tmp_path / f"{key}.png" for key in keys})
    scorer = likeness(gathered)
    plan = plan_of(gathered, False, [])
    (encoder,) = scorer.measure.encoders

    def stop(metric: str, done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_measured(tmp_path / "out", plan) as measured:
        measure_all([scorer], gathered, digests_of(gathered), measured, stop, scorer.asker.forget)
    seen, encoder.seen = encoder.seen, 0
    with open_measured(tmp_path / "out", plan) as measured:
        done: list[int] = []
        measure_all(
            [scorer],
            gathered,
            digests_of(gathered),
            measured,
            lambda _metric, count, _total: done.append(count),
            scorer.asker.forget,
        )
        found = collect([scorer], gathered, digests_of(gathered), measured)
    assert done == [40] and encoder.seen < seen / 2
    assert [each.key for each in found] == [key for key in keys for _ in range(2)]
    whole = likeness(gathered).scores(cases)
    assert [each.score for each in found] == pytest.approx([each.score for each in whole])
    assert not scorer.asker._kept


def test_a_picture_that_was_made_again_is_measured_again(tmp_path, two):
    scorer, plan = likeness(two), plan_of(two, False, [])
    scores = []
    for colour in (GREEN, GREY):
        paint(tmp_path / "shot.png", RED, colour)
        with open_measured(tmp_path / "out", plan) as measured:
            measure_all([scorer], two, digests_of(two), measured, lambda *_: None, scorer.asker.forget)
            scores.append(collect([scorer], two, digests_of(two), measured)[1].score)
    assert scores == pytest.approx([cosine(GREEN, BLUE), cosine(GREY, BLUE)], abs=1e-4)


def test_other_models_scores_are_not_taken(tmp_path, two):
    scorer, plan = likeness(two), plan_of(two, False, [])
    with open_measured(tmp_path / "out", plan) as measured:
        measure_all([scorer], two, digests_of(two), measured, lambda *_: None, scorer.asker.forget)
        other = likeness(two)
        other.measure.encoders[0].name = "other colours"
        assert (
            collect([other], two, digests_of(two), measured) == []
            and len(collect([scorer], two, digests_of(two), measured)) == 2
        )


def test_other_cases_are_not_continued(tmp_path, two):
    with open_measured(tmp_path / "out", plan_of(two, False, [])):
        pass
    with (
        pytest.raises(EvaluationError, match="take another folder"),
        open_measured(tmp_path / "out", plan_of(two, True, [])),
    ):
        pass


def test_a_picture_that_was_not_made_is_not_dropped(two, tmp_path):
    cases = [*two.cases, replace(two.cases[0], key="later")]
    gathered = Gathered(tmp_path, cases, two.pictures)
    scorer = likeness(gathered)
    with open_measured(tmp_path / "out", plan_of(gathered, False, [])) as measured:
        measure_all([scorer], gathered, digests_of(gathered), measured, lambda *_: None, scorer.asker.forget)
        found = collect([scorer], gathered, digests_of(gathered), measured)
    assert [(each.key, each.score is None, each.note) for each in found][2:] == [
        ("later", True, "the picture was not made")
    ]


def test_results_are_read_with_their_context(tmp_path):
    found = [Measurement("OKS", 0.5, "a", picture="a.png", note="é\u2028")]
    context = Context("coco-pose", {"a": "g"}, {"a": "p"})
    write_results(tmp_path, found, {"a.png": tmp_path / "a.png"}, context)
    for path in (tmp_path, tmp_path / "results.jsonl"):
        assert read_measured(path) == (found, {"a.png": tmp_path / "a.png"}, context)
    (tmp_path / "measure.json").write_text("[]")
    with pytest.raises(EvaluationError, match=r"measure.json is damaged; measure again"):
        read_measured(tmp_path)
    (tmp_path / "other.jsonl").write_text('{"metric": "OKS", "score": 1, "key": "a"}\n')
    assert read_measured(tmp_path / "other.jsonl")[2] == Context()
    with pytest.raises(EvaluationError, match="cannot be read; give a folder that `measure` wrote"):
        read_measured(tmp_path / "nothing")


# What there is to measure


def test_cases_are_read_as_they_were_written(tmp_path):
    subject = CaseSubject("a", "somebody", "person", ("x.png",), (0.0, 0.1, 0.5, 1.0), "m.png")
    cases = [
        Case(
            "one",
            "words\u2028 é",
            (subject,),
            "g",
            "p",
            3,
            64,
            32,
            frame_from_people(np.zeros((1, 18, 3)), 64, 32),
            "s.png",
        ),
        Case("two", ""),
    ]
    write_cases(cases, tmp_path / "manifest.jsonl")
    assert read_cases(tmp_path / "manifest.jsonl") == cases


def test_files_of_a_manifest_are_there_before_anything_is_measured(two, tmp_path):
    """A name that is wrong in line 900 is not found out after an hour."""
    paint(tmp_path / "secret.png", RED, RED)
    (tmp_path / "in").mkdir()
    for name in ("shot.png", "red.png", "blue.png"):
        shutil.copy(tmp_path / name, tmp_path / "in")
    path = tmp_path / "in" / "list.jsonl"
    case = replace(two.cases[0], picture="shot.png")
    for change, sentence in (
        ({"mask": "no.png"}, r"there is no file .*no\.png; put it there, or correct its name in the manifest"),
        ({"references": ("red.png", "no.png")}, r"there is no file .*no\.png; put it there"),
        ({"mask": "../secret.png"}, r"the file name '\.\./secret\.png' leaves"),
    ):
        write_cases([replace(case, subjects=(replace(case.subjects[0], **change),))], path)
        with pytest.raises(EvaluationError, match=sentence):
            gather(path, [], {})
    draw_mask(tmp_path / "in" / "mask.png", (0, 0, 9, 9))
    write_cases([replace(case, subjects=(replace(case.subjects[0], mask="mask.png"),))], path)
    assert gather(path, [], {}).cases[0].subjects[0].mask == "mask.png"


GOOD_SUBJECT = '{"name": "a", "description": "", "category": "person", "references": ["x.png"]'


@pytest.mark.parametrize(
    ("line", "sentence"),
    {
        "json": ("{", "is not JSON"),
        "list": ("[]", "lacks one of key, prompt"),
        "lacks": ('{"key": "a"}', "lacks one of key, prompt"),
        "unknown": ('{"key": "a", "prompt": "", "colour": "x"}', "has an unknown field 'colour'"),
        "kind": ('{"key": "a", "prompt": "", "seed": "1"}', "has a 'seed' of the wrong kind"),
        "truth": ('{"key": "a", "prompt": "", "seed": true}', "has a 'seed' of the wrong kind"),
        "pose": ('{"key": "a", "prompt": "", "pose": []}', "has a 'pose' of the wrong kind"),
        "path": ('{"key": "../a", "prompt": ""}', "the key '../a' is there twice or no name for a file"),
        "subject": ('{"key": "a", "prompt": "", "subjects": [3]}', "a subject of line 1 of"),
        "names": (
            f'{{"key": "a", "prompt": "", "subjects": [{GOOD_SUBJECT}}}, {GOOD_SUBJECT}}}]}}',
            "two subjects of one name",
        ),
        "box": (f'{{"key": "a", "prompt": "", "subjects": [{GOOD_SUBJECT}, "box": [0, 0, 2, 1]}}]}}', "four shares"),
        "mask": (
            f'{{"key": "a", "prompt": "", "subjects": [{GOOD_SUBJECT}, "mask": 1}}]}}',
            "has a 'mask' of the wrong kind",
        ),
        "deep": ("[" * 100_000, "is not JSON"),
    }.values(),
)
def test_says_what_is_wrong_with_a_case(tmp_path, line, sentence):
    (tmp_path / "manifest.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(EvaluationError) as raised:
        read_cases(tmp_path / "manifest.jsonl")
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_a_manifest_never_leaves_its_folder(tmp_path):
    paint(tmp_path / "secret.png", RED, RED)
    (tmp_path / "in").mkdir()
    write_cases([Case("a", "", picture="../secret.png")], tmp_path / "in" / "list.jsonl")
    with pytest.raises(EvaluationError, match=r"the file name '../secret.png' leaves"):
        gather(tmp_path / "in" / "list.jsonl", [], {})


def test_a_folder_of_pictures_has_prompts_and_references(tmp_path):
    paint(tmp_path / "in" / "a.png", RED, RED)
    paint(tmp_path / "in" / "b.jpg", RED, RED)
    (tmp_path / "in" / "a.txt").write_text(" somebody\n red ", encoding="utf-8")
    reference = paint(tmp_path / "who.png", RED, RED)
    gathered = gather(tmp_path / "in", [], {"alice": reference})
    assert [(case.key, case.prompt) for case in gathered.cases] == [("a", "somebody red"), ("b", "")]
    assert gathered.file("alice") == reference
    scores = likeness(gathered).scores(gathered.cases)
    assert [(each.subject, each.score) for each in scores] == [("alice", pytest.approx(1.0, abs=1e-4))] * 2
    with pytest.raises(EvaluationError, match="--reference bob: there is no file"):
        gather(tmp_path / "in", [], {"bob": tmp_path / "no.png"})
    (tmp_path / "in" / "a.txt").write_bytes("Zoë".encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"a\.txt is not UTF-8; save it as UTF-8 text"):
        gather(tmp_path / "in", [], {})
    (tmp_path / "in" / "a.txt").write_text("Zoë", encoding="utf-8-sig")
    assert gather(tmp_path / "in", [], {}).cases[0].prompt == "Zoë"
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="there are no pictures in"):
        gather(tmp_path / "empty", [], {})
