"""A small share of the interruptions, with the pictures of a server that was never interrupted beside them."""

from __future__ import annotations

from devtools.reliability.interrupts import interrupts, probe_pictures
from devtools.reliability.sandbox import SandboxServer

COUNT = 8
KINDS = ("seal_restyle_by_text", "one_for_all_dress", "anystory_two_subjects")


def test_a_share_of_the_interruptions(sandbox: SandboxServer, quick):
    kinds = {name: quick[name] for name in KINDS}
    fresh = {name: probe_pictures(sandbox, kind, f"fresh_{name}") for name, kind in kinds.items()}
    result = interrupts(sandbox, kinds, fresh, COUNT, seed=5)
    assert not result.problems
    assert all(each.same for each in result.rounds)
    assert sum(bool(each.stopped_at) for each in result.rounds) >= 2  # some of them came in the middle


def test_another_picture_would_be_seen(sandbox: SandboxServer, quick):
    kinds = {"one_for_all_dress": quick["one_for_all_dress"]}
    wrong = {"one_for_all_dress": [picture ^ 1 for picture in probe_pictures(sandbox, quick["one_for_all_dress"], "x")]}
    result = interrupts(sandbox, kinds, wrong, 1, seed=0)
    assert not result.rounds[0].same and not result.problems
