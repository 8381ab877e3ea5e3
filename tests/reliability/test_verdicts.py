"""What counts as a sentence and what as a defect."""

from __future__ import annotations

import pytest

from devtools.reliability.verdicts import failed, is_sentence, judged, refused, stray_tracebacks

TITLES = frozenset({"Subject", "Render Pose"})


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Subject, name: it is empty; give the subject a short name.", True),
        ("Extract Pose: the package is missing; run `pip install x`.", True),
        ("'str' object has no attribute 'shape'", False),
        ("Two\nlines.", False),
        ("No end", False),
        ("It is <class 'int'>.", False),
        ("X" * 5000 + ".", False),
        ("", False),
    ],
)
def test_is_sentence(text, expected):
    assert is_sentence(text) is expected


def failure(message: str, node: str = "EnsembleSubject", trace: str = "") -> dict:
    return {
        "node_type": node,
        "exception_message": message,
        "exception_type": "ValueError",
        "traceback": [trace],
    }


def test_a_node_of_the_pack_must_speak():
    assert failed(failure("Subject, name: it is empty; give one.\n"), TITLES).outcome == "failed"
    assert failed(failure("list index out of range"), TITLES).outcome == "defect"
    assert failed(failure("Somebody else, name: it is empty; give one."), TITLES).outcome == "defect"


def test_a_stock_node_is_the_host_s_unless_the_pack_raised():
    assert failed(failure("mat1 and mat2", "KSampler"), TITLES).outcome == "failed"
    ours = failure("mat1 and mat2", "KSampler", 'File "custom_nodes/comfyui_ensemble/attention_patches/dsm.py"')
    assert failed(ours, TITLES).outcome == "defect"


def answer(kind: str, details: str, trace: str = "", node: str = "EnsembleSubject") -> dict:
    error = {
        "type": kind,
        "message": "m",
        "details": details,
        "extra_info": {"traceback": [trace], "exception_type": "E"},
    }
    return {"error": {"message": "no", "details": ""}, "node_errors": {"1": {"class_type": node, "errors": [error]}}}


@pytest.mark.parametrize(
    "given, outcome",
    [
        (answer("value_not_in_list", "x"), "refused"),
        (answer("custom_validation_failed", "name - Subject, name: it is empty; give one."), "refused"),
        (answer("custom_validation_failed", "name"), "defect"),
        (answer("exception_during_validation", "'2'", "comfyui_ensemble/nodes/cast.py"), "defect"),
        (answer("exception_during_inner_validation", "'2'", "execution.py"), "host error"),
        (None, "host error"),
        ({"error": {}}, "host error"),
    ],
)
def test_refused(given, outcome):
    assert refused(given).outcome == outcome


def test_judged():
    def history(*messages):
        return {"status": {"messages": [("execution_start", {}), *messages]}}

    assert judged(history(("execution_success", {})), TITLES).outcome == "executed"
    assert judged(history(("execution_interrupted", {})), TITLES).outcome == "interrupted"
    assert judged(history(("execution_error", failure("oh"))), TITLES).outcome == "defect"


HOST_LINE = '  File "/host/execution.py", line 1, in execute\n    f()\n'
PACK_LINE = '  File "/x/custom_nodes/comfyui_ensemble/nodes/cast.py", line 1, in execute\n    f()\n'


@pytest.mark.parametrize(
    "lines, last, stray",
    [
        (HOST_LINE, "ValueError: no", False),
        (HOST_LINE + PACK_LINE, "comfyui_ensemble.InputError: Subject, name: it is empty; give one.", False),
        (HOST_LINE + PACK_LINE, "AttributeError: 'str' object has no attribute 'shape'", True),
        (HOST_LINE + PACK_LINE, "comfyui_ensemble.InputError: Nobody, name: it is empty; give one.", True),
    ],
)
def test_stray_tracebacks(lines, last, stray):
    log = f"[INFO] got prompt\nTraceback (most recent call last):\n{lines}{last}\n\n[INFO] Prompt executed\n"
    assert len(stray_tracebacks(log + log, TITLES)) == 2 * stray
