"""Tables in words: every mean with its interval beside the paper's number, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...evaluation.statistics import Estimate, estimate
from ...models_info.files import whole_file
from ..errors import TrainingError
from .results import Plan, Store
from .table import MEASURES, Ablation, Claim

AGREES, OPPOSES, OPEN = "as in the paper", "the other way round than in the paper", "not told apart"


@dataclass(frozen=True)
class Finding:
    """What came of a claim.

    Attributes:
        gain: by how much the winner is better than the loser; below 0 where it is worse.
    """

    claim: Claim
    gain: Estimate

    @property
    def verdict(self) -> str:
        if self.gain.low > 0:
            return AGREES
        return OPPOSES if self.gain.high < 0 else OPEN


def findings(ablation: Ablation, plan: Plan, store: Store) -> list[Finding]:
    """Of all claims; differences are of the same seeds and scenes."""
    found = []
    for claim in ablation.claims:
        winner, loser = (
            store.values(ablation.row(name), claim.measure, plan.seeds) for name in (claim.winner, claim.loser)
        )
        found.append(Finding(claim, estimate(MEASURES[claim.measure].better * (winner - loser))))
    return found


def render(ablation: Ablation, plan: Plan, store: Store, picture: str) -> str:
    """A table as Markdown, with what was found below it.

    Args:
        picture: where the contact sheet is, seen from the text.
    """
    found = findings(ablation, plan, store)
    lines = [
        f"## {ablation.title}",
        "",
        f"The paper's: {ablation.source}. {ablation.note}",
        "",
        _made_of(ablation, plan),
        "",
    ]
    lines += [*_table(ablation, plan, store), "", summary(found), ""]
    lines += [f"- {sentence(ablation, each)}" for each in found]
    lines += ["", f"![{ablation.title}: references, truth and every row]({picture})"]
    return "\n".join(lines) + "\n"


def _made_of(ablation: Ablation, plan: Plan) -> str:
    trained = f"{_count(plan.steps, 'step')}, " if plan.steps else ""
    of = f"{_count(plan.seeds, 'seed')} x {_count(plan.scenes, 'scene')}"
    pictures = f"{trained}{of} = {_count(plan.seeds * plan.scenes, 'picture')} a row"
    side, reference = plan.asked["resolution"], plan.asked["reference"]
    text = f"{pictures}, {side} x {side} pixels, references {reference}; 95 % intervals in brackets."
    if plan.seeds == 1 and plan.steps:
        text += " With one seed they say nothing of how far another training would differ."
    if plan.random:
        text += " **The base has random weights: these numbers mean nothing.**"
    return text


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _table(ablation: Ablation, plan: Plan, store: Store) -> list[str]:
    measures = [MEASURES[name] for name in ablation.measures]
    heads = ["", *(f"{each.title} {'↑' if each.better > 0 else '↓'}" for each in measures)]
    heads += [f"paper: {column}" for column in ablation.columns]
    lines = [_line(heads), _line(["---", *("---:" for _ in heads[1:])])]
    for row in ablation.rows:
        cells = [_cell(estimate(store.values(row, name, plan.seeds))) for name in ablation.measures]
        paper = [*row.paper, *(None for _ in ablation.columns[len(row.paper) :])]
        lines.append(_line([row.name, *cells, *("–" if number is None else f"{number:g}" for number in paper)]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: Estimate) -> str:
    return "–" if math.isnan(found.mean) else f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def summary(found: Sequence[Finding]) -> str:
    """One sentence of how far the claims hold."""
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in (AGREES, OPPOSES, OPEN)}
    return (
        f"Of the {len(found)} differences that the paper reports, {counts[AGREES]} "
        f"{'is' if counts[AGREES] == 1 else 'are'} found here, {counts[OPPOSES]} the other way round, and {counts[OPEN]}"
        " cannot be told from none with so many pictures."
    )


def sentence(ablation: Ablation, found: Finding) -> str:
    """What came of a claim, and the paper's numbers."""
    claim, gain = found.claim, found.gain
    measure = MEASURES[claim.measure].title
    if math.isnan(gain.mean):
        return f"*{claim.winner}* and *{claim.loser}*: {measure} could not be measured."
    interval = f"95 % interval {gain.low:+.4f} to {gain.high:+.4f}"
    says = _says(ablation, claim)
    if found.verdict == OPEN:
        return f"*{claim.winner}* and *{claim.loser}* are not told apart in {measure} ({gain.mean:+.4f}, {interval}); {says}."
    better = "better" if gain.mean > 0 else "worse"
    return (
        f"*{claim.winner}* is {better} than *{claim.loser}* in {measure} by {abs(gain.mean):.4f} ({interval}),"
        f" {found.verdict}: {says}."
    )


def _says(ablation: Ablation, claim: Claim) -> str:
    if not claim.column:
        return f"the paper has it in {claim.said}"
    place = ablation.columns.index(claim.column)
    ours, theirs = (ablation.row(name).paper[place] for name in (claim.winner, claim.loser))
    return f"its {claim.column} is {ours:g} against {theirs:g}"


def write_between(path: Path, name: str, text: str) -> None:
    """Put a table between its markers in a document.

    Raises:
        TrainingError: the document, or a marker, is not there.
    """
    begin, end = f"<!-- ablation {name} -->", f"<!-- end of ablation {name} -->"
    document = path.read_text(encoding="utf-8") if path.is_file() else ""
    if document.count(begin) != 1 or document.count(end) != 1 or document.index(begin) > document.index(end):
        raise TrainingError(f"{path} has no place for the table; write {begin} and {end} where it is to stand", "docs")
    before, after = document.split(begin)[0], document.split(end)[1]
    with whole_file(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
