"""A small share of the soak."""

from __future__ import annotations

from devtools.reliability.sandbox import SandboxServer
from devtools.reliability.soak import soak

COUNT = 40
WARM_UP = 16
# So short a run shows a leak of models or of pictures, not one of some bytes; the allocator's own ups and downs are in it.
TOLERATED_MIB = 100


def test_a_share_of_the_soak(sandbox: SandboxServer, quick):
    result = soak(sandbox, quick, COUNT, seed=1)
    assert not result.problems
    assert result.done == COUNT and result.pictures >= COUNT
    memory = result.growth("memory", WARM_UP)
    assert memory.change < TOLERATED_MIB
    assert result.growth("handles", WARM_UP).change <= 2 and result.growth("threads", WARM_UP).change <= 2


def test_a_workflow_that_fails_is_told(sandbox: SandboxServer, quick):
    bad = {
        **quick["short_sheet"],
        "2": {**quick["short_sheet"]["2"], "inputs": {**quick["short_sheet"]["2"]["inputs"]}},
    }
    bad["2"]["inputs"]["name"] = " "
    result = soak(sandbox, {"short_sheet": bad, "short_invert": quick["short_invert"]}, 2, seed=0)
    (problem,) = result.problems
    assert "short_sheet: EnsembleSubject failed: Subject, name: it is empty" in problem
