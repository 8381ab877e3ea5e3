"""Bad requests: made the same again from seed and number, of every kind, and none of them harms a server."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import pytest

from devtools.reliability.lone_nodes import lone_node, pack_nodes
from devtools.reliability.mutate import Case, Limits, attempt, make_case, mutate, titles
from devtools.reliability.sandbox import SandboxServer
from devtools.server import finished, refusal

COUNT = 150
SEED = 20


def test_a_case_is_a_function_of_seed_and_number(quick, object_info):
    before = copy.deepcopy(quick)
    one, again = ([make_case(n, SEED, quick, object_info, "/sandbox") for n in range(80)] for _ in range(2))
    assert one == again and quick == before  # and what it was made from stays as it was
    assert one != [make_case(n, SEED + 1, quick, object_info, "/sandbox") for n in range(80)]


def test_cases_are_of_every_kind(quick, object_info):
    cases = [make_case(number, SEED, quick, object_info, "/sandbox") for number in range(400)]
    starts = Counter(case.what.partition(":")[0] for case in cases)
    assert set(quick) <= set(starts) and len(set(pack_nodes(object_info)) & set(starts)) > 30
    assert not any(b"@SANDBOX@" in case.body for case in cases)


def test_every_node_of_the_pack_has_a_workflow_of_its_own(sandbox: SandboxServer, object_info):
    """Most of them run; those that cannot, for want of a model or of a second picture, say so in a sentence."""
    names, ran = pack_nodes(object_info), 0
    for name in names:
        prompt = lone_node(name, object_info)
        assert any(node["class_type"] == name for node in prompt.values())
        if name.startswith("EnsembleTrain") or name == "EnsembleSaveWeights":
            continue  # the tests of training run those
        case = Case(0, name, json.dumps({"prompt": prompt}).encode())
        verdict = attempt(sandbox, case, titles(object_info), Limits())
        assert verdict.outcome in ("executed", "failed", "refused"), (name, verdict)
        ran += verdict.outcome == "executed"
    assert ran > len(names) / 2


def test_a_share_of_the_mutations(sandbox: SandboxServer, quick):
    result = mutate(sandbox, quick, range(COUNT), SEED, Limits())
    assert not result.defects() and not result.left_outside and not result.restarts and not result.strays
    outcomes = result.count()
    assert outcomes["refused"] > COUNT / 10 and outcomes["executed"] > COUNT / 10
    assert sandbox.run(quick["short_invert"])["outputs"]  # and it still works


def test_a_file_outside_is_seen(sandbox: SandboxServer):
    before = sandbox.files()
    escaped = sandbox.root / "a" / "escaped.png"
    inside = sandbox.data / "output" / "fine.png"
    for path in (escaped, inside):
        path.write_bytes(b"")
    assert sandbox.outside(before, sandbox.files(), "output/") == ["a/escaped.png"]
    for path in (escaped, inside):
        path.unlink()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'{"prompt": []}', b'{"prompt": {"1": 3}}', b"{" * 100, b'{"prompt": {"1": {}}}']
)
def test_the_host_answers_malformed_bodies(sandbox: SandboxServer, object_info, body: bytes):
    """With an error of its own at worst; the pack has no part in it."""
    verdict = attempt(sandbox, Case(0, "body", body), titles(object_info), Limits())
    assert verdict.outcome in ("refused", "host error") and sandbox.alive


def test_a_request_that_ends_the_host_is_the_host_s(sandbox: SandboxServer, quick, object_info):
    """ComfyUI 0.30 ends when it answers a client whose name is no text."""
    body = json.dumps({"prompt": quick["short_invert"], "client_id": {}}).encode()
    verdict = attempt(sandbox, Case(0, "client", body), titles(object_info), Limits())
    assert verdict.outcome in ("host error", "refused", "executed"), verdict
    assert sandbox.alive == (verdict.outcome != "host error")
    if not sandbox.alive:
        sandbox.kill()
        sandbox.start()
    assert sandbox.run(quick["short_invert"])["outputs"]


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("a\nTraceback (most recent call last):\n  File x\n    y\nTypeError: z\n", True),
        ("Traceback (most recent call last):\n  File x\nTypeError: z\ngot prompt\n", False),
        ("got prompt\n", False),
        ("", False),
    ],
)
def test_what_ended_a_server_is_the_last_it_said(tmp_path: Path, log: str, found: bool):
    server = SandboxServer(data=tmp_path, models=tmp_path, root=tmp_path)
    server.log.write_text(log)
    assert ("TypeError: z" in server.end_trace()) == found


def test_partly_good_workflows_run_their_good_part(sandbox: SandboxServer, quick):
    """The host drops an output whose inputs are wrong and runs the others; both are said."""
    prompt = {**quick["short_invert"], "9": {"class_type": "EnsembleCastSheet", "inputs": {}}}
    prompt["10"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    status, answer = sandbox.post("/prompt", {"prompt": prompt})
    assert status == 200 and "EnsembleCastSheet: Required input is missing (cast)" in refusal(answer)
    assert sandbox.wait_idle(60)
    history = sandbox.history(answer["prompt_id"])
    assert history is not None and finished(history)["outputs"]
