"""Tables, sentences and their place in a document, from results that are written down by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_ensemble.training.ablations.report import AGREES, OPEN, OPPOSES, findings, render, summary, write_between
from comfyui_ensemble.training.ablations.results import Plan, Store
from comfyui_ensemble.training.ablations.table import (
    ABLATIONS,
    MEASURES,
    Ablation,
    Claim,
    Row,
    find_ablation,
    trainings,
)
from comfyui_ensemble.training.errors import TrainingError

ASKED = {"resolution": 128, "reference": 64}


def made_up(claims: tuple[Claim, ...]) -> Ablation:
    return Ablation(
        name="made-up",
        title="Made up",
        source="Nobody, Table 9",
        measures=("identity", "leakage", "routing_iou"),
        columns=("CLIP-I",),
        rows=(Row("full", paper=(0.9,)), Row("less", {"dsm": False}, paper=(0.25,)), Row("least", {"dsm": False})),
        claims=claims,
        note="Of nothing.",
        study=lambda *_: pytest.fail("nothing is to be trained"),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two seeds x four scenes: "full" has 0.5 more identity than "less", and 0.1 more leakage."""
    store = Store(tmp_path / "made-up")
    for seed in (0, 1):
        for name, identity, leakage in (("full", 0.7, 0.3), ("less", 0.2, 0.2), ("least", 0.7, 0.3)):
            scenes = [
                {"identity": identity + 0.01 * scene + 0.02 * seed, "leakage": leakage, "routing_iou": float("nan")}
                for scene in range(4)
            ]
            store.save(Row(name), seed, scenes)
    return store


def test_a_table_has_means_intervals_and_the_papers_numbers(store: Store) -> None:
    ablation = made_up((Claim("full", "less", "identity", "CLIP-I"),))
    text = render(ablation, Plan(ASKED, 40, 2, 4, False), store, "sheet.png")
    lines = text.splitlines()
    assert lines[0] == "## Made up" and "Nobody, Table 9" in text and "![" in lines[-1] and "(sheet.png)" in lines[-1]
    assert "40 steps, 2 seeds x 4 scenes = 8 pictures a row" in text and "random weights" not in text
    head, rule, full, less, least = (line for line in lines if line.startswith("|"))
    assert "identity ↑" in head and "leakage ↓" in head and "paper: CLIP-I" in head
    assert len({line.count("|") for line in (head, rule, full, less, least)}) == 1
    cells = [cell.strip() for cell in full.strip("|").split("|")]
    assert cells[0] == "full" and cells[1].startswith("0.725 [0.7") and cells[2] == "0.300 [0.300, 0.300]"
    assert cells[3] == "–" and cells[4] == "0.9"
    assert least.rstrip(" |").endswith("–")


def test_sentences_are_computed_from_the_numbers(store: Store) -> None:
    claims = (
        Claim("full", "less", "identity", "CLIP-I"),
        Claim("full", "less", "leakage", "CLIP-I"),
        Claim("full", "least", "identity", said="Figure 7"),
        Claim("full", "least", "routing_iou", said="Figure 8"),
    )
    ablation, plan = made_up(claims), Plan(ASKED, 40, 2, 4, False)
    found = findings(ablation, plan, store)
    assert [each.verdict for each in found] == [AGREES, OPPOSES, OPEN, OPEN]
    assert summary(found).startswith("Of the 4 differences that the paper reports, 1 is found here, 1 the other way")
    text = render(ablation, plan, store, "sheet.png")
    assert (
        "- *full* is better than *less* in identity by 0.5000 (95 % interval +0.5000 to +0.5000), as in the paper: its"
        " CLIP-I is 0.9 against 0.25."
    ) in text
    assert "- *full* is worse than *less* in leakage by 0.1000" in text
    assert "*full* and *least* are not told apart in identity (+0.0000" in text and "Figure 7" in text
    assert "routing IoU could not be measured" in text


def test_random_weights_and_a_single_seed_are_said_so(store: Store) -> None:
    text = render(made_up(()), Plan(ASKED, 40, 1, 4, True), store, "sheet.png")
    assert "random weights: these numbers mean nothing" in text and "With one seed" in text


def test_a_table_goes_between_its_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "doc.md"
    path.write_text("# A\n<!-- ablation x -->\nold\n<!-- end of ablation x -->\ntail\n", encoding="utf-8")
    for _ in range(2):
        write_between(path, "x", "new\n")
        assert path.read_text(encoding="utf-8") == "# A\n<!-- ablation x -->\nnew\n<!-- end of ablation x -->\ntail\n"
    with pytest.raises(TrainingError, match="no place for the table"):
        write_between(path, "y", "new\n")


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_table_is_consistent(name: str) -> None:
    ablation = find_ablation(name)
    names = [row.name for row in ablation.rows]
    assert ablation.name == name and len(set(names)) == len(names)
    assert set(ablation.measures) <= set(MEASURES)
    for row in ablation.rows:
        assert len(row.paper) in (0, len(ablation.columns))
    for claim in ablation.claims:
        assert {claim.winner, claim.loser} <= set(names) and claim.measure in ablation.measures
        assert bool(claim.column) != bool(claim.said)
        if claim.column:
            place = ablation.columns.index(claim.column)
            winner, loser = (ablation.row(each).paper[place] for each in (claim.winner, claim.loser))
            assert winner is not None and loser is not None and winner > loser, "the paper has it the other way"
    assert sum(len(rows) for _, rows in trainings(ablation).values()) == len(ablation.rows)


def test_rows_with_equal_training_share_it() -> None:
    shared = {name: [row.name for row in rows] for name, (_, rows) in trainings(made_up(())).items()}
    assert shared == {"full": ["full"], "less": ["less", "least"]}


def test_the_document_has_a_place_for_every_table() -> None:
    document = Path(__file__).parents[3] / "docs" / "ablations.md"
    text = document.read_text(encoding="utf-8")
    for name in ABLATIONS:
        assert text.count(f"<!-- ablation {name} -->") == text.count(f"<!-- end of ablation {name} -->") == 1
