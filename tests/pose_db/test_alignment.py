"""The alignment score: weights against scipy's general solver, the threshold against counting, answers of models."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize

from comfyui_ensemble.pose_db.alignment import (
    DEFAULT_WEIGHTS,
    alignment_score,
    f1_curve,
    fit_alignment,
    fit_weights,
    parse_answer,
    parse_weights,
    read_scores,
    structured_question,
)
from comfyui_ensemble.pose_db.alignment_plot import draw_fit
from comfyui_ensemble.pose_db.factory_cli import main


def people(count: int, weights, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    source = np.random.default_rng(seed)
    parts = source.uniform(0, 1, (count, 3))
    return parts, (parts @ np.asarray(weights) + source.normal(0, noise, count)).clip(0, 1)


def solver(parts: np.ndarray, human: np.ndarray) -> np.ndarray:
    """The same problem for scipy's sequential least squares programming."""
    found = minimize(
        lambda weights: ((parts @ weights - human) ** 2).mean(),
        np.full(parts.shape[1], 1 / parts.shape[1]),
        bounds=[(0, 1)] * parts.shape[1],
        constraints=[{"type": "eq", "fun": lambda weights: weights.sum() - 1}],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.x


@pytest.mark.parametrize("seed", range(12))
def test_weights_are_the_constrained_least_squares(seed):
    source = np.random.default_rng(seed)
    # Also people whose scores the three parts explain badly, so that weights end at 0.
    parts, human = people(40, source.dirichlet([0.4] * 3), [0.05, 0.6][seed % 2], seed)
    weights = fit_weights(parts, human)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights, solver(parts, human), atol=2e-4)


def test_weights_come_back():
    parts, human = people(400, (0.45, 0.4, 0.15), 0.0, 1)
    np.testing.assert_allclose(fit_weights(parts, human), (0.45, 0.4, 0.15), atol=1e-9)


def test_parts_that_never_differ_are_no_obstacle():
    weights = fit_weights(np.full((5, 3), 0.5), np.full(5, 0.5))
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)


def test_f1_by_counting():
    source = np.random.default_rng(4)
    scores = source.uniform(0, 1, 60).round(1)  # with equals
    accepted = scores + source.normal(0, 0.3, 60) > 0.5
    curve = f1_curve(scores, accepted)
    for position, threshold in enumerate(curve.thresholds):
        taken = [score >= threshold for score in scores]
        true = sum(one and two for one, two in zip(taken, accepted, strict=True))
        precision, recall = true / sum(taken), true / sum(accepted)
        assert curve.precision[position] == pytest.approx(precision)
        assert curve.recall[position] == pytest.approx(recall)
        expected = 2 * precision * recall / (precision + recall) if true else 0
        assert curve.f1[position] == pytest.approx(expected)
    assert curve.f1[curve.best()] == curve.f1.max()


def test_separable_decisions_give_f1_of_one():
    parts, human = people(300, DEFAULT_WEIGHTS, 0.0, 5)
    fit = fit_alignment(parts, human, human >= 0.6)
    assert fit.curve.f1.max() == 1
    assert ((fit.scores >= fit.threshold) == (human >= 0.6)).all()
    with pytest.raises(ValueError, match="nothing was accepted"):
        f1_curve(human, np.zeros(300, dtype=bool))


def test_score_is_the_weighted_sum():
    assert float(alignment_score([0.5, 1.0, 0.25], (0.4, 0.4, 0.2))) == pytest.approx(0.65)
    assert alignment_score(np.ones((2, 7, 3))).shape == (2, 7)


@pytest.mark.parametrize(
    "text, weights",
    [
        ("0.4, 0.4, 0.2", (0.4, 0.4, 0.2)),
        ("2 1 1", (0.5, 0.25, 0.25)),
        ("1;0;0", (1, 0, 0)),
        ("0.2,0.2,0.1", (0.4, 0.4, 0.2)),
    ],
)
def test_weights_as_text(text, weights):
    assert parse_weights(text) == pytest.approx(weights)


@pytest.mark.parametrize("text", ["", "1, 2", "a, b, c", "-1, 1, 1", "0, 0, 0", "nan, 1, 1", "inf, 1, 1", "1,2,3,4"])
def test_weights_that_are_none(text):
    with pytest.raises(ValueError, match="is not three weights"):
        parse_weights(text)


def test_question_names_prompt_and_parts():
    question = structured_question('a man\nsays "hello"')
    assert "Prompt: \"a man says 'hello'\"" in question
    assert all(f'"{part}"' in question for part in ("subject", "interaction", "detail"))
    with pytest.raises(ValueError, match="gives no rating"):
        parse_answer(question)  # a model that only repeats the question has rated nothing


