"""Runs workflows on a ComfyUI server over its HTTP API: POST /prompt, then /api/jobs, /history and /view; /upload/image for
what they read.

Knows nothing of ComfyUI's Python. How a request travels is a `Send`, so that a server can be somewhere else than behind a URL.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

POLL_SECONDS = 0.1
REQUEST_SECONDS = 60
GATEWAY_ERRORS = (502, 503, 504)  # a proxy's way to say that the server behind it does not answer
# A proxy set for the internet must not get requests to a server of one's own.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Workflow = dict[str, Any]
# (path, body or None for GET, the body's type) -> status and answer; OSError or HTTPException where nobody answers.
Send = Callable[[str, bytes | None, str], tuple[int, bytes]]


class QueueError(RuntimeError):
    """The server cannot be reached, refuses a workflow, or a node failed; the message is one sentence."""


class ServerDown(QueueError):
    """Nobody answers; what was asked may have been done all the same."""


class Refused(QueueError):
    """The server does not take a workflow: a node, an input or a file is not as it should be."""


@dataclass(frozen=True)
class QueueResult:
    """What a workflow left behind.

    Attributes:
        pictures: what its Save or Preview Image nodes wrote, as the server names it (filename, subfolder, type), in the
            order in which they came.
        texts: what its nodes showed in words, such as Preview as Text.
        files: whatever any node wrote, pictures among it, in the order of the nodes' numbers: it is always the same.
    """

    pictures: list[dict[str, str]]
    texts: list[str]
    files: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class JobState:
    """Where a queued workflow is.

    Attributes:
        running: a node of it is at work.
        history: what the server remembers of it, once it has ended in whatever way.
    """

    running: bool = False
    history: dict[str, Any] | None = None


def http_send(url: str, seconds: float = REQUEST_SECONDS) -> Send:
    """Requests to the server at a URL."""

    def send(path: str, data: bytes | None, kind: str) -> tuple[int, bytes]:
        request = urllib.request.Request(url.rstrip("/") + path, data, {"Content-Type": kind})
        try:
            with _opener.open(request, timeout=seconds) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    return send


@dataclass
class QueueClient:
    """A ComfyUI server.

    Attributes:
        url: such as http://127.0.0.1:8188; what it is called in sentences.
        timeout: seconds that one workflow may take.
        send: how requests get there; over HTTP to the URL by default.
    """

    url: str
    timeout: float = 3600.0
    client_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    send: Send | None = None

    def __post_init__(self) -> None:
        self._send = self.send or http_send(self.url)

    def run(self, workflow: Workflow) -> QueueResult:
        """Queue a workflow in API form and wait for its end.

        Raises:
            QueueError: see there.
        """
        return queue_result(self._wait(self.submit(workflow, str(uuid.uuid4()))))

    def submit(self, workflow: Workflow, prompt_id: str) -> str:
        """Queue a workflow in API form under an id of one's own (a UUID); returns that id.

        Raises:
            QueueError: see there.
        """
        body = {"prompt": workflow, "client_id": self.client_id, "prompt_id": prompt_id}
        answer = self._json("/prompt", body)
        if answer.get("node_errors"):  # ComfyUI runs what is left of a workflow; half of it is of no use here
            self.cancel(answer["prompt_id"])
            raise Refused(_refusal_sentence(["a part of it is wrong"], answer["node_errors"]))
        return answer["prompt_id"]

    def state(self, prompt_id: str) -> JobState | None:
        """Where a workflow is; None where the server knows nothing of it."""
        status, body = self._exchange(f"/api/jobs/{prompt_id}")
        if status == 404:
            return None
        job = self._parsed(_accepted(status, body))
        if job["status"] in ("pending", "in_progress"):
            return JobState(running=job["status"] == "in_progress")
        history = self._json(f"/history/{prompt_id}")
        # A server forgets its oldest workflows.
        return JobState(history=history[prompt_id]) if prompt_id in history else None

    def cancel(self, prompt_id: str) -> None:
        """Take a workflow out of the queue, or interrupt it where it runs; nothing happens to any other."""
        self._request(f"/api/jobs/{prompt_id}/cancel", b"")

    def dequeue(self, prompt_id: str) -> bool:
        """Take a workflow out of the queue if it still waits there; False where it does not."""
        self._request("/queue", json.dumps({"delete": [prompt_id]}).encode())
        return self.state(prompt_id) is None

    def fetch(self, picture: dict[str, str]) -> bytes:
        """The bytes of a picture file."""
        return self._request(f"/view?{urllib.parse.urlencode(picture)}")

    def upload(self, name: str, picture: bytes, folder: str = "temp") -> str:
        """Put a picture into the server's `temp` or `input` folder; returns how a Load Image node calls it there.

        In `temp` a file of the same name is written over; in `input` it stays, and another name is found if it differs.
        """
        boundary = uuid.uuid4().hex
        fields = {"type": folder, "overwrite": "true" if folder == "temp" else "false"}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
            for field, value in fields.items()
        ]
        header = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/png'
        parts += [f"--{boundary}\r\n{header}\r\n\r\n".encode(), picture, f"\r\n--{boundary}--\r\n".encode()]
        answer = self._parsed(
            self._request("/upload/image", b"".join(parts), f"multipart/form-data; boundary={boundary}")
        )
        stored = str(PurePosixPath(answer["subfolder"]) / answer["name"])
        return f"{stored} [temp]" if folder == "temp" else stored

    def object_info(self) -> dict[str, Any]:
        """Every node class of the server: its inputs, outputs and texts."""
        return self._json("/object_info")

    def version(self) -> str:
        """Of the server's ComfyUI; "0" where it does not say."""
        try:
            return str(self._json("/system_stats")["system"].get("comfyui_version", "0"))
        except (KeyError, TypeError, AttributeError):
            raise self._foreign() from None

    def _wait(self, prompt_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            state = self.state(prompt_id)
            if state is None:
                raise QueueError("the workflow was taken out of ComfyUI's queue; start again to go on")
            if state.history is not None:
                return state.history
            time.sleep(POLL_SECONDS)
        raise QueueError(f"the workflow did not end within {self.timeout:.0f} seconds")

    def _json(self, path: str, body: Any = None) -> Any:
        return self._parsed(self._request(path, None if body is None else json.dumps(body).encode()))

    def _parsed(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            raise self._foreign() from None

    def _request(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        return _accepted(*self._exchange(path, data, kind))

    def _exchange(self, path: str, data: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        try:
            status, body = self._send(path, data, kind)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerDown(self._silence(getattr(error, "reason", error))) from None
        if status in GATEWAY_ERRORS:
            raise ServerDown(self._silence(f"status {status}"))
        return status, body

    def _foreign(self) -> ServerDown:
        return ServerDown(f"what answers at {self.url} is not ComfyUI; give ComfyUI's own address")

    def _silence(self, reason: object) -> str:
        return f"ComfyUI does not answer at {self.url} ({reason}); start it, then start this again"


def _accepted(status: int, body: bytes) -> bytes:
    if status == 200:
        return body
    raise _refusal(status, body)


def _refusal(status: int, body: bytes) -> QueueError:
    """Why the server refused a request."""
    try:
        answer = json.loads(body)
        return Refused(_refusal_sentence([str(answer["error"]["message"])], answer.get("node_errors") or {}))
    except (ValueError, KeyError, TypeError):
        return QueueError(f"ComfyUI answered with status {status}")


def _refusal_sentence(messages: list[str], node_errors: dict[str, Any]) -> str:
    for node in node_errors.values():
        messages += [f"{node['class_type']}: {error['message']} ({error['details']})" for error in node["errors"]]
    return "ComfyUI refused the workflow: " + "; ".join(messages)


def was_interrupted(history: dict[str, Any]) -> bool:
    """Whether somebody stopped this workflow."""
    return any(kind == "execution_interrupted" for kind, _details in _messages(history))


def queue_result(history: dict[str, Any]) -> QueueResult:
    """What a workflow that has ended left behind.

    Raises:
        QueueError: a node failed or somebody stopped it.
    """
    for kind, details in _messages(history):
        if kind == "execution_error":
            raise QueueError(f"{details['node_type']} failed: {details['exception_message'].strip()}")
    if was_interrupted(history):
        raise QueueError("the workflow was stopped in ComfyUI; start again to go on")
    outputs = history["outputs"]
    return QueueResult(
        pictures=[picture for output in outputs.values() for picture in output.get("images", ())],
        texts=[text for output in outputs.values() for text in output.get("text", ()) if isinstance(text, str)],
        files=[file for node in sorted(outputs, key=_node_order) for file in _files(outputs[node])],
    )


def _messages(history: dict[str, Any]) -> list[Any]:
    return (history.get("status") or {}).get("messages") or []


def _node_order(node: str) -> tuple[int, str]:
    return (int(node), "") if node.isdecimal() else (1 << 62, node)


def _files(output: dict[str, Any]) -> list[dict[str, str]]:
    items = [item for value in output.values() if isinstance(value, list) for item in value]
    return [item for item in items if isinstance(item, dict) and isinstance(item.get("filename"), str)]
