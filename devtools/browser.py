"""The host's web page in a real browser: open a bundled workflow, press Run."""

from __future__ import annotations

import shutil

from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def open_template(page: Page, url: str, name: str) -> None:
    """Open a bundled workflow through the page's own template address."""
    page.goto(f"{url}/?template={name}&source=comfyui_ensemble")
    # The page starts with a workflow of its own and then replaces it.
    opened = "window.app?.graph?.nodes?.some(node => node.type.startsWith('Ensemble'))"
    page.wait_for_function(opened, timeout=240_000)


def run_until(page: Page, ending: str) -> None:
    """Press Run and wait for the end of the run, which must be `ending`: execution_success or execution_error."""
    page.evaluate(
        """window.ending = null;
        for (const name of ['execution_success', 'execution_error'])
            app.api.addEventListener(name, event => window.ending = [name, event.detail.exception_message])"""
    )
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.ending", timeout=240_000)
    reached, message = page.evaluate("window.ending")
    assert reached == ending, message
