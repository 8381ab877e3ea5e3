"""Retrieval over the bundled database, end to end, on the held-out prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comfyui_ensemble.models_info.registry import BUNDLED_POSES, POSE_DATABASES, find_file, find_minilm
from comfyui_ensemble.pose_db.database import load_database
from comfyui_ensemble.pose_db.encoder import SentenceEncoder
from comfyui_ensemble.pose_db.evaluate import (
    FIT,
    REPORT,
    THRESHOLDS,
    Answers,
    draw_curve,
    evaluate,
    load_held_out,
    measure_curve,
    measure_lists,
)
from comfyui_ensemble.pose_db.retriever import DEFAULT_THRESHOLD, PoseRetriever

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def retriever() -> PoseRetriever:
    path = find_file(POSE_DATABASES, BUNDLED_POSES.name)
    assert path is not None
    return PoseRetriever(load_database(path), find_minilm())


@pytest.fixture(scope="module")
def measured(retriever) -> dict:
    return evaluate(retriever, load_held_out(), ["normalized"])


def test_the_held_out_set_is_what_it_says(retriever):
    cases = load_held_out()
    prompts = [case.prompt.lower() for case in cases]
    actions = {tags["action"] for tags in retriever.database.tags}
    paraphrases = [case for case in cases if case.actions]
    assert len(set(prompts)) == len(prompts)
    assert len(paraphrases) >= 500 and len(cases) - len(paraphrases) >= 200
    assert {action for case in paraphrases for action in case.actions} <= actions
    assert not set(prompts) & {prompt.lower() for prompt in retriever.database.prompts}
    for half in (FIT, REPORT):
        assert sum(case.half == half for case in paraphrases) >= 250
        assert sum(case.half == half for case in cases) - sum(case.half == half for case in paraphrases) >= 100


def test_the_default_threshold_has_the_best_f1_on_the_fitting_half(measured):
    assert measured["normalized"]["threshold"] == pytest.approx(DEFAULT_THRESHOLD, abs=0.011)


def test_the_docs_state_what_is_measured(measured):
    documented = json.loads((DOCS / "retrieval_f1.json").read_text(encoding="utf-8"))
    figures = documented["normalized"]["report_at_default"]
    for name in ("top1_action_accuracy", "f1", "paraphrases_found", "out_of_domain_found"):
        assert measured["normalized"]["report_at_default"][name] == pytest.approx(figures[name], abs=0.01), name
    page = (DOCS / "retrieval.md").read_text(encoding="utf-8")
    assert f"{100 * figures['top1_action_accuracy']:.1f} %" in page
    assert f"{figures['f1']:.3f}" in page


def test_lists_find_what_real_prompts_are_about(retriever):
    """The lists are measured with made-up queries when they are built; prompts are no easier than those."""
    queries = SentenceEncoder(find_minilm()).encode([case.prompt for case in load_held_out() if case.actions][::3])
    measured = measure_lists(retriever.database.embeddings, queries)
    assert len(queries) > 200 and measured["chosen"] < measured["lists"] / 2
    assert measured["found"][measured["chosen"]]["prompts"] >= 0.98
    for found in measured["found"].values():
        assert abs(found["prompts"] - found["samples"]) < 0.1


def test_an_entrys_own_prompt_finds_it(retriever):
    rng = np.random.default_rng(0)
    for entry in rng.choice(len(retriever.database), 20, replace=False):
        match = retriever.search(retriever.database.prompts[entry], 1)[0]
        assert retriever.database.prompts[match.entry] == retriever.database.prompts[entry]
        assert match.score == pytest.approx(1, abs=2e-3)  # embeddings are stored with 16 bits


def test_ranks_walk_the_neighbours(retriever):
    matches = retriever.search("two people shaking hands", 30)
    assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
    assert len({match.entry for match in matches}) == 30
    assert matches[:10] == retriever.search("two people shaking hands", 10)


def test_precision_and_recall_by_counting():
    rng = np.random.default_rng(1)
    scores, fits = rng.uniform(0.1, 1, 300), rng.random(300) < 0.7
    right = fits & (rng.random(300) < 0.8)
    curve = measure_curve(Answers(scores, right, fits))
    for at, threshold in enumerate(THRESHOLDS):
        correct = sum(bool(r) and s >= threshold for s, r in zip(scores, right, strict=True))
        found = sum(s >= threshold for s in scores)
        precision, recall = correct / max(found, 1), correct / sum(fits)
        assert curve.precision[at] == pytest.approx(precision)
        assert curve.recall[at] == pytest.approx(recall)
        assert curve.f1[at] == pytest.approx(2 * precision * recall / (precision + recall) if correct else 0)


def test_the_curve_is_drawn(measured):
    picture = draw_curve(measured)
    assert picture.size == Image.open(DOCS / "retrieval_f1.png").size
    assert len(picture.getcolors(100_000) or ()) > 5
