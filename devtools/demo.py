"""Run one workflow through a real ComfyUI server, as its web page does, and say where the picture is."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp

from devtools.console import LiveLine, Problem, bar, say
from devtools.server import ComfyServer, accepted, finished


async def run_workflow(server: ComfyServer, prompt: dict[str, Any]) -> dict[str, Any]:
    """Queue the workflow, follow it over the websocket, return its history."""
    client = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        body = {"prompt": prompt, "client_id": client}
        prompt_id = accepted(*await asyncio.to_thread(server.post, "/prompt", body))
        await follow(socket, prompt, prompt_id)
    history = await asyncio.to_thread(server.get, f"/history/{prompt_id}")
    return finished(history[prompt_id])


async def follow(socket: aiohttp.ClientWebSocketResponse[bool], prompt: dict[str, Any], prompt_id: str) -> None:
    """Show the progress until the workflow ends."""
    live = LiveLine(quiet_seconds=1.0)
    seen: set[str] = set()
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:
            continue
        event = json.loads(message.data)
        data = event.get("data", {})
        if data.get("prompt_id", prompt_id) != prompt_id:
            continue
        if event["type"] == "executing" and data["node"] is None:
            # The last event of every workflow, failed or not; only now its history can be asked for.
            live.clear()
            return
        if event["type"] == "executing":
            seen.add(data["node"])
            live.show(f"{bar(len(seen) - 1, len(prompt))} {title(prompt, data['node'])}")
        elif event["type"] == "progress":
            done = len(seen) - 1 + data["value"] / data["max"]
            step = f"{data['value']}/{data['max']}"
            live.show(f"{bar(done, len(prompt))} {title(prompt, data['node'])} {step}")
    raise Problem("ComfyUI closed the connection before the workflow ended.")


def title(prompt: dict[str, Any], node: str) -> str:
    """What a node is called on the canvas."""
    # A node that expands into others sends events for ids that are not in the workflow.
    entry = prompt.get(node, {})
    return entry.get("_meta", {}).get("title") or entry.get("class_type", "")


def texts(history: dict[str, Any]) -> list[tuple[str, str]]:
    """(node id, text) for everything that nodes said in words."""
    return [
        (node, line if isinstance(line, str) else json.dumps(line))
        for node, output in history["outputs"].items()
        for line in output.get("text", ())
    ]


def pictures(history: dict[str, Any], output: Path) -> list[Path]:
    """The picture files that the workflow saved."""
    return [
        (output / image["subfolder"] / image["filename"]).resolve()
        for node in history["outputs"].values()
        for image in node.get("images", ())
        if image["type"] == "output"
    ]


def demo(server: ComfyServer, workflow: Path) -> None:
    """The whole demonstration."""
    prompt = json.loads(workflow.read_text(encoding="utf-8"))
    say(f"Starting ComfyUI (its log: {server.log}).")
    started = time.monotonic()
    with server:
        say(f"ComfyUI answers at {server.url} after {time.monotonic() - started:.0f} s; running {workflow.name}.")
        started = time.monotonic()
        history = asyncio.run(run_workflow(server, prompt))
    say(f"Done in {time.monotonic() - started:.1f} s.")
    for node, text in texts(history):
        print(f"{title(prompt, node)}: {text}")
    saved = pictures(history, server.data / "output")
    if not saved:
        raise Problem(f"{workflow.name} saved no picture.")
    for picture in saved:
        print(f"Picture: {picture}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workflow", type=Path, help="a workflow in API form")
    parser.add_argument("--host", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--custom-nodes", type=Path, default=None)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--cpu", action="store_true")
    chosen = parser.parse_args()
    # A request to end must stop the server too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = ComfyServer(
        data=chosen.data,
        models=chosen.models,
        host=chosen.host,
        custom_nodes=chosen.custom_nodes,
        pack=chosen.pack,
        arguments=["--cpu"] if chosen.cpu else [],
    )
    try:
        demo(server, chosen.workflow)
    except Problem as problem:
        say(str(problem))
        return 2
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
