"""Reports: the same numbers in every form, worst first, and nothing in a name is taken for a tag, a mark, a formula or a file."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.paper_tables import PaperTable, benchmarks, paper_tables, tables_of
from comfyui_ensemble.evaluation.report import Report, write_report
from comfyui_ensemble.evaluation.report_order import worst_first
from comfyui_ensemble.evaluation.report_summary import Context, summarise
from comfyui_ensemble.evaluation.report_text import measurements_csv, plain
from comfyui_ensemble.evaluation.results import Measurement, means
from comfyui_ensemble.training.ablations import astra, one_for_all

NASTY = "<script>alert(1)</script> & \"quotes\" | 'more' `code` *stars*\n[link](x)"


def some_measurements(pictures: int = 12) -> list[Measurement]:
    """Two people and a prompt a picture; every fifth picture has somebody without a pose."""
    random = np.random.default_rng(0)
    found = []
    for number in range(pictures):
        shot = Measurement("CLIP-I", None, f"k{number:02d}", picture=f"k{number:02d}.png")
        for name in ("alice", "bruno"):
            found.append(replace(shot, subject=name, score=float(random.normal(0.7, 0.05)), reference=f"{name}.png"))
            nobody = number % 5 == 0 and name == "bruno"
            score = None if nobody else float(random.random())
            found.append(replace(shot, metric="OKS", subject=name, score=score, note="nobody found" if nobody else ""))
        found.append(replace(shot, metric="CLIP-T", score=float(random.normal(0.3, 0.02)), reference="two people"))
    return found


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._inside == "h3":
            self.headings.append(data)
            self._inside = ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(report: Report) -> Page:
    return Page(report.page.read_text(encoding="utf-8"))


# Numbers


def test_means_and_counts_are_those_of_the_results():
    measured = some_measurements()
    ours = {each.metric: each for each in summarise(measured, Context())}
    for theirs in means(measured):
        found = ours[theirs.metric]
        assert found.estimate.mean == pytest.approx(theirs.mean)
        assert (found.measured, sum(found.unmeasured.values())) == (theirs.measured, theirs.unmeasured)
    assert ours["OKS"].unmeasured == {"nobody found": 3}


def test_pictures_of_a_group_are_drawn_together():
    """Scores that only vary between subjects: with the pictures as units the interval would be far too narrow."""
    levels = np.random.default_rng(1).normal(0.5, 0.1, size=10)
    measured = [
        Measurement("DINO", float(level), f"{number}-{copy}")
        for number, level in enumerate(levels)
        for copy in range(30)
    ]
    groups = {each.key: each.key.partition("-")[0] for each in measured}
    (alone,), (together,) = summarise(measured, Context()), summarise(measured, Context(groups=groups))
    widths = [each.estimate.high - each.estimate.low for each in (alone, together)]
    assert together.estimate.mean == pytest.approx(alone.estimate.mean)
    assert widths[1] == pytest.approx(2 * 1.96 * levels.std() / 10**0.5, rel=0.2)
    assert widths[1] > 4 * widths[0]


def test_parts_have_means_of_their_own_where_there_are_several():
    measured = some_measurements(4)
    parts = {f"k{number:02d}": "odd" if number % 2 else "even" for number in range(4)}
    summaries = summarise(measured, Context(parts=parts))
    assert [each.part for each in summaries] == [""] * 3 + ["even"] * 3 + ["odd"] * 3
    by_hand = [each.score or 0 for each in measured if each.metric == "CLIP-T" and parts[each.key] == "odd"]
    odd = next(each for each in summaries if (each.metric, each.part) == ("CLIP-T", "odd"))
    assert odd.estimate.mean == pytest.approx(np.mean(by_hand))
    assert {each.part for each in summarise(measured, Context(parts=dict.fromkeys(parts, "all")))} == {""}


def test_what_nobody_could_measure_is_said():
    (found,) = summarise(
        [Measurement("FaceSim", None, "a", note="no face"), Measurement("FaceSim", None, "b")], Context()
    )
    assert math.isnan(found.estimate.mean) and found.unmeasured == {"no face": 1, "no reason given": 1}


def test_average_precision_stands_below_oks_over_everything_and_over_parts(tmp_path):
    """Two pictures of one person each, who was found in the first alone, and there with an OKS of 0.8: right up to 0.8, which
    is 7 of the 10 thresholds. What was found there stands before the first half of the recalls: 51 of 101 points."""
    found = {"scores": [0.9], "similarities": [[0.8]], "ignored": [False], "crowd": [False]}
    lost = {"scores": [], "similarities": [], "ignored": [False], "crowd": [False]}
    measured = [Measurement("OKS", 0.8, "a", people=found), Measurement("OKS", 0.0, "b", people=lost)]
    measured += [Measurement("DINO", 0.5, "a")]
    context = Context("coco-pose", parts={"a": "one", "b": "two"})
    report = write_report(measured, tmp_path, context=context)
    ranked = {(each.part, each.metric): each.estimate.mean for each in report.summaries}
    assert list(ranked)[:8] == [("", name) for name in ("OKS", "AP", "AP50", "AP75", "AR", "AR50", "AR75", "DINO")]
    assert [ranked["", name] for name in ("AP", "AP50", "AR", "AR50")] == pytest.approx(
        [0.7 * 51 / 101, 51 / 101, 0.35, 0.5], abs=1e-9
    )
    assert (ranked["one", "AP"], ranked["one", "AR"]) == pytest.approx((0.7, 0.7)) and ranked["two", "AR50"] == 0
    text = report.markdown.read_text(encoding="utf-8")
    assert "| AP | 0.3535 | 2 |  |" in text and "| AR50 | 0.5000 | 2 |  |" in text
    data = json.loads(report.json.read_text(encoding="utf-8"))["summaries"]
    assert next(each for each in data if each["metric"] == "AP")["low"] is None
    alone = write_report([replace(each, people=None) for each in measured], tmp_path / "alone", context=context)
    assert report.picture.shape == alone.picture.shape  # they are plotted no more than before: nothing is spread
    assert {each.metric for each in alone.summaries} == {"OKS", "DINO"}


# Order


def test_the_worst_come_first_and_what_could_not_be_measured_counts_as_worst():
    table = {"a": (0.9, 0.1), "b": (0.2, 0.05), "c": (0.5, None), "d": (0.6, 0.2)}
    measured = [
        Measurement(metric, score, key)
        for key, scores in table.items()
        for metric, score in zip(("CLIP-I", "OKS"), scores, strict=True)
    ]
    shots = worst_first(measured)
    assert [shot.key for shot in shots] == ["b", "c", "a", "d"]
    # Places by hand: CLIP-I b c d a, OKS c b a d, each from 0 to 1 in thirds.
    assert [shot.standing for shot in shots] == pytest.approx([1 / 6, 1 / 6, 5 / 6, 5 / 6])


def test_equal_scores_share_their_place_and_scales_do_not_matter():
    measured = [Measurement("A", score, key) for key, score in (("x", 1.0), ("y", 1.0), ("z", 1000.0))]
    assert [shot.standing for shot in worst_first(measured)] == [0.25, 0.25, 1.0]


# Forms


def test_every_form_says_the_same(tmp_path):
    measured = some_measurements()
    groups, parts = {"k00": "first"}, {each.key: "all" for each in measured}
    report = write_report(measured, tmp_path, "Try", context=Context("coco-pose", groups, parts), name="mine")
    data = json.loads(report.json.read_text(encoding="utf-8"))
    assert (data["title"], data["name"], data["benchmark"], data["level"]) == ("Try", "mine", "coco-pose", 0.95)
    text = report.markdown.read_text(encoding="utf-8")
    words = read(report).words
    for summary, written in zip(report.summaries, data["summaries"], strict=True):
        assert summary.estimate.mean == written["mean"] and summary.measured == written["measured"]
        assert f"| {summary.metric} | {summary.estimate.mean:.4f} \\[" in text
        assert any(word.startswith(f"{summary.estimate.mean:.4f} [") for word in words)
    rows = list(csv.DictReader(io.StringIO(report.csv.read_text(encoding="utf-8"))))
    assert len(rows) == len(measured)
    for row, each in zip(rows, measured, strict=True):
        assert float(row["score"] or "nan") == pytest.approx(
            each.score if each.score is not None else math.nan, nan_ok=True
        )
        assert (row["key"], row["subject"], row["note"]) == (each.key, each.subject, each.note)
    assert {row["group"] for row in rows if row["key"] == "k00"} == {"first"}
    with Image.open(report.plot) as plot:
        assert np.array_equal(np.asarray(plot), report.picture)


def test_stands_beside_the_papers_rows(tmp_path):
    report = write_report(some_measurements(), tmp_path, context=Context("coco-pose"), name="mine")
    data = json.loads(report.json.read_text(encoding="utf-8"))
    assert [(each["paper"], each["table"]) for each in data["papers"]] == [("ASTRA", "Table 3"), ("ASTRA", "Table 4")]
    table = data["papers"][0]
    assert table["columns"] == ["OKS", "CLIP-I", "DINO", "CLIP-T"] and table["ours"][2] is None
    assert ["ASTRA", 0.0452, 0.7087, 0.4457, 0.3194] in table["rows"]
    text = report.markdown.read_text(encoding="utf-8")
    assert "| IP-Adapter\\* | 0.0314 | 0.6942 | 0.4310 | 0.3050 |" in text
    mine = next(line for line in text.splitlines() if line.startswith("| **mine** |"))
    assert mine.count("**–**") == 1


def test_a_papers_part_stands_beside_that_part(tmp_path):
    measured = [Measurement("DINO", score, key) for key, score in (("a", 0.5), ("b", 0.9))]
    parts = {"a": "human, pose", "b": "animal, pose"}
    data = json.loads(write_report(measured, tmp_path, context=Context("seal", parts=parts)).json.read_text())
    ours = {each["part"]: each["ours"][1]["mean"] for each in data["papers"]}
    assert ours == {"animal, pose": 0.9, "human, pose": 0.5}
    only = write_report(measured[:1], tmp_path, context=Context("seal", parts=parts))
    data = json.loads(only.json.read_text())
    assert [each["part"] for each in data["papers"]] == ["human, pose"]


def test_the_page_shows_pictures_worst_first_and_holds_them_itself(tmp_path):
    measured = some_measurements()
    Image.new("RGB", (300, 200), (250, 10, 10)).save(tmp_path / "shot.png")
    pictures = {each.picture: tmp_path / "shot.png" for each in measured}
    pictures |= {"alice.png": np.full((40, 30, 3), 0.5), "bruno.png": np.zeros((9, 9, 3), np.uint8)}
    page = read(write_report(measured, tmp_path / "report", pictures=pictures))
    expected = [f"{place}. {shot.key}" for place, shot in enumerate(worst_first(measured), start=1)]
    assert page.headings == expected
    images = page.all("img")
    assert len(images) == 1 + 12 * 3 and all((image["src"] or "").startswith("data:image/") for image in images)
    shot = next(image for image in images if image["alt"] == "k00.png")
    with Image.open(io.BytesIO(b64decode((shot["src"] or "").partition(",")[2]))) as small:
        assert small.size == (224, 149)
        red, green, _blue = np.asarray(small)[70, 100].astype(int)
        assert red > 230 and green < 40
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        *("measurements.csv", "report.html", "report.json", "report.md", "scores.png"),
    ]


def test_what_cannot_be_read_is_no_picture(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    measured = [Measurement("OKS", 0.5, "a", picture="torn.png", reference="gone.png")]
    pictures = {"torn.png": tmp_path / "torn.png", "gone.png": tmp_path / "gone.png"}
    page = read(write_report(measured, tmp_path / "report", pictures=pictures))
    assert page.words.count("no picture") == 2 and len(page.all("img")) == 1


def test_many_pictures_are_counted_rather_than_shown(tmp_path):
    measured = [Measurement("OKS", number / 500, f"k{number}") for number in range(250)]
    page = read(write_report(measured, tmp_path))
    assert len(page.headings) == 200 and page.headings[0] == "1. k0"
    assert any("50 better ones" in word for word in page.words)


# Names


def test_nothing_in_a_name_becomes_a_tag(tmp_path):
    measured = [Measurement(NASTY, 0.5, NASTY, subject=NASTY, picture=NASTY, reference=NASTY, note=NASTY)]
    measured += [replace(measured[0], metric="OKS", score=None)]
    pictures = {NASTY: np.zeros((8, 8, 3))}
    context = Context(parts={NASTY: NASTY}, groups={NASTY: NASTY})
    page = read(write_report(measured, tmp_path, NASTY, pictures=pictures, name=NASTY, context=context))
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "tr", "th", "td", "img"),
        *("article", "div", "figure", "figcaption", "span"),
    }
    assert any(image["alt"] == NASTY for image in page.all("img"))
    assert page.words.count(NASTY) >= 5


def test_nothing_in_a_name_becomes_a_mark_or_a_cell(tmp_path):
    measured = [Measurement(NASTY, 0.5, "a")]
    text = write_report(measured, tmp_path, NASTY).markdown.read_text(encoding="utf-8")
    assert "<script" not in text and plain(NASTY) in text
    row = next(line for line in text.splitlines() if line.startswith("| &lt;script"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5


def test_nothing_in_a_name_becomes_a_formula():
    measured = [Measurement("OKS", -0.5, "=1+1", subject="@x", note="-2"), Measurement("OKS", 0.5, "plain")]
    rows = list(csv.DictReader(io.StringIO(measurements_csv(measured, Context()))))
    assert (rows[0]["key"], rows[0]["subject"], rows[0]["note"], rows[0]["score"]) == ("'=1+1", "'@x", "'-2", "-0.5")
    assert rows[1]["key"] == "plain"


def test_a_name_is_no_path(tmp_path):
    """Only what the caller gives a file for is opened, whatever the text of a workflow says."""
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    secret = str(tmp_path / "secret.png")
    page = read(write_report([Measurement("OKS", 0.1, "a", picture=secret, reference=secret)], tmp_path / "report"))
    assert len(page.all("img")) == 1 and page.words.count(secret) == 1


# Files


def test_the_same_measurements_give_the_same_files(tmp_path):
    context = Context("coco-pose")
    for name in ("one", "two"):
        write_report(some_measurements(), tmp_path / name, context=context)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_report_replaces_an_earlier_one(tmp_path):
    write_report(some_measurements(), tmp_path, "first")
    report = write_report(some_measurements(3), tmp_path, "second")
    assert "second" in report.page.read_text(encoding="utf-8") and "first" not in report.markdown.read_text(
        encoding="utf-8"
    )
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5], [None], [-1.0, 1.0, None]])
def test_few_or_equal_scores_are_drawn_too(tmp_path, scores):
    measured = [Measurement("FaceSim", score, str(number)) for number, score in enumerate(scores)]
    report = write_report(measured, tmp_path, context=Context("humanbench"))
    assert report.picture.ndim == 3 and report.picture.std() > 0


def test_says_what_is_wrong(tmp_path):
    with pytest.raises(EvaluationError, match="no measurements; measure something first"):
        write_report([], tmp_path)
    with pytest.raises(EvaluationError, match="no paper has numbers for 'coco'; choose one of dreambench"):
        write_report(some_measurements(), tmp_path, context=Context("coco"))
    assert not list(tmp_path.iterdir())


# The papers' numbers


def table(benchmark: str, source: str) -> PaperTable:
    return next(each for each in tables_of(benchmark) if each.source == source)


def test_papers_rows_are_those_of_the_ablations():
    """Typed twice, by different hands: ASTRA's Table 4 and what One-for-All's Tables 1 and 4 have in common with the ablations."""
    assert [numbers for _name, numbers in table("coco-pose", "ASTRA, Table 4").rows[:-1]] == [
        tuple(row.paper) for row in astra.ABLATION.rows[1:]
    ]
    typed = {
        numbers for name in ("Table 1", "Table 4") for _, numbers in table("humanbench", f"One-for-All, {name}").rows
    }
    columns = [heading for heading, _ in table("humanbench", "One-for-All, Table 1").columns]
    places = [columns.index(column) for column in one_for_all.ABLATION.columns]
    there = [tuple(row.paper) for row in one_for_all.ABLATION.rows if row.paper]
    assert there and set(there) <= {tuple(numbers[place] for place in places) for numbers in typed}


def test_every_table_is_whole():
    assert benchmarks() == ["dreambench", "dreambench-multi", "coco-pose", "humanbench", "humanbench-garments", "seal"]
    for each in paper_tables():
        assert all(len(numbers) == len(each.columns) for _name, numbers in each.rows)
        assert all(number is None or 0 < number < 1 for _name, numbers in each.rows for number in numbers)
    assert tables_of("") == []


def test_writes_numbers_with_the_tables_digits():
    assert table("coco-pose", "ASTRA, Table 3").written(0.027) == "0.0270"
    assert table("dreambench", "ASTRA, Table 1").written(0.78) == "0.780"


def test_reads_a_folder_of_its_own(tmp_path: Path):
    report = write_report(some_measurements(), tmp_path / "deep" / "er")
    assert report.page.parent == tmp_path / "deep" / "er"
