"""Measurements as text."""

from __future__ import annotations

import json

import pytest

from comfyui_ensemble.evaluation.errors import EvaluationError
from comfyui_ensemble.evaluation.results import Mean, Measurement, means, read_results, results_table

ONE = Measurement("OKS", 0.1 + 0.2, "job 1", "the king", "pictures/ä b.png", "poses/1.json", 'matched by "greed"')
PEOPLE = Measurement("OKS", 1.0, "job 3", people={"scores": [0.1 + 0.2], "similarities": [[1.0]]})
NONE = Measurement("FaceSim", None, "job 2", note="no face\nwas found")


def test_every_field_survives_the_text():
    assert read_results(results_table([ONE, NONE, PEOPLE])) == [ONE, NONE, PEOPLE]


def test_tables_join_by_writing_one_after_the_other():
    joined = results_table([ONE]) + "\n \n" + results_table([NONE]).replace("\n", "\r\n")
    assert read_results(joined) == [ONE, NONE]
    assert read_results("") == []


def test_one_line_a_measurement_whatever_the_texts_hold():
    odd = Measurement("CLIP-T", 1.0, "", reference="a\u2028line\u0085break\x0b")
    lines = results_table([odd, odd]).split("\n")
    assert len(lines) == 3 and json.loads(lines[0])["score"] == 1.0
    assert read_results("\n".join(lines)) == [odd, odd]


def test_halves_of_characters_do_not_reach_a_file():
    (read,) = read_results(results_table([Measurement("OKS", 0.5, "a\ud800b")]))
    assert read.key == "a?b"


def test_the_mean_is_over_what_was_measured_and_says_what_was_not():
    rows = [Measurement("OKS", 0.5, "a"), NONE, Measurement("OKS", None, "b"), Measurement("OKS", 0.25, "c")]
    assert means(rows) == [Mean("OKS", 0.375, 2, 1), Mean("FaceSim", None, 0, 1)]
    assert [str(mean) for mean in means(rows)] == [
        "OKS: 0.3750 over 2 (1 could not be measured)",
        "FaceSim: not measured (1 could not be measured)",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "OKS 0.5",
        "[]",
        '{"metric": "OKS", "score": 0.5}',
        '{"metric": "OKS", "score": true, "key": "a"}',
        '{"metric": "OKS", "score": "0.5", "key": "a"}',
        '{"metric": "OKS", "score": NaN, "key": "a"}',
        '{"metric": "OKS", "score": 1e999, "key": "a"}',
        '{"metric": "OKS", "score": 1' + "0" * 400 + ', "key": "a"}',
        '{"metric": "OKS", "score": 0.5, "key": "a", "colour": "red"}',
        '{"metric": "OKS", "score": 0.5, "key": 7}',
        '{"metric": "OKS", "score": 0.5, "key": "a", "people": [1]}',
        '{"metric": " ", "score": 0.5, "key": "a"}',
        '{"metric": "OKS", "score": 0.5, "key": "\\ud800"}',
        '{"metric": "OKS", "score": 1' + "0" * 5000 + ', "key": "a"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_none_is_named(line: str):
    with pytest.raises(EvaluationError, match=r"^line 2 of the results"):
        read_results(results_table([ONE]) + line)


def test_a_measurement_is_finite():
    with pytest.raises(EvaluationError, match="not a finite number"):
        Measurement("OKS", float("nan"), "a")
