"""Makes the pictures of the documentation: runs every bundled workflow on a real server and looks at the page.

    python dev.py python -m devtools.pictures [NAME ...]

Writes workflows/NAME.jpg (everything the workflow showed, side by side: the thumbnail in the template browser), and for the
main workflow docs/results.png (the same) and docs/graph.png (the page after the run).
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from urllib.parse import urlencode

import torch
from PIL import Image
from playwright.sync_api import Page, ViewportSize, sync_playwright

from devtools.browser import CHROMIUM, FLAGS, open_template, run_until
from devtools.server import ComfyServer
from devtools.workflow_sources import WORKFLOW_SOURCES, WORKFLOWS
from devtools.workspace import Workspace

DOCS = WORKFLOWS.parent / "docs"
MAIN = WORKFLOW_SOURCES[0].name
HEIGHT, GAP, BACKGROUND = 384, 12, (24, 24, 27)
VIEWPORT = ViewportSize(width=2560, height=1720)


def shown_pictures(page: Page, url: str) -> list[Image.Image]:
    """Every picture that the workflow's nodes showed, previews and saved ones, in the order of the nodes."""
    outputs = page.evaluate("app.nodeOutputs")
    shown = [image for node in sorted(outputs, key=int) for image in outputs[node].get("images") or ()]
    return [
        Image.open(io.BytesIO(page.request.get(f"{url}/view?{urlencode(image)}").body())).convert("RGB")
        for image in shown
        if image["type"] != "input"
    ]


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """The pictures at one height in a row."""
    pictures = [p.resize((round(p.width * HEIGHT / p.height), HEIGHT), Image.Resampling.LANCZOS) for p in pictures]
    sheet = Image.new("RGB", (sum(p.width + GAP for p in pictures) + GAP, HEIGHT + 2 * GAP), BACKGROUND)
    left = GAP
    for picture in pictures:
        sheet.paste(picture, (left, GAP))
        left += picture.width + GAP
    return sheet


def picture_workflow(page: Page, server: ComfyServer, name: str) -> None:
    """Run one workflow on the page and write its pictures."""
    open_template(page, server.url, name)
    run_until(page, "execution_success")
    page.wait_for_timeout(3000)  # previews are loaded and drawn after the run has ended
    sheet = side_by_side(shown_pictures(page, server.url))
    sheet.save(WORKFLOWS / f"{name}.jpg", quality=88)
    if name == MAIN:
        DOCS.mkdir(exist_ok=True)
        sheet.save(DOCS / "results.png", optimize=True)
        page.screenshot(path=DOCS / "graph.png")


def main() -> None:
    names = [workflow.name for workflow in WORKFLOW_SOURCES]
    parser = argparse.ArgumentParser(description="Make the pictures of the documentation.")
    parser.add_argument("names", nargs="*", default=names, help=f"workflows, by default all: {', '.join(names)}")
    arguments = parser.parse_args()
    device = [] if torch.accelerator.is_available() else ["--cpu"]
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(Path(folder), Workspace.of_this_process().models, arguments=device) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name in arguments.names:
            context = browser.new_context(viewport=VIEWPORT)
            picture_workflow(context.new_page(), server, name)
            context.close()  # an open page goes on drawing
            print(json.dumps({"workflow": name}))
        browser.close()


if __name__ == "__main__":
    main()
