"""What a server made of a request, and whether that is as it should be.

A mistake may be refused, or fail in a node, with a sentence that says what is wrong. It may also turn out to be none. What
must not be: a server that dies, hangs, answers with an error of its own, or writes where it should not; and an error of this
pack that is not a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PACK_FOLDER = "comfyui_ensemble"
LONGEST_SENTENCE = 1500  # a list of choices may be long
HOST_ERRORS = ("graph.DependencyCycleError",)  # which it reports as of some node in the circle
EXCEPTIONS = ("exception_during_validation", "exception_during_inner_validation")

Outcome = Literal["refused", "executed", "failed", "interrupted", "host error", "defect"]


@dataclass(frozen=True)
class Verdict:
    """What became of one request.

    Attributes:
        outcome: `refused` before the run; `executed` to its end; `failed` in a node, with a sentence; `interrupted` because
            it would have taken long; `host error`: an answer without a sentence that is the host's own; `defect`.
        words: what was said.
        node: class of the node that failed.
    """

    outcome: Outcome
    words: str = ""
    node: str = ""


def is_sentence(text: str) -> bool:
    """Whether an artist can read it: one line, with a beginning and an end, no Python in it."""
    text = text.strip()
    shape = re.match(r"[A-Z0-9][^\n\r]*[.!?]\Z", text)
    return (
        bool(shape) and len(text) <= LONGEST_SENTENCE and "Traceback" not in text and not re.search(r"<class '", text)
    )


def refused(answer: Any) -> Verdict:
    """About an answer with the status 400."""
    if not isinstance(answer, dict) or not isinstance(answer.get("error"), dict) or not answer["error"].get("message"):
        return Verdict("host error", f"status 400 without a reason: {str(answer)[:200]}")
    words = f"{answer['error']['message']}: {answer['error'].get('details', '')}".strip(": ")
    for entry in (answer.get("node_errors") or {}).values():
        for error in entry["errors"]:
            verdict = _validation(entry["class_type"], error)
            if verdict is not None:
                return verdict
    return Verdict("refused", words)


def _validation(node: str, error: Mapping[str, Any]) -> Verdict | None:
    """A verdict where a node's own check went wrong instead of saying something."""
    details = str(error.get("details", ""))
    if error["type"] in EXCEPTIONS:
        trace = "".join(error["extra_info"].get("traceback", ()))
        kind = error["extra_info"].get("exception_type", "")
        outcome = "defect" if PACK_FOLDER in trace else "host error"
        return Verdict(outcome, f"{kind} while it was checked: {details}\n{trace}", node)
    if error["type"] == "custom_validation_failed" and node.startswith("Ensemble"):
        sentence = details.partition(" - ")[2]
        if not is_sentence(sentence):
            return Verdict("defect", f"no sentence: {sentence!r}", node)
    return None


def speaks(message: str, titles: frozenset[str]) -> bool:
    """Whether it is a sentence of one of the pack's nodes."""
    return is_sentence(message) and message.startswith(
        tuple(f"{title}{sign}" for title in titles for sign in (", ", ": "))
    )


def stray_tracebacks(log: str, titles: frozenset[str]) -> list[str]:
    """The tracebacks in a server's log that lead through the pack and do not end in a sentence of one of its nodes.

    The host writes one for whatever a node raises, also where the last line says all there is to say.
    """
    strays = []
    for block in log.split("Traceback (most recent call last):\n")[1:]:
        lines = block.splitlines()
        last = next((number for number, line in enumerate(lines) if line and not line[0].isspace()), len(lines) - 1)
        ours = any(PACK_FOLDER in line for line in lines[:last])
        if ours and not speaks(lines[last].partition(": ")[2], titles):
            strays.append("\n".join(lines[: last + 1]))
    return strays


def failed(details: Mapping[str, Any], titles: frozenset[str]) -> Verdict:
    """About a node that failed.

    Args:
        titles: the display names of the pack's nodes, one of which a sentence of the pack begins with.
    """
    node, message = details["node_type"], str(details["exception_message"]).strip()
    trace = "".join(details.get("traceback", ()))
    ours = PACK_FOLDER in trace or (node.startswith("Ensemble") and details["exception_type"] not in HOST_ERRORS)
    if not ours:
        return Verdict("failed", f"{details['exception_type']}: {message}", node)
    if speaks(message, titles):
        return Verdict("failed", message, node)
    return Verdict("defect", f"{details['exception_type']}: {message}\n{trace}", node)


def judged(history: Mapping[str, Any], titles: frozenset[str]) -> Verdict:
    """About a workflow that has ended."""
    for kind, details in history["status"]["messages"]:
        if kind == "execution_error":
            return failed(details, titles)
        if kind == "execution_interrupted":
            return Verdict("interrupted")
    return Verdict("executed")