@pytest.mark.parametrize(
    "answer, ratings",
    [
        ('Two people.\n{"subject": 9, "interaction": 7.5, "detail": 10}', (0.9, 0.75, 1.0)),
        (
            '{"subject": 1, "interaction": 1, "detail": 1} no: {"Detail": 4, "Subject": 2, "Interaction": 3}',
            (0.2, 0.3, 0.4),
        ),
        ('```json\n{\n "subject": 0,\n "interaction": 0.5,\n "detail": 10\n}\n```', (0, 0.05, 1)),
        ('{"subject": "8", "interaction": "7", "detail": "6"}', (0.8, 0.7, 0.6)),
        ("- **Subject**: 8/10\n- Interaction - 7.5 / 10\n- detail = 40/100", (0.8, 0.75, 0.4)),
        ("Subject consistency: 9\nInteraction logic: 8\nDetail fidelity: 7", (0.9, 0.8, 0.7)),
    ],
)
def test_answers(answer, ratings):
    assert parse_answer(answer) == pytest.approx(ratings)


@pytest.mark.parametrize(
    "answer, problem",
    [
        ("I cannot see a picture.", "gives no rating for subject and interaction and detail"),
        ('{"subject": 9, "interaction": 7}', "gives no rating for"),
        ('{"subject": 11, "interaction": 7, "detail": 3}', "rates subject with 11"),
        ('{"subject": 1, "interaction": -7, "detail": 3}', "rates interaction with -7"),
        ('{"subject": 1, "interaction": NaN, "detail": 3}', "rates interaction with nan"),
    ],
)
def test_answers_that_say_nothing(answer, problem):
    with pytest.raises(ValueError, match=problem):
        parse_answer(answer)


def write_csv(path, parts, human, accepted=None):
    lines = ["subject,interaction,detail,human" + (",accepted" if accepted is not None else "")]
    for row in range(len(parts)):
        values = [*parts[row], human[row], *([int(accepted[row])] if accepted is not None else [])]
        lines.append(",".join(map(str, values)))
    path.write_text("\n".join(lines), encoding="utf-8")


def test_command_fits_and_draws(tmp_path, capsys):
    parts, human = people(200, (0.5, 0.3, 0.2), 0.02, 6)
    write_csv(tmp_path / "scores.csv", 10 * parts, 10 * human, human > 0.55)
    plot = tmp_path / "fit.png"
    assert main(["fit-weights", str(tmp_path / "scores.csv"), "--scale", "10", "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    fit = fit_alignment(parts, human, human > 0.55)
    assert f"weights: subject {fit.weights[0]:.4f}, interaction {fit.weights[1]:.4f}" in said
    assert f"threshold: {fit.threshold:.4f}" in said and "n = 200" in said
    with Image.open(plot) as picture:
        assert picture.size == (840, 440) and len(picture.getcolors(maxcolors=100_000) or []) > 5


def test_plot_shows_the_threshold_where_it_is():
    parts, human = people(50, DEFAULT_WEIGHTS, 0.05, 7)
    fit = fit_alignment(parts, human, human > 0.5)
    picture = np.asarray(draw_fit(fit)).astype(int)
    column = 420 + 56 + round(308 * fit.threshold)
    dark = (picture[100:300, column - 1 : column + 2].sum(-1) < 200).any(1).mean()
    assert dark > 0.9


@pytest.mark.parametrize(
    "text, problem",
    [
        ("subject,interaction,human\n1,1,1", "has no column detail"),
        ("", "has no column subject"),
        ("subject,interaction,detail,human\n1,1,,1", "line 2: a score is missing or not a number"),
        ("subject,interaction,detail,human\n1,1,1,1\n1,1,nan,1", "line 3: a score is missing or not a number"),
        ("subject,interaction,detail,human\n1,1,7,1", "has a score that is not between 0 and 1"),
    ],
)
def test_bad_score_files(tmp_path, capsys, text, problem):
    (tmp_path / "scores.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        read_scores(tmp_path / "scores.csv")
    assert main(["fit-weights", str(tmp_path / "scores.csv")]) == 2
    assert problem in capsys.readouterr().out


def test_without_a_column_the_people_accept_from_a_share_on(tmp_path):
    write_csv(tmp_path / "scores.csv", np.ones((3, 3)), [0.4, 0.5, 0.9])
    assert read_scores(tmp_path / "scores.csv", accept_at=0.5)[2].tolist() == [False, True, True]
