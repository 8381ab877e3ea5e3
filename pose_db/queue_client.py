"""Runs workflows on a ComfyUI server over its HTTP API: POST /prompt, then /history and /view.

Knows nothing of ComfyUI's Python.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any

POLL_SECONDS = 0.1
REQUEST_SECONDS = 60
# A proxy set for the internet must not get requests to a server of one's own.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Workflow = dict[str, Any]


class QueueError(RuntimeError):
    """The server cannot be reached, refuses a workflow, or a node failed; the message is one sentence."""


@dataclass(frozen=True)
class QueueResult:
    """What a workflow left behind.

    Attributes:
        pictures: what its Save or Preview Image nodes wrote, as the server names it (filename, subfolder, type).
        texts: what its nodes showed in words, such as Preview as Text.
    """

    pictures: list[dict[str, str]]
    texts: list[str]


@dataclass
class QueueClient:
    """A ComfyUI server.

    Attributes:
        url: such as http://127.0.0.1:8188.
        timeout: seconds that one workflow may take.
    """

    url: str
    timeout: float = 3600.0
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def run(self, workflow: Workflow) -> QueueResult:
        """Queue a workflow in API form and wait for its end.

        Raises:
            QueueError: see there.
        """
        answer = self._json("/prompt", {"prompt": workflow, "client_id": self.client_id})
        if answer["node_errors"]:  # ComfyUI runs what is left of a workflow; half of it is of no use here
            self._request("/queue", json.dumps({"delete": [answer["prompt_id"]]}).encode())
            raise QueueError(_refusal_sentence(["a part of it is wrong"], answer["node_errors"]))
        return _result(self._wait(answer["prompt_id"]))

    def fetch(self, picture: dict[str, str]) -> bytes:
        """The bytes of a picture file."""
        return self._request(f"/view?{urllib.parse.urlencode(picture)}")

    def _wait(self, prompt_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            # The queue is read first: a workflow that ends in between is then in the history.
            queue = self._json("/queue")
            history = self._json(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            waiting = [*queue["queue_running"], *queue["queue_pending"]]
            if not any(entry[1] == prompt_id for entry in waiting):
                raise QueueError("the workflow was taken out of ComfyUI's queue; start again to go on")
            time.sleep(POLL_SECONDS)
        raise QueueError(f"the workflow did not end within {self.timeout:.0f} seconds")

    def _json(self, path: str, body: Any = None) -> Any:
        return json.loads(self._request(path, None if body is None else json.dumps(body).encode()))

    def _request(self, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url.rstrip("/") + path, data, {"Content-Type": "application/json"})
        try:
            with _opener.open(request, timeout=REQUEST_SECONDS) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise QueueError(_refusal(error.code, error.read())) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise QueueError(
                f"ComfyUI does not answer at {self.url} ({reason}); start it, then start this again"
            ) from None


def _refusal(code: int, body: bytes) -> str:
    """Why the server refused a request."""
    try:
        answer = json.loads(body)
        return _refusal_sentence([str(answer["error"]["message"])], answer.get("node_errors") or {})
    except (ValueError, KeyError, TypeError):
        return f"ComfyUI answered with status {code}"


def _refusal_sentence(messages: list[str], node_errors: dict[str, Any]) -> str:
    for node in node_errors.values():
        messages += [f"{node['class_type']}: {error['message']} ({error['details']})" for error in node["errors"]]
    return "ComfyUI refused the workflow: " + "; ".join(messages)


def _result(history: dict[str, Any]) -> QueueResult:
    for kind, details in history["status"]["messages"]:
        if kind == "execution_error":
            raise QueueError(f"{details['node_type']} failed: {details['exception_message'].strip()}")
        if kind == "execution_interrupted":
            raise QueueError("the workflow was stopped in ComfyUI; start again to go on")
    outputs = history["outputs"].values()
    return QueueResult(
        pictures=[picture for output in outputs for picture in output.get("images", ())],
        texts=[text for output in outputs for text in output.get("text", ()) if isinstance(text, str)],
    )
