"""The bundled workflows as an artist meets them: the host's own web page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from devtools.browser import CHROMIUM, FLAGS, open_template, run_until
from devtools.server import ComfyServer
from devtools.workflow_sources import WORKFLOWS

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; install it to test the page")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page whose script errors fail the test."""
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


@pytest.mark.parametrize("name", NAMES)
def test_opens_complete_and_runs_to_a_picture(server: ComfyServer, page: Page, name: str, tmp_path: Path):
    open_template(page, server.url, name)
    source = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    assert page.evaluate("app.graph.nodes.length") == len(source["nodes"])
    missing = "app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
    assert page.evaluate(missing) == []

    # What the page would send is the API form, to the last value.
    sent = page.evaluate("app.graphToPrompt().then(prompt => prompt.output)")
    assert sent == json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))

    run_until(page, "execution_success")
    assert page.evaluate("app.graph.nodes.filter(n => n.has_errors).map(n => n.title)") == []
    saved = [node["id"] for node in source["nodes"] if node["type"] == "SaveImage"]
    for node in saved:
        pictures = page.evaluate(f"app.nodeOutputs['{node}'].images")
        assert len(pictures) >= 1
        for picture in pictures:
            assert (server.data / "output" / picture["subfolder"] / picture["filename"]).is_file()


def test_a_mistake_is_shown_in_words(server: ComfyServer, page: Page):
    open_template(page, server.url, "astra_pose_and_identity")
    page.evaluate("app.graph.nodes.find(n => n.type == 'PrimitiveStringMultiline').widgets[0].value = ' '")
    run_until(page, "execution_error")
    page.get_by_text("View details").first.click()
    sentence = "comfyui_ensemble.InputError: Normalize Prompt, prompt: it is empty; write what the people do."
    expect(page.get_by_text(sentence).first).to_be_visible(timeout=10_000)


def test_every_node_has_a_help_page(server: ComfyServer, page: Page):
    nodes = [
        name for name, info in server.get("/object_info").items() if info["python_module"].endswith("comfyui_ensemble")
    ]
    assert len(nodes) >= 8
    page.goto(server.url)
    for node in nodes:
        answer = page.request.get(f"{server.url}/extensions/comfyui_ensemble/docs/{node}.md")
        assert answer.ok and len(answer.text()) > 200, f"{node} has no help page"


def test_every_node_and_input_explains_itself(server: ComfyServer):
    for name, info in server.get("/object_info").items():
        if not info["python_module"].endswith("comfyui_ensemble"):
            continue
        assert info["category"].startswith("ensemble/") and info["description"] and info["search_aliases"], name
        for kind in ("required", "optional"):
            for input_name, spec in info["input"].get(kind, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{input_name} has no tooltip"
